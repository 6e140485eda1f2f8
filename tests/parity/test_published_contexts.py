"""The teacher's inputs against those of the published code, with the real handler and a character tokenizer.

In the golden file `_` is padding and `$` the end of sequence. Padding at the start of a prompt replaces an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cepo.algo.methods.cepo import Cepo
from cepo.algo.methods.rlsd import Rlsd
from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import (
    Completion,
    FinishReason,
    Message,
    Outcome,
    Placement,
    PolicyRef,
    RolloutGroup,
    ScoredGroup,
    Verdict,
)
from cepo.prompts.renderer import Renderer
from cepo.run.file import load
from cepo.teaching.handler import Logps, Pair, Scored, make_handler
from cepo.teaching.published import boxed
from cepo.testing import ToyScorer
from tests.helpers.factories import RUNS, make_proof, make_task
from tests.parity.support import golden

GOLDEN = golden("teacher_context")
ROWS = GOLDEN["rows"]
GROUPS = ("q1", "q2", "q3", "q4")
SIGNS = ("pos", "neg")


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    """Returns a renderer with one token per character and a chat template that adds no text."""
    tokenizer = Tokenizer(models.WordLevel({chr(i): i for i in range(32, 127)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    folder = tmp_path_factory.mktemp("characters")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="$", clean_up_tokenization_spaces=False)
    fast.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    fast.save_pretrained(folder)
    return Renderer(str(folder))


class Recorder(ToyScorer):
    """A toy scorer that records its pairs. Every log-prob of a pair is minus the index of the pair in `pairs`."""

    async def score(self, pairs: Sequence[Pair], temperature: float, policy: PolicyRef) -> Scored[Logps]:
        self.pairs += pairs
        return Scored([(-float(self.pairs.index(pair)),) * len(pair.response_ids) for pair in pairs])


def group_of(uid: str, renderer: Renderer, algorithm: Cepo | Rlsd, hint: str) -> ScoredGroup:
    """Returns a group of the golden file with its verdicts."""
    rows = [row for row in ROWS if row["uid"] == uid]
    task = make_task(
        messages=(Message(role="user", content=uid),),
        reference_answer=rows[0]["ground_truth"],
        samples=len(rows),
        hint=hint,
        placement=Placement.ASSISTANT,
        asks=algorithm.asks,
    )
    completions, verdicts = [], []
    for row in rows:
        ids = renderer.tokenizer.encode(row["response"], add_special_tokens=False)
        text = row["response"].removesuffix("$")
        completions.append(
            Completion(
                token_ids=ids, logps=Float32Array.of((0.0,) * len(ids)), text=text, finish_reason=FinishReason.STOP
            )
        )
        answer = boxed(text) if boxed(text) != "None" else ""
        outcome = Outcome.CORRECT if row["score"] == 1 else Outcome.WRONG if answer else Outcome.UNPARSED
        accuracy = float(row["score"] == 1)
        verdicts.append(
            Verdict(outcome=outcome, reward=row["score"], accuracy=accuracy, extracted=answer, normalised=answer)
        )
    prompt = renderer.prompt_ids(task.messages)
    rollout = RolloutGroup(
        task=task, prompt_token_ids=Int32Array.of(prompt), completions=tuple(completions), proof=make_proof()
    )
    return ScoredGroup(rollout=rollout, verdicts=tuple(verdicts))


async def contexts(renderer: Renderer, algorithm: Cepo | Rlsd, hint: str = " {answer}") -> list[list[str | None]]:
    """Returns the scored texts: a row per response of the golden file, a text per ask; None if not applicable."""
    texts_of_rows: list[list[str | None]] = []
    for uid in GROUPS:
        scorer, group = Recorder(), group_of(uid, renderer, algorithm, hint)
        evidenced = await make_handler(scorer, renderer, 1000)(group)
        texts = [renderer.tokenizer.decode((*pair.context_ids, *pair.response_ids)) for pair in scorer.pairs]
        for i in range(len(group.verdicts)):
            rows = [evidence.rows[i] for evidence in evidenced.evidence]
            texts_of_rows.append([texts[-int(row.logps[0])] if row.applicable else None for row in rows])
    return texts_of_rows


def published(case: str, sign: str) -> list[str]:
    return [row[sign].strip("_") for row in GOLDEN["cepo"][case]]


def cepo_repo(**options: Any) -> Cepo:
    """Returns the algorithm of cepo-repo.toml with the given options changed."""
    algorithm = load(RUNS / "cepo-repo.toml").algorithm
    assert isinstance(algorithm, Cepo)
    return Cepo.model_validate(algorithm.model_dump() | options)


def test_the_preset_has_the_settings_of_the_published_script() -> None:
    config = load(RUNS / "cepo-repo.toml")
    algorithm = cepo_repo()
    assert (config.data.hint, config.data.placement) == (" {answer}", "assistant")
    assert (algorithm.eps_w, algorithm.lam, algorithm.decay_steps, algorithm.aggregation) == (
        0.2,
        0.5,
        25,
        "token-mean",
    )
    assert (algorithm.no_negative, algorithm.unparsed, algorithm.images) == ("grpo", "as_published", "drop")
    assert (config.lora.rank, config.lora.alpha, config.optim.schedule, config.optim.minibatches) == (
        16,
        64,
        "constant",
        2,
    )
    assert (config.model.max_length, config.sampling.max_tokens) == (2816, 2048)
    assert (config.reward.accuracy, config.reward.format, algorithm.dual_clip) == (0.9, 0.1, 3.0)


async def test_answers_are_appended_as_published_with_the_word_none(renderer: Renderer) -> None:
    texts = await contexts(renderer, cepo_repo())
    assert [row[0] for row in texts] == published("answer_only", "pos")
    negatives = published("answer_only", "neg")
    # Without a rejected rollout (q2) the published code scores the answer again, with delta 0; CEPO skips the pass.
    assert [row[1] for row in texts] == [*negatives[:4], None, None, *negatives[6:]]
    assert negatives[4:6] == published("answer_only", "pos")[4:6]
    assert texts[0][1] == "q1 Nonex\\boxed{7}$"


@pytest.mark.parametrize(
    ("case", "feedback", "tokens"),
    [
        ("cot_prefix_6", "peer_prefix", 6),
        ("cot_prefix_512_full", "peer_prefix", 512),
        ("cot_prefix_512_full", "peer_full", None),
        ("cot_suffix_6", "peer_suffix", 6),
    ],
)
async def test_peers_are_appended_as_published(
    renderer: Renderer, case: str, feedback: Any, tokens: int | None
) -> None:
    algorithm = cepo_repo(positive=feedback, negative=feedback, feedback_tokens=tokens, exclude_self=False)
    texts = await contexts(renderer, algorithm)
    assert [row[0] for row in texts] == published(case, "pos")
    negatives = published(case, "neg")
    assert [row[1] for row in texts] == [*negatives[:4], None, None, *negatives[6:]]


async def test_a_suffix_longer_than_the_response_is_all_of_it_where_the_published_one_is_empty(
    renderer: Renderer,
) -> None:
    algorithm = cepo_repo(positive="peer_suffix", negative="peer_suffix", feedback_tokens=15, exclude_self=False)
    texts = await contexts(renderer, algorithm)
    shorter = [0, 1, 2, 3, 8, 9]  # groups whose shown rollouts have fewer than 15 tokens
    assert published("cot_suffix_15", "pos")[0] == "q1x\\boxed{7}$"  # the published suffix is empty
    for at, sign in enumerate(SIGNS):
        full = published("cot_prefix_512_full", sign)
        assert [texts[i][at] for i in shorter] == [full[i] for i in shorter]
    assert [row[1] for row in texts[6:8]] == published("cot_suffix_15", "neg")[6:8]


async def test_a_peer_is_not_shown_to_itself_where_that_is_asked(renderer: Renderer) -> None:
    texts = await contexts(renderer, cepo_repo(positive="peer_full", negative="peer_full"))
    # The only correct response of its group has no peer to show, so the hint is the reference answer.
    assert texts[0][0] == "q1 7x\\boxed{7}$"
    assert texts[2][1] == "q1so \\boxed{9}$no box here$"
    assert texts[1] == ["q1x\\boxed{7}$so \\boxed{9}$", "q1no box here$so \\boxed{9}$"]


async def test_rlsd_has_the_answer_in_its_context_which_the_published_baseline_lacked(renderer: Renderer) -> None:
    texts = await contexts(renderer, Rlsd())
    repaired = [text.strip("_#") for text in GOLDEN["rlsd_if_answer_key_present"]]
    assert [row[0] for row in texts] == repaired
    for text, shipped, row in zip(repaired, GOLDEN["rlsd_as_shipped_no_answer_key"], ROWS, strict=True):
        assert shipped.strip("_#") == text.replace(f" {row['ground_truth']}", " ", 1)


async def test_without_the_published_choice_no_context_holds_the_word_none(renderer: Renderer) -> None:
    texts = await contexts(renderer, cepo_repo(unparsed="next_rejected"))
    assert [row[1] for row in texts[:4]] == [f"q1 9{row['response']}" for row in ROWS[:4]]
    assert [row[1] for row in texts[4:8]] == [None] * 4  # q2 is all correct; q3 has only an empty box


@pytest.mark.parametrize(("text", "content"), GOLDEN["extract_boxed_content"].items())
def test_the_box_is_read_as_the_published_code_reads_it(text: str, content: str) -> None:
    assert boxed(text) == content
