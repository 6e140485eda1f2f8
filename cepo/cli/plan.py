"""`cepo plan RUN.toml --gpu 24GB`: the memory that a run takes of a card, without a GPU."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cepo.cli.arguments import Overrides, RunFile


def plan(
    file: RunFile,
    gpu: Annotated[
        str,
        typer.Option(
            "--gpu",
            metavar="SIZE",
            help="Memory of the card, such as 24GB; 3x80GB gives each process cards of its own.",
        ),
    ],
    *,
    set: Overrides = None,
) -> int:
    """Prints the plan as a table.

    Returns:
        The exit status: 1 if the run does not fit; the settings with which it would are printed.

    Raises:
        UserError: the run file or the size is wrong, the model's config.json cannot be read, or the evidence of a group
            is too large to send.
    """
    from cepo.algo.methods.distillation import check_support
    from cepo.cli.preflight import memory_plan, sizes
    from cepo.prompts.renderer import require_model
    from cepo.run import file as runfile

    card = memory_plan.parse_gpu(gpu)
    config = runfile.load(file, set or [])
    require_model(config.model.path)
    measured = sizes.measure(config)
    check_support(config.algorithm.asks, measured.vocabulary, config.sampling.group_tokens)
    count = sizes.pass_counter(measured)
    planned = memory_plan.plan_memory(measured, card, count)
    for line in planned.lines():
        print(line)
    print(
        f"rollout and teacher keep up to {sizes.shown(measured.cached_bytes)} of adapters each, in /dev/shm by default"
    )
    if not planned.problem:
        print("it fits")
        return 0
    settings = memory_plan.fitting_settings(measured, card, count)
    sys.stdout.flush()
    print(f"it does not fit: {memory_plan.refusal(planned, settings)}", file=sys.stderr)
    return 1
