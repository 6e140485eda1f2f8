"""The groups of a run on disk: plain and compressed files, their bound, and the index that searches them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from cepo.run import rollouts
from cepo.run.lines import Row
from cepo.run.rollout_index import RolloutIndex, Search
from cepo.run.rollouts import Rollouts, complete
from tests.helpers.runs import make_sample


def group(number: int, at: int, text: str = "") -> Row:
    samples = [make_sample("50", "correct"), make_sample("60", "wrong") | ({"text": text} if text else {})]
    prompt = [{"role": "user", "content": f"20 + 30 = ? ({number})"}]
    return {"group": f"run/{number}/{at}", "prompt": prompt, "images": [], "answer": "50", "samples": samples}


def search(store: Rollouts, **query: Any) -> list[tuple[int, int, int]]:
    with RolloutIndex.reading(store.index_path) as index:
        count, rows = index.search(Search(**query), 0, 100)
    assert count == len(rows)
    return [(row["number"], row["at"], row["sample"]) for row in rows]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_group_is_read_alone_from_a_plain_and_a_compressed_file(
    tmp_path: Path, compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "PLAIN_BYTES", 0 if compressed else 10**9)
    store, groups = Rollouts(tmp_path), [group(3, at) for at in range(5)]
    store.write("train", 3, groups)
    path = tmp_path / f"step-000003.jsonl{'.gz' if compressed else ''}"
    data = gzip.decompress(path.read_bytes()) if compressed else path.read_bytes()
    assert [json.loads(line) for line in data.splitlines()] == groups
    assert store.groups("train", 3, 1, 2) == groups[1:3]
    assert (store.count("train", 3), store.count("train", 4)) == (5, 0)
    with RolloutIndex.reading(store.index_path) as index:
        places = [index.place("train", 3, at) for at in range(6)]
    assert [place and store.at("train", 3, place) for place in places] == [*groups, None]
    again = RolloutIndex.in_memory()
    complete(store, again)
    assert [again.place("train", 3, at) for at in range(6)] == places


def test_a_step_that_is_repeated_in_another_form_is_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Rollouts(tmp_path)
    store.write("train", 0, [group(0, 0), group(0, 1)])
    monkeypatch.setattr(rollouts, "PLAIN_BYTES", 0)
    store.write("train", 0, [group(0, 0)])
    assert [file.path.name for file in store.files()] == ["step-000000.jsonl.gz"]
    assert search(store) == [(0, 0, 0), (0, 0, 1)]


def test_the_oldest_training_groups_go_first_when_the_folder_is_full(tmp_path: Path) -> None:
    store = Rollouts(tmp_path)
    for number in range(4):
        store.write("train", number, [group(number, 0)])
        store.write("held-out", number, [group(number, 0)])
    store.bound(10**9)
    assert len(store.files()) == 8
    size = store.files()[0].path.stat().st_size
    store.bound(store.index_path.stat().st_size + 6.5 * size)
    left = [(file.source, file.number) for file in store.files()]
    assert left == [*(("held-out", n) for n in range(4)), ("train", 2), ("train", 3)]
    store.bound(1)
    assert [(file.source, file.number) for file in store.files()] == [("held-out", 3), ("train", 3)]
    assert search(store, source="train") == [(3, 0, 0), (3, 0, 1)]


def test_a_resumed_run_drops_what_it_repeats_and_indexes_what_an_older_release_wrote(tmp_path: Path) -> None:
    store = Rollouts(tmp_path)
    for number in range(4):
        store.write("train", number, [group(number, 0)])
        store.write("held-out", number, [group(number, 0)])
    store.index_path.unlink()
    store.truncate(2)
    assert search(store, source="train", outcome="wrong") == [(1, 0, 1), (0, 0, 1)]
    assert search(store, source="held-out", outcome="wrong") == [(2, 0, 1), (1, 0, 1), (0, 0, 1)]


def test_an_index_that_cannot_be_written_leaves_the_groups(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Rollouts(tmp_path)
    store.index_path.write_bytes(b"this is no database" * 100)
    store.write("train", 0, [group(0, 0)])
    assert store.count("train", 0) == 1
    assert "the dashboard makes its own" in caplog.text
    assert not store.index_path.exists()


def test_responses_are_found_by_text_outcome_reason_and_reward(tmp_path: Path) -> None:
    store = Rollouts(tmp_path)
    store.write("train", 0, [group(0, 0), group(0, 1, "sixty is 100% of_it")])
    store.write("held-out", 5, [group(5, 0)])
    assert search(store, text="SIXTY") == search(store, text="100% OF_it") == [(0, 1, 1)]
    assert search(store, text="100%of") == []
    assert len(search(store, text="20 + 30 = ? (5)")) == 2
    assert len(search(store, reason="differs from 50")) == len(search(store, highest=0.5)) == 3
    assert search(store, outcome="wrong", number=0, order="longest") == [(0, 0, 1), (0, 1, 1)]
    assert search(store, order="wrong")[:3] == [(5, 0, 1), (0, 0, 1), (0, 1, 1)]
    assert search(store, order="reward")[0][2] == 0
    with RolloutIndex.reading(store.index_path) as index:
        summary = index.summary()
    assert (summary["groups"], summary["responses"]) == (3, 6)
    assert summary["outcomes"] == {"correct": 3, "wrong": 3}
    assert summary["sources"] == {"train": 4, "held-out": 2}
    assert summary["reasons"] == {"differs from 50": 3}
