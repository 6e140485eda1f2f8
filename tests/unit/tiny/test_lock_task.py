"""The lock task: its problems and solutions, the roles of tokens, and where the shipped model's credit sits."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cepo.messages.hints import HINT
from cepo.tiny.lock import LockProblem, extremes, locks
from cepo.tiny.lock_demos import LockMixture, lock_demonstrations, solution
from cepo.tiny.lock_roles import ROLES, parse, roles, summary, wrong_decision
from cepo.tiny.task import DATA
from cepo.tiny.tokenizer import END, END_ID
from cepo.tiny.train_lock import RECIPE, path, tokenizer, train

PROBLEM = LockProblem("69024", ((2, "up 4"), (0, "down 1"), (3, "as least"), (1, "down 3"), (4, "up 4")))
RESPONSE = "Now roll D:69064\nAlso turn E:69068\nNext turn B:66068\nNow roll A:56068\nThen roll C:56468\n\\boxed{56468}"

torch.set_num_threads(1)


def test_a_problem_has_one_decision_and_its_answer_shows_every_turn() -> None:
    assert PROBLEM.question == "Lock 69024. C up 4, A down 1, D as least, B down 3, E up 4."
    assert PROBLEM.answer == "56408"
    assert PROBLEM.decision == 3
    assert PROBLEM.wrong_decisions == ("6", "9", "4")
    assert parse(PROBLEM.question) == PROBLEM


@pytest.mark.parametrize(("name", "seed", "held_out"), [("train", 0, False), ("eval", 1, True)])
def test_the_shipped_locks_are_what_the_task_writes(name: str, seed: int, held_out: bool) -> None:
    rows = [json.loads(line) for line in (DATA / f"lock_{name}.jsonl").read_text().splitlines()]
    drawn = islice(extremes(seed, held_out=held_out), len(rows))
    assert [(row["question"], row["answer"]) for row in rows] == [(each.question, each.answer) for each in drawn]


def test_a_wrong_decision_is_carried_to_the_answer_and_changes_no_other_digit() -> None:
    rng = random.Random(0)
    for problem in islice(locks(3, held_out=False), 100):
        decided = rng.choice(problem.wrong_decisions)
        response, answer = solution(problem, decided, rng)
        wrong = [dial for dial in range(5) if answer[dial] != problem.answer[dial]]
        assert wrong == [problem.decision]
        assert wrong_decision(problem, response)
        assert not wrong_decision(problem, solution(problem, problem.digits[problem.decision], rng)[0])


def test_hints_show_an_answer_or_a_whole_solution_and_mislead_in_the_given_share() -> None:
    for whole in (False, True):
        mixture = LockMixture(hinted=1.0, misled=0.25, whole=whole)
        demos = list(lock_demonstrations(islice(locks(0, held_out=False), 400), mixture, random.Random(0)))
        assert {demo.prompt.endswith("}") for demo in demos} == {whole}
        reached = [demo.response[-6:-1] for demo in demos]
        misled = [answer not in demo.prompt for answer, demo in zip(reached, demos, strict=True)]
        assert 0.2 < fmean(misled) < 0.3


def test_roles_follow_from_the_problem() -> None:
    tokens = tokenizer().convert_ids_to_tokens(tokenizer()(RESPONSE)["input_ids"])
    pieces = [token.replace("Ġ", " ").replace("Ċ", "\n") for token in tokens]
    assert "".join(pieces) == RESPONSE
    named = list(zip(pieces, roles(PROBLEM, pieces), strict=True))
    assert named[:10] == [
        ("Now", "words"), (" roll", "words"), (" D", "words"), (":", "words"),
        ("6", "copied"), ("9", "copied"), ("0", "copied"), ("6", "decision"), ("4", "copied"), ("\n", "words"),
    ]  # fmt: skip
    assert named[14:19] == [("6", "copied"), ("9", "copied"), ("0", "copied"), ("6", "carried"), ("8", "turn")]
    assert [role for _, role in named].count("answer") == 5


def test_the_summary_of_stored_rollouts_counts_wrong_decisions_alone(tmp_path: Path) -> None:
    tokens = [*RESPONSE, END]
    at = RESPONSE.index("69064") + 3
    plus, minus = [0.0] * len(tokens), [0.0] * len(tokens)
    plus[at], minus[-3] = -3.0, -1.0
    evidence = [{"logps": plus}, {"logps": minus}]
    right = RESPONSE.replace("69064", "69004").replace("6068", "6008").replace("56468", "56408")
    samples = [{"text": text, "tokens": tokens, "evidence": evidence} for text in (RESPONSE, right)]
    group = {"prompt": [{"role": "user", "content": PROBLEM.question}], "samples": samples}
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "step-000000.jsonl").write_text(json.dumps(group) + "\n")
    found = summary(tmp_path, 0)
    assert (found["responses"], found["blamed"]) == (1.0, 1.0)
    assert (found["decision share"], found["answer share"], found["decision mean"]) == (0.75, 0.25, 3.0)


@torch.no_grad()
def test_the_shipped_model_credits_the_step_that_errs() -> None:
    """On wrong responses, |delta| of CEPO is largest at the decision, and the last line has little of it."""
    tiny = AutoTokenizer.from_pretrained(path())
    model = AutoModelForCausalLM.from_pretrained(path(), dtype=torch.float32)
    rng = random.Random(0)
    sizes: dict[str, list[float]] = defaultdict(list)

    def prompt_ids(question: str, hint: str) -> list[int]:
        turns = [{"role": "user", "content": f"{question}\n{HINT.format(answer=hint)}"}]
        return tiny.encode(str(tiny.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)))

    def logps(prompt: list[int], response: list[int]) -> torch.Tensor:
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]

    for problem in islice(extremes(1, held_out=True), 24):
        response, answer = solution(problem, rng.choice(problem.wrong_decisions), rng)
        ids = [*tiny.encode(response), END_ID]
        right, rejected = (logps(prompt_ids(problem.question, hint), ids) for hint in (problem.answer, answer))
        named = roles(problem, [*(tiny.decode([token]) for token in ids[:-1]), END])
        for role, delta in zip(named, (right - rejected).tolist(), strict=True):
            sizes[role].append(delta)
    total = sum(abs(delta) for role in ROLES for delta in sizes[role])
    assert fmean(sizes["decision"]) < -1.0
    assert sum(map(abs, sizes["decision"])) > 0.5 * total
    assert sum(map(abs, sizes["answer"])) < 0.2 * total


def test_the_shipped_lock_model_and_its_tokenizer_are_small_and_ours() -> None:
    sizes = {file.name: file.stat().st_size for file in path().iterdir()}
    assert sum(sizes.values()) < 4_000_000
    assert tokenizer().get_vocab() == AutoTokenizer.from_pretrained(path()).get_vocab()


def test_the_lock_script_trains() -> None:
    recipe = replace(RECIPE, num_steps=4, batch_size=4, warmup_steps=1)
    once, again = (train(recipe, recipe, tokenizer()).state_dict() for _ in range(2))
    assert all(torch.equal(once[key], again[key]) for key in once)
