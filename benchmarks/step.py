"""What token credit costs: step time of CEPO against GRPO, on the same engines, with the same seeds.

Runs of both take turns, on policy (`loop.lag=0`) and one step behind (`loop.lag=1`). The learning rate is all but zero,
so that the two sample the same tokens in every step and their difference is the credit's cost alone; CEPO's lambda is
above zero in every step that counts. `--gpu` does so with a random model of a real size.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import _gpu, _report
from benchmarks._stack import PROCESSES, TIMES, Row, medians, services, tiny, trained

AIM = 1.02
"""Of GRPO's time; the paper's Table 3 has 6:34 against 5:58 hours, 1.10 (arXiv:2605.19436)."""
PAPER = 1.10
FROZEN = "optim.lr=1e-12"
PARTS = TIMES | {
    "teacher_seconds": "time/teacher_seconds",
    "teacher_exposed_seconds": "time/teacher_exposed_seconds",
    "generated_tokens": "tokens/generated",
    "lambda": "credit/lambda",
    **{f"cpu_seconds_{name}": f"cpu/{name}" for name in (*PROCESSES, "redis")},
}


def measure(lags: Sequence[int], rounds: int, steps: int, *more: str) -> dict[int, list[tuple[Row, Row]]]:
    """Steps of both by lag, in pairs: the same step of the same round."""
    pairs: dict[int, list[tuple[Row, Row]]] = {lag: [] for lag in lags}
    with services(tiny("cepo", *more, f"loop.lag={max(lags)}")) as engines:
        for turn in range(rounds):
            for lag in lags:
                overrides = (*more, FROZEN, f"loop.lag={lag}", f"loop.steps={steps + 1}", f"loop.seed={turn}")
                ours = trained(engines, tiny("cepo", *overrides), f"cepo-{lag}-{turn}")
                alternative = trained(engines, tiny("grpo", *overrides), f"grpo-{lag}-{turn}")
                pairs[lag] += zip(ours, alternative, strict=True)
    return pairs


def compared(pairs: Sequence[tuple[Row, Row]]) -> dict[str, Any]:
    """Both, and what the one takes more."""
    seconds = [(a["time/step_seconds"], b["time/step_seconds"]) for a, b in pairs]
    return {
        "ours": medians([a for a, _ in pairs], PARTS),
        "alternative": medians([b for _, b in pairs], PARTS),
        "overhead": round(statistics.median(a / b for a, b in seconds) - 1, 4),
        "seconds_more": round(statistics.median(a - b for a, b in seconds), 4),
        "sampled_the_same": all(a["tokens/generated"] == b["tokens/generated"] for a, b in pairs),
        "steps_of_each": len(pairs),
    }


def main() -> None:
    """Prints the result and writes it."""
    about = "five steps of each on policy; a minute, half of it start"
    asked = _report.arguments(__doc__, about, _gpu.SHAPES).parse_args()
    with TemporaryDirectory() as folder:
        more = _gpu.overrides(Path(folder), asked.gpu) if asked.gpu else []
        found = measure((0,), 1, 5, *more) if asked.quick else measure((0, 1), 1 if asked.gpu else 2, 6, *more)
        cases = {f"lag {lag}": compared(pairs) for lag, pairs in found.items()}
        if asked.gpu:
            for case in cases.values():
                for method, figures in (("cepo", case["ours"]), ("grpo", case["alternative"])):
                    figures |= _gpu.rates(tiny(method, *more), figures)
    on_policy = cases["lag 0"]
    _report.write(
        "step",
        asked.gpu,
        ours=on_policy["ours"],
        alternative=on_policy["alternative"],
        ratio=1 / (1 + on_policy["overhead"]),
        aim=round(1 / AIM, 3),
        overhead_of_the_paper=round(PAPER - 1, 2),
        cases=cases,
        **_gpu.about(asked.gpu),
    )


if __name__ == "__main__":
    main()
