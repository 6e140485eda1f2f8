"""What token credit costs: step time of CEPO against GRPO, on the same engines, with the same seeds.

Runs of both take turns. The learning rate is all but zero, so that the two sample the same tokens in every step and
their difference is the credit's cost alone; CEPO's lambda is above zero in every step that counts.
"""

from __future__ import annotations

import argparse
import statistics

from benchmarks import _report
from benchmarks._stack import Row, medians, services, tiny, trained

AIM = 1.02
"""Of GRPO's time; the paper's Table 3 has 6:34 against 5:58 hours, 1.10 (arXiv:2605.19436)."""
PAPER = 1.10
FROZEN = "optim.lr=1e-12"
PARTS = {
    "step_seconds": "time/step_seconds",
    "rollout_seconds": "time/rollout_seconds",
    "train_seconds": "time/train_seconds",
    "publish_seconds": "time/publish_seconds",
    "teacher_seconds": "time/teacher_seconds",
    "teacher_exposed_seconds": "time/teacher_exposed_seconds",
    "generated_tokens": "tokens/generated",
    "lambda": "credit/lambda",
}


def measure(rounds: int, steps: int) -> tuple[list[Row], list[Row]]:
    """The steps of both, in pairs: the same step of the same round."""
    ours, alternative = [], []
    with services(tiny("cepo")) as engines:
        for turn in range(rounds):
            overrides = (FROZEN, f"loop.steps={steps + 1}", f"loop.seed={turn}")
            ours += trained(engines, tiny("cepo", *overrides), f"cepo-{turn}")
            alternative += trained(engines, tiny("grpo", *overrides), f"grpo-{turn}")
    return ours, alternative


def main() -> None:
    """Prints the result and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="five steps of each; about a minute, half of it vLLM's start"
    )
    options = parser.parse_args()
    rounds, steps = (1, 5) if options.quick else (4, 6)
    ours, alternative = measure(rounds, steps)
    pairs = [(a["time/step_seconds"], b["time/step_seconds"]) for a, b in zip(ours, alternative, strict=True)]
    overhead = statistics.median(a / b for a, b in pairs)
    _report.write(
        "step",
        ours=medians(ours, PARTS),
        alternative=medians(alternative, PARTS),
        ratio=1 / overhead,
        aim=round(1 / AIM, 3),
        command=f"python -m benchmarks.step{' --quick' * options.quick}",
        overhead=round(overhead - 1, 4),
        overhead_aim=round(AIM - 1, 4),
        overhead_of_the_paper=round(PAPER - 1, 4),
        seconds_more_a_step=round(statistics.median(a - b for a, b in pairs), 4),
        steps_of_each=len(pairs),
        sampled_the_same=all(
            a["tokens/generated"] == b["tokens/generated"] for a, b in zip(ours, alternative, strict=True)
        ),
    )


if __name__ == "__main__":
    main()
