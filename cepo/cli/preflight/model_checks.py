"""Checks of the model: its length, family and rotary positions, what vLLM and PEFT make of it, and its tokens."""

from __future__ import annotations

from cepo.cli.preflight.preflight import Findings, Preflight
from cepo.cli.preflight.vllm_tables import takes_lora
from cepo.errors import UserError
from cepo.prompts.renderer import require_model

ROWS_RENDERED = 64
"""Rows whose tokens are compared with the embedding, if the tokenizer has tokens beyond it."""


def model(run: Preflight) -> Findings:
    """The model exists and is of a supported family, its context is long enough, its vocabulary fits the algorithm."""
    from cepo.algo.methods.distillation import check_support

    path, length = run.config.model.path, run.config.model.max_length
    require_model(path)
    positions = run.sizes.positions
    if 0 < positions < length:
        raise UserError(f"model.max_length={length} is above the {positions} positions of {path}; lower it")
    check_support(run.config.algorithm.asks, run.sizes.vocabulary, run.config.sampling.group_tokens)
    yield "ok", f"{path}, {run.sizes.parameters / 1e6:.4g} M parameters, {run.config.model.dtype}"
    yield from _family(run)
    if not run.config.algorithm.offline:
        _positions(run)
        yield from _served(run)


def _family(run: Preflight) -> Findings:
    """Proves the family with a small random model of the same configuration, as the run proves the real one."""
    from cepo.model.attention import takes_trees
    from cepo.model.miniature import miniature
    from cepo.model.probe import prove

    path = run.config.model.path
    try:
        small = miniature(run.sizes.model_config)
    except ValueError as error:
        yield "note", f"the family is proven only when the run loads the model: {error}"
        return
    prove(small, path, warn=False)
    if not takes_trees(small):
        yield (
            "note",
            f"{small.config.model_type} does not share prefixes: every sequence runs in full, and passes and "
            "micro-batches count their padding",
        )


def _positions(run: Preflight) -> None:
    """The engine and the trainer rotate alike.

    Raises:
        UserError: the family's rotary scaling depends on the length in a way in which they differ.
    """
    from cepo.model.rope import long_from, rope_sections

    config, length = run.sizes.model_config, run.config.model.max_length
    original, hint = long_from(config), run.config.hint_tokens
    if run.config.algorithm.asks and length <= original < length + hint:
        lower = f"at most {original - hint}, or " if original > hint else ""
        raise UserError(
            f"model.max_length={length} with {hint} tokens for hints crosses the {original} positions up to which "
            f"LongRoPE has short factors; set it to {lower}above {original}"
        )
    if any(section.get("rope_type") == "dynamic" and "alpha" not in section for section in rope_sections(config)):
        raise UserError(
            f"model.path={run.config.model.path}: vLLM and transformers scale its rotary positions differently "
            '(rope_type "dynamic"); choose another model'
        )


def _served(run: Preflight) -> Findings:
    """vLLM serves the architecture with LoRA, by its own table."""
    architecture = run.sizes.architecture
    served = takes_lora(architecture)
    if served is False:
        raise UserError(
            f"model.path={run.config.model.path}: vLLM serves {architecture} without LoRA; choose another model"
        )
    if served is None:
        yield "note", f"whether vLLM serves {architecture} with LoRA is not known here: its table does not list it"


def adapter(run: Preflight) -> Findings:
    """Every LoRA target matches modules of the model, and PEFT adapts them."""
    counts, lora = run.sizes, run.config.lora
    known = ", ".join(counts.linear_names)
    if counts.missing_targets:
        missing = ", ".join(counts.missing_targets)
        raise UserError(f"lora.targets: {run.config.model.path} has no module {missing}; choose from {known}")
    if counts.peft_refusal:
        raise UserError(f"lora.targets={list(lora.targets)}: {counts.peft_refusal}; choose from {known}")
    yield (
        "ok",
        f"rank {lora.rank} on {counts.adapted_modules} modules ({', '.join(lora.targets)}): "
        f"{counts.adapter_parameters / 1e6:.3g} M parameters",
    )
    if counts.fused_experts:
        yield "note", "the routed experts are one parameter a layer, which LoRA does not adapt; the other modules train"


def tokens(run: Preflight) -> Findings:
    """Every token of the prompts and every stop token has a row in the model's embedding.

    Raises:
        UserError: one has none.
    """
    renderer, rows, path = run.renderer, run.sizes.embeddings, run.config.model.path
    beyond = {number: text for text, number in renderer.tokenizer.get_vocab().items() if number >= rows}
    if not beyond:
        yield "ok", f"{len(renderer.tokenizer)} in the tokenizer, {rows} rows in the embedding"
        return
    used = dict.fromkeys(renderer.stop_ids, "a response ends with")
    for problem in run.train.problems[:ROWS_RENDERED]:
        ids = renderer.prompt_ids(problem.messages, problem.images)
        used |= dict.fromkeys(ids, f"row {problem.row} of {run.train.source} has")
    if wrong := [number for number in used if number in beyond]:
        raise UserError(
            f"model.path={path}: {used[wrong[0]]} the token {beyond[wrong[0]]!r} with the id {wrong[0]}, and the "
            f"embedding has {rows} rows; resize the embedding or remove the token from the tokenizer"
        )
    first = min(beyond)
    yield "note", f"{len(beyond)} tokens have no row in the embedding of {rows}, such as {beyond[first]!r} ({first})"
