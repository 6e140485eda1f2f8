"""The cost of token credit: the step time of CEPO against GRPO, on the same engines and with the same seeds.

Runs of both methods alternate, on-policy (`loop.lag=0`) and one step off-policy (`loop.lag=1`). The learning rate is
almost zero, so that both methods sample the same tokens in every step and differ only by the credit; CEPO's lambda is
above zero in every measured step. `--gpu SIZE` uses a random model of that size.
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
"""The aim: CEPO's step time divided by GRPO's."""
PAPER = 1.10
"""The paper's ratio: 6:34 against 5:58 hours (arXiv:2605.19436, Table 3)."""
FROZEN = "optim.lr=1e-12"
FIGURES = TIMES | {
    "teacher_seconds": "time/teacher_seconds",
    "teacher_exposed_seconds": "time/teacher_exposed_seconds",
    "generated_tokens": "tokens/generated",
    "lambda": "credit/lambda",
    **{f"cpu_seconds_{name}": f"cpu/{name}" for name in (*PROCESSES, "redis")},
}


def measure(lags: Sequence[int], rounds: int, steps: int, *overrides: str) -> dict[int, list[tuple[Row, Row]]]:
    """Trains with both methods and returns, for each lag, pairs of rows: the same step of CEPO and of GRPO."""
    pairs: dict[int, list[tuple[Row, Row]]] = {lag: [] for lag in lags}
    with services(tiny("cepo", *overrides, f"loop.lag={max(lags)}")) as engines:
        for seed in range(rounds):
            for lag in lags:
                run = (*overrides, FROZEN, f"loop.lag={lag}", f"loop.steps={steps + 1}", f"loop.seed={seed}")
                ours = trained(engines, tiny("cepo", *run), f"cepo-{lag}-{seed}")
                alternative = trained(engines, tiny("grpo", *run), f"grpo-{lag}-{seed}")
                pairs[lag] += zip(ours, alternative, strict=True)
    return pairs


def compared(pairs: Sequence[tuple[Row, Row]]) -> dict[str, Any]:
    """The medians of both methods, and the time that CEPO takes in addition."""
    seconds = [(a["time/step_seconds"], b["time/step_seconds"]) for a, b in pairs]
    return {
        "ours": medians([a for a, _ in pairs], FIGURES),
        "alternative": medians([b for _, b in pairs], FIGURES),
        "overhead": round(statistics.median(a / b for a, b in seconds) - 1, 4),
        "seconds_more": round(statistics.median(a - b for a, b in seconds), 4),
        "sampled_the_same": all(a["tokens/generated"] == b["tokens/generated"] for a, b in pairs),
        "steps_of_each": len(pairs),
    }


def main() -> None:
    """Measures, prints the result and writes it to benchmarks/results/."""
    quick = "five steps of each method on-policy; takes a minute, half of it for starting"
    options = _report.arguments(__doc__, quick, _gpu.SHAPES).parse_args()
    with TemporaryDirectory() as folder:
        overrides = _gpu.overrides(Path(folder), options.gpu) if options.gpu else []
        lags, rounds, steps = ((0,), 1, 5) if options.quick else ((0, 1), 1 if options.gpu else 2, 6)
        pairs_of = measure(lags, rounds, steps, *overrides)
        cases = {f"lag {lag}": compared(pairs) for lag, pairs in pairs_of.items()}
        if options.gpu:
            for case in cases.values():
                for method, figures in (("cepo", case["ours"]), ("grpo", case["alternative"])):
                    figures |= _gpu.rates(tiny(method, *overrides), figures)
    on_policy = cases["lag 0"]
    _report.write(
        "step",
        options.gpu,
        ours=on_policy["ours"],
        alternative=on_policy["alternative"],
        ratio=1 / (1 + on_policy["overhead"]),
        aim=round(1 / AIM, 3),
        overhead_of_the_paper=round(PAPER - 1, 2),
        cases=cases,
        **_gpu.about(options.gpu),
    )


if __name__ == "__main__":
    main()
