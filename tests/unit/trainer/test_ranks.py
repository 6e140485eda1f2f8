"""Two processes train the tiny model as a single process does: equal adapter, metrics and log-probs.

Cases run one after another in a single pair of processes, which gloo connects.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cepo.algo.batch import TrainBatch
from cepo.net.environment import child_environment
from cepo.net.torchrun import Place
from services.trainer.learning.batch import pack
from services.trainer.learning.learner import Learner
from services.trainer.learning.ranks import SINGLE, DistributedRanks, Ranks
from services.trainer.learning.splits import share
from tests.helpers.factories import make_config, make_ragged
from tests.helpers.vision import MODEL

SIZE, STEPS = 2, 2
UNEVEN = [(3, 9, 0, 5), (40, 31, 27, 22), (12, 1, 7, 2), (4, 4, 6, 8)]
ONE_GROUP = [(3, 9, 0, 5)]
PAIRS = [(3, 9), (40, 31), (12, 1), (8, 6), (7, 5)]
COMMON = ("optim.schedule=constant", "optim.lr=3e-4")
TIGHT = "optim.tokens_per_microbatch=70"
TWICE = ("optim.minibatches=2", "sampling.prompts=4")
CASES: dict[str, tuple[Sequence[tuple[int, ...]], Sequence[str]]] = {
    "tokens, uneven passes, layers recomputed": (
        UNEVEN,
        ["algorithm.aggregation=token-mean", TIGHT, "optim.gradient_checkpointing=true"],
    ),
    "sequences, two mini-batches": (UNEVEN, ["algorithm.aggregation=seq-mean-token-mean", TIGHT, *TWICE]),
    "constant, a rank with nothing to learn": (ONE_GROUP, ["algorithm.aggregation=dr-grpo"]),
    "a vision-language model": (UNEVEN, [f"model.path={MODEL}"]),
    "gspo": (UNEVEN, ['algorithm={name="gspo"}', TIGHT, *TWICE]),
    "rlsd": (UNEVEN, ['algorithm={name="rlsd"}']),
    "ctdpo, its models then the policy": (PAIRS, ['algorithm={name="ctdpo", estimator_steps=1}', TIGHT]),
    "ppo": (UNEVEN, ['algorithm={name="ppo", critic_lr=1e-2}', TIGHT, *TWICE]),
}
COUNTED = (
    "loss/policy",
    "grad_norm",
    "tokens/trained",
    "rollout/logp_gap",
    "entropy/sampled",
    "critic/loss",
    "estimator/loss_right",
)


def make_batch(lengths: Sequence[tuple[int, ...]], config: Any, step: int) -> TrainBatch:
    return pack(make_ragged(lengths, seed=step, asks=config.algorithm.asks, step=step))


def train(case: str, ranks: Ranks = SINGLE) -> dict[str, Any]:
    """Trains a few steps in a single process or as rank 0; returns the adapter, the metrics and canary log-probs."""
    lengths, overrides = CASES[case]
    config = make_config(*COMMON, *overrides)
    learner = Learner(config, ranks=ranks)
    reports = []
    for step in range(STEPS):
        adv_BT, report = learner.learn(make_batch(lengths, config, step), step)
        assert adv_BT.any() or config.algorithm.offline
        reports.append(report)
    canary_ids = list(range(10, 26))
    state = learner.state_dict()
    canaries = [learner.canary(canary_ids), learner.canary(canary_ids, base=True)]
    trained = {name: value.clone() for name, value in learner.adapter().items()}
    with learner.using_adapter({name: value / 2 for name, value in trained.items()}):
        canaries.append(learner.canary(canary_ids))
    learner.load_state_dict(state)
    canaries.append(learner.canary(canary_ids))
    return {"adapter": trained, "auxiliary": state["auxiliary"], "reports": reports, "canaries": canaries}


def main(out: Path) -> None:
    """Runs one of the two processes; rank 0 writes the results of every case."""
    torch.set_num_threads(1)
    place = Place.from_environment()
    assert place is not None
    ranks, results = DistributedRanks(place, f"file://{out}.ranks"), {}
    for number, (case, (_, overrides)) in enumerate(CASES.items()):
        if place.rank:
            assert ranks.serve(Learner(make_config(*COMMON, *overrides), ranks=ranks)) == number
        else:
            results[case] = train(case, ranks)
            ranks.close(number)
    if place.rank == 0:
        out.write_bytes(pickle.dumps(results))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of every case in two processes."""
    out = tmp_path_factory.mktemp("ranks") / "results"
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.unit.trainer.test_ranks", str(out)],
            env=child_environment({**Place(rank, rank, SIZE).to_environment(), "OMP_NUM_THREADS": "1"}),
        )
        for rank in range(SIZE)
    ]
    try:
        assert [process.wait(250) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    results: dict[str, Any] = pickle.loads(out.read_bytes())
    return results


@pytest.mark.parametrize("case", CASES)
def test_two_processes_make_the_adapter_of_one(shared: dict[str, Any], case: str) -> None:
    torch.set_num_threads(1)
    one, two = train(case), shared[case]
    start = Learner(make_config(*CASES[case][1])).adapter()
    assert max(float((one["adapter"][name] - start[name]).abs().max()) for name in start) > 1e-4
    for name, value in one["adapter"].items():
        torch.testing.assert_close(two["adapter"][name], value, rtol=0, atol=1e-5)
    for ours, theirs in zip(two["reports"], one["reports"], strict=True):
        assert ours.keys() == theirs.keys()
        for key in set(COUNTED) & set(theirs):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), key
    auxiliaries = [run["auxiliary"].get("model", {}) for run in (two, one)]
    for name, value in auxiliaries[1].items():
        torch.testing.assert_close(auxiliaries[0][name], value, rtol=0, atol=1e-4)
    for ours, theirs in zip(two["canaries"], one["canaries"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
    assert one["canaries"][0] == one["canaries"][3] != one["canaries"][2]


def test_ranks_share_whole_groups_by_tokens() -> None:
    batch = pack(make_ragged(UNEVEN))
    rows = [row for row in range(batch.size) if row != 5]
    shares = [share(batch, rows, rank, 3) for rank in range(3)]
    assert sorted(row for part in shares for row in part) == rows
    assert shares[0] == [4, 6, 7]  # the longest group
    assert [len({int(batch.group_B[row]) for row in part}) for part in shares] == [1, 2, 1]
    assert share(batch, rows, 0, 1) == rows
    assert share(batch, [], 1, 3) == []


if __name__ == "__main__":
    main(Path(sys.argv[1]))
