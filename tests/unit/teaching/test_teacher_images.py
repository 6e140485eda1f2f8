"""A vision-language teacher: every context of a group contains the image, and the log-probs depend on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from cepo.algo.methods.cepo import Cepo
from cepo.algo.methods.rlsd import Rlsd
from cepo.errors import UserError
from cepo.messages.arrays import Int32Array
from cepo.messages.groups import BASE_POLICY, Ask, ImageRef, Message, RolloutGroup, ScoredGroup, Weights
from cepo.messages.hints import HINT, with_hint
from cepo.model.forward import response_logps
from cepo.net.settings import Settings
from cepo.service.adapters import AdapterCache
from cepo.teaching.engine import TransformersScorer
from cepo.teaching.handler import Pair, make_handler
from tests.helpers.factories import ASKS, make_completion, make_proof, make_task, make_verdict
from tests.helpers.scorers import no_adapters
from tests.helpers.vision import BLANK, MODEL, RENDERER, TURN, Picture, held_out, ids_of, model

torch.set_num_threads(1)
((FIGURE, IMAGE), (_, OTHER)) = held_out(2)


def scorer_of_images(folder: Path, *images: Picture) -> TransformersScorer:
    """The engine with the tiny vision-language model; it can read these images alone."""

    async def read(image: ImageRef) -> bytes:
        found = {each.ref: each.data for each in images}
        if image not in found:
            raise UserError(f"image {image.sha256[:12]} is missing")
        return found[image]

    return TransformersScorer(
        Settings(model=MODEL, dtype="float32"), RENDERER, AdapterCache(folder, no_adapters, keep=2), read
    )


def scored(
    image: Picture | None,
    texts: tuple[str, ...],
    asks: tuple[Ask, ...] = ASKS,
    turn: tuple[Message, ...] = TURN,
) -> ScoredGroup:
    """Returns a group of a right and a wrong response to a question with or without an image."""
    answer, images = str(FIGURE.problem.answer), (image.ref,) if image else ()
    task = make_task(messages=turn, images=images, reference_answer=answer, hint=HINT, samples=len(texts), asks=asks)
    ids = [tuple(ids_of(text)) for text in texts]
    completions = [
        make_completion(text).model_copy(update={"token_ids": row, "logps": (0.0,) * len(row)})
        for text, row in zip(texts, ids, strict=True)
    ]
    rollout = RolloutGroup(
        task=task,
        prompt_token_ids=Int32Array.of(RENDERER.prompt_ids(turn, images)),
        completions=tuple(completions),
        proof=make_proof(BASE_POLICY),
    )
    verdicts = (make_verdict(1.0, answer), make_verdict(0.0, "12"))
    return ScoredGroup(rollout=rollout, verdicts=verdicts)


async def test_right_and_rejected_contexts_hold_the_figure(tmp_path: Path) -> None:
    texts = (f"\\boxed{{{FIGURE.problem.answer}}}", "\\boxed{12}")
    handler = make_handler(scorer_of_images(tmp_path, IMAGE, BLANK), RENDERER, 200)
    seen, unseen = [await handler(scored(image, texts)) for image in (IMAGE, BLANK)]
    for with_figure, without in zip(seen.evidence, unseen.evidence, strict=True):
        for at, (row, blind) in enumerate(zip(with_figure.rows, without.rows, strict=True)):
            turn = TURN if not row.answer else with_hint(TURN, HINT, row.answer)
            prompt = RENDERER.prompt_ids(turn, [IMAGE.ref])
            with torch.no_grad():
                wanted = response_logps(model(), [prompt], [ids_of(texts[at])], 1.0, [[IMAGE.features]])[0]
            assert row.logps == pytest.approx(wanted.tolist(), abs=1e-5)
            assert row.logps != pytest.approx(blind.logps, abs=1e-2)


async def test_log_probs_depend_on_neither_company_nor_order(tmp_path: Path) -> None:
    scorer = scorer_of_images(tmp_path, IMAGE, OTHER)
    prompt = RENDERER.prompt_ids(TURN, [IMAGE.ref])
    pairs = [Pair(prompt, tuple(ids_of("1+1=2")), (image.ref,)) for image in (IMAGE, OTHER)]
    pairs += [Pair(prompt, tuple(ids_of("13-5=8\n")), (IMAGE.ref,)), Pair((5, 6, 7), (8, 9))]
    together = (await scorer.score(pairs, 1.0, BASE_POLICY)).values
    assert together[0] != pytest.approx(together[1], abs=1e-2)
    for pair, row in zip(pairs, together, strict=True):
        assert (await scorer.score([pair], 1.0, BASE_POLICY)).values[0] == pytest.approx(row, abs=1e-5)


async def test_a_missing_image_fails_its_group_in_one_line(tmp_path: Path) -> None:
    handler = make_handler(scorer_of_images(tmp_path), RENDERER, 200)
    with pytest.raises(UserError, match=f"image {IMAGE.ref.sha256[:12]} is missing"):
        await handler(scored(IMAGE, ("\\boxed{1}", "\\boxed{12}")))


async def evidence_of(folder: Path, image: Picture, asks: tuple[Ask, ...]) -> dict[tuple[Ask, int], tuple[float, ...]]:
    """Returns the log-probs by ask and response."""
    handler = make_handler(scorer_of_images(folder, image), RENDERER, 200)
    group = scored(image, (f"\\boxed{{{FIGURE.problem.answer}}}", "\\boxed{12}"), asks)
    found = (await handler(group)).evidence
    return {(each.ask, i): tuple(row.logps) for each in found for i, row in enumerate(each.rows)}


@pytest.mark.parametrize("algorithm", [Cepo, Rlsd])
async def test_a_teacher_without_images_cannot_tell_them_apart(tmp_path: Path, algorithm: type[Cepo | Rlsd]) -> None:
    for images in ("keep", "drop"):
        asks = algorithm.model_validate({"images": images}).asks
        shown, blank = [await evidence_of(tmp_path, image, asks) for image in (IMAGE, BLANK)]
        for (ask, i), row in shown.items():
            own = ask.weights is Weights.POLICY  # RLSD's plain context is the policy's and keeps the image
            assert (row == blank[ask, i]) is (images == "drop" and not own)


async def test_what_a_blind_teacher_reads_is_padding_at_sequential_positions(tmp_path: Path) -> None:
    (ask, _) = asks = Cepo(images="drop").asks
    answer = str(FIGURE.problem.answer)
    row = (await evidence_of(tmp_path, IMAGE, asks))[ask, 0]
    prompt = list(RENDERER.prompt_ids(with_hint(TURN, HINT, answer), [IMAGE.ref]))
    pad, places = RENDERER.tokenizer.pad_token_id, [t for t in prompt if t == RENDERER.pixels.placeholder]
    padded = [pad if token == RENDERER.pixels.placeholder else token for token in prompt]
    assert (len(places), padded.count(pad)) == (24, 24)
    response = ids_of(f"\\boxed{{{answer}}}")
    ids_1S = torch.tensor([padded + response])
    with torch.no_grad():
        positions = torch.arange(ids_1S.shape[1]).expand(3, 1, -1)
        logp_SV = model()(input_ids=ids_1S, position_ids=positions, use_cache=False).logits[0].log_softmax(-1)
    wanted = [float(logp_SV[len(padded) - 1 + t, token]) for t, token in enumerate(response)]
    assert row == pytest.approx(wanted, abs=1e-5)


async def test_a_group_without_images_is_the_same_to_either_teacher(tmp_path: Path) -> None:
    handler = make_handler(scorer_of_images(tmp_path), RENDERER, 200)
    turn = (Message(role="user", content="12 + 13 - 5 = ?"),)
    found = []
    for images in ("keep", "drop"):
        asks = Cepo.model_validate({"images": images}).asks
        group = scored(None, ("\\boxed{20}", "\\boxed{12}"), asks, turn)
        found.append([row.logps for evidence in (await handler(group)).evidence for row in evidence.rows])
    assert found[0] == found[1]


async def test_an_image_meets_the_vision_part_once_for_all_contexts_policies_and_groups(tmp_path: Path) -> None:
    calls = []
    handler = make_handler(scorer_of_images(tmp_path, IMAGE, BLANK), RENDERER, 200)
    hook = register_module_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    try:
        for image in (IMAGE, BLANK, IMAGE):
            await handler(scored(image, ("\\boxed{1}", "\\boxed{12}")))
    finally:
        hook.remove()
    assert calls.count("Qwen3VLVisionModel") == 2
