"""Rows of the shapes that TRL, verl and EasyR1 publish: read without configuration, or the key to set is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

import cepo.tiny
from cepo.data.problems import Problem, Problems, load_problems
from cepo.errors import UserError
from cepo.messages.hints import INSTRUCTION
from cepo.prompts.renderer import Renderer
from tests.helpers.factories import make_config
from tests.helpers.templates import renderer_of
from tests.helpers.vision import BLANK, MODEL as VISION_MODEL, RENDERER as VISION

QUESTION = "1 + 1 = ?"
USER = {"role": "user", "content": QUESTION}
SYSTEM = {"role": "system", "content": "Be brief."}
GOOD, BAD = {"role": "assistant", "content": "2"}, {"role": "assistant", "content": "3"}
SHARED = {"from": "human", "value": QUESTION}
SHARED_GOOD, SHARED_BAD = {"from": "gpt", "value": "2"}, {"from": "gpt", "value": "3"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}}

READ: dict[str, dict[str, Any]] = {
    "TRL prompt, solution": {"prompt": [USER], "solution": "$2$"},
    "TRL prompt, solution, as text": {"prompt": QUESTION, "solution": "So \\boxed{2}."},
    "TRL prompt, answer": {"prompt": QUESTION, "answer": "2"},
    "TRL problem, solution": {"problem": QUESTION, "solution": "\\boxed{2}", "messages": [USER, GOOD]},
    "NuminaMath": {"problem": QUESTION, "solution": "It is 2.", "answer": "2", "problem_type": "Algebra"},
    "verl": {
        "data_source": "openai/gsm8k",
        "prompt": [USER],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"split": "train", "index": 0, "answer": "1 + 1 = 2\n#### 2", "question": QUESTION},
    },
    "verl with a system turn": {"prompt": [SYSTEM, USER], "reward_model": {"style": "rule", "ground_truth": 2}},
    "EasyR1": {"images": [], "problem": QUESTION, "answer": "2"},
    "EasyR1 without images": {"images": None, "problem": QUESTION, "answer": "2"},
    "messages": {"messages": [SYSTEM, USER], "answer": "2"},
    "messages as JSON": {"prompt": json.dumps([USER]), "answer": 2.0},
    "ShareGPT": {"conversations": [SHARED], "answer": "2"},
    "ShareGPT with a system turn": {"conversations": [{"from": "system", "value": "Be brief."}, SHARED], "answer": "2"},
    "ShareGPT as JSON": {"conversations": json.dumps([SHARED]), "answer": "2"},
}
PAIRS: dict[str, dict[str, Any]] = {
    "TRL explicit": {"prompt": QUESTION, "chosen": "2", "rejected": "3"},
    "TRL explicit, conversational": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "TRL implicit, conversational": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "UltraFeedback": {"prompt": QUESTION, "chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 8.0},
    "ShareGPT": {"conversations": [SHARED], "chosen": SHARED_GOOD, "rejected": SHARED_BAD},
    "ShareGPT, implicit": {"chosen": [SHARED, SHARED_GOOD], "rejected": [SHARED, SHARED_BAD]},
}


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(str(cepo.tiny.path()))


def loaded(
    folder: Path, renderer: Renderer, rows: list[dict[str, Any]], *overrides: str, kind: str = "jsonl"
) -> Problems:
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_problems(make_config(f"data.train={path}", *overrides), renderer)


def only(folder: Path, renderer: Renderer, row: dict[str, Any], *overrides: str, kind: str = "jsonl") -> Problem:
    (problem,) = loaded(folder, renderer, [row], *overrides, kind=kind).problems
    return problem


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", READ)
def test_a_published_shape_is_read_without_configuration(
    tmp_path: Path, renderer: Renderer, name: str, kind: str
) -> None:
    problem = only(tmp_path, renderer, READ[name], kind=kind)
    assert problem.answer.removesuffix(".0").strip("$") == "2"
    assert problem.messages[-1].content == f"{QUESTION}\n{INSTRUCTION}"
    assert all(message.extra == "" for message in problem.messages)


@pytest.mark.parametrize(
    "row",
    [
        {"images": [{"bytes": BLANK.data, "path": None}], "problem": "<image>Find x.", "answer": "2"},
        {
            "data_source": "hiyouga/geometry3k",
            "prompt": [{"role": "user", "content": "<image>Find x."}],
            "images": [{"bytes": BLANK.data}],
            "reward_model": {"style": "rule", "ground_truth": "2"},
        },
        {
            "prompt": [
                {
                    "role": "user",
                    "content": [{"type": "image", "text": None}, {"type": "text", "text": "Find x."}],
                }
            ],
            "image": {"bytes": BLANK.data, "path": None},
            "solution": "2",
        },
    ],
    ids=["EasyR1", "verl", "TRL"],
)
def test_published_rows_with_images_are_read(tmp_path: Path, row: dict[str, Any]) -> None:
    problem = only(tmp_path, VISION, row, "model.max_length=400", f"model.path={VISION_MODEL}", kind="parquet")
    assert (problem.images, problem.answer) == ((BLANK.ref,), "2")
    assert problem.messages[-1].content == f"<image>Find x.\n{INSTRUCTION}"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_published_pair_is_read_without_configuration(
    tmp_path: Path, renderer: Renderer, name: str, kind: str
) -> None:
    problem = only(tmp_path, renderer, PAIRS[name], "algorithm={name='dpo'}", "data.instruction=''", kind=kind)
    assert (problem.answer, problem.rejected) == ("2", "3")
    assert [(m.role, m.content) for m in problem.messages] == [("user", QUESTION)]


@pytest.mark.parametrize(
    ("row", "algorithm", "says"),
    [
        ({"prompt": QUESTION}, "grpo", "no column 'answer'; the columns are prompt; name the right one in data.answer"),
        (
            {"prompt": QUESTION, "completion": "2"},
            "grpo",
            "no column 'answer'; the columns are prompt, completion; name the right one in data.answer",
        ),
        ({"text": QUESTION}, "grpo", "no column 'question'; the columns are text; name the right one in data.question"),
        (
            {"prompt": QUESTION, "completion": "2", "label": True},
            "dpo",
            "no column 'chosen'; the columns are prompt, completion, label; name the right one in data.answer",
        ),
        (
            {"chosen": "1 + 1 = 2", "rejected": "1 + 1 = 3"},
            "dpo",
            "no column 'question'; the columns are chosen, rejected; name the right one in data.question",
        ),
        (
            {"chosen": [USER, GOOD], "rejected": [SYSTEM, BAD]},
            "dpo",
            "columns 'chosen' and 'rejected' do not share the turns before their last; name the column of the question",
        ),
        (
            {"prompt": "9 + 1 = ?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            "dpo",
            "column 'chosen' holds turns before its last that are not those of the question",
        ),
        (
            {"prompt": [USER], "reward_model": {"ground_truth": {"target": 2, "numbers": [1, 1]}}},
            "grpo",
            "which is not an answer, name one of its columns in data.answer: target, numbers",
        ),
    ],
)
def test_an_ambiguous_shape_names_the_key_to_set(
    tmp_path: Path, renderer: Renderer, row: dict[str, Any], algorithm: str, says: str
) -> None:
    with pytest.raises(UserError) as refused:
        loaded(tmp_path, renderer, [row], f"algorithm={{name='{algorithm}'}}")
    assert says in str(refused.value)
    assert "row 0: " in str(refused.value)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_tool_turns_and_tools_are_rendered_by_a_template_that_has_them(tmp_path: Path, kind: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "1", "name": "add"},
    ]
    row = {"messages": turns, "tools": json.dumps([TOOL]), "answer": "2"}
    renderer = renderer_of(tmp_path / "model", "tools")
    problem = only(tmp_path, renderer, row, "model.max_length=400", kind=kind)
    assert [m.role for m in problem.messages] == ["user", "assistant", "tool"]
    assert problem.messages[0].content == f"{QUESTION}\n{INSTRUCTION}"
    text = renderer.tokenizer.decode(renderer.prompt_ids(problem.messages))
    assert '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><|im_end|>' in text
    assert '{"type": "function", "function": {"name": "add", "parameters"' in text
    assert "None" not in text
    with pytest.raises(UserError, match=r"row 0: the model's chat template drops the tool"):
        only(tmp_path, Renderer(str(cepo.tiny.path())), row, kind=kind)


def test_a_column_of_tools_that_are_no_functions_is_of_something_else(tmp_path: Path, renderer: Renderer) -> None:
    for tools in (["hammer"], "hammer", [{"kind": "saw"}], None, 3):
        row = {"question": QUESTION, "answer": "2", "tools": tools}
        assert only(tmp_path, renderer, row) == only(tmp_path, renderer, {"question": QUESTION, "answer": "2"})


def turn(**fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "1"}, {"role": "assistant", **fields}, USER]


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ([{"role": "user", "content": None}], "column 'question' holds the content None, which is not a text"),
        (turn(content=None), "column 'question', turn 1, holds the content None, which is not a text"),
        (turn(content={"a": 1}), "column 'question', turn 1, holds the content {'a': 1}, which is not a text"),
        (turn(content=3), "turn 1, holds the content 3, which is not a text"),
        (turn(), "turn 1, holds the content None"),
        ([SHARED, {"from": "function_call", "value": "{}"}, SHARED], "turn 1, holds a function_call; write it as"),
        ([SHARED, SHARED_GOOD], "does not end with a user's question"),
        ([{"role": None, "content": "1"}], "has the role None, which is not a text"),
        (turn(content="", tool_calls=[{"function": {}}]), "turn 1, holds a tool call without the function's name"),
        (turn(content="", tool_calls="add(1)"), "holds tool_calls that are no list of calls: 'add(1)'"),
        (
            turn(content="", tool_calls=[{"function": {"name": "add", "arguments": "1 + 1"}}]),
            "holds a tool call whose arguments are no JSON object",
        ),
        (turn(content="", function_call={"name": "add"}), "holds a function_call; write it as tool_calls"),
        (turn(content="", reasoning_content=[float("nan")]), "holds fields that are not JSON: Out of range float"),
        (
            [{"role": "user", "content": [{"type": "image"}]}],
            "has an image part and no column holds images; name it in",
        ),
        (
            [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]}],
            "holds an image itself; move it to a column of images (data.images)",
        ),
        ([{"role": "user", "content": [{"type": "video"}]}], "holds a part that is neither a text nor an image"),
        ([USER, {"role": "tool", "content": ""}, GOOD], "does not end with a user's question"),
        ("a \ud800 b", "column 'question' holds a lone surrogate (\\ud800) at character 2; remove it"),
        (turn(content="\udfff"), "column 'question', turn 1, holds a lone surrogate (\\udfff) at character 0"),
    ],
)
def test_a_question_that_is_not_text_is_refused_with_its_turn_or_dropped(
    tmp_path: Path, renderer: Renderer, question: Any, says: str
) -> None:
    rows = [{"question": QUESTION, "answer": "2"}, {"question": question, "answer": "2"}]
    with pytest.raises(UserError) as refused:
        loaded(tmp_path, renderer, rows)
    assert says in str(refused.value)
    assert "row 1: column 'question'" in str(refused.value)
    kept = loaded(tmp_path, renderer, rows, "data.on_bad_row=drop")
    assert (len(kept.problems), len(kept.dropped)) == (1, 1)


@pytest.mark.parametrize("answer", ["NaN", "Infinity", "-Infinity", '"2 \\ud83d"'])
def test_an_answer_that_is_no_number_or_no_text_is_refused(tmp_path: Path, renderer: Renderer, answer: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"question": "1", "answer": "2"}}\n{{"question": "1", "answer": {answer}}}\n')
    with pytest.raises(UserError, match=r"row 1: column 'answer' holds (-?nan|-?inf|a lone surrogate)"):
        load_problems(make_config(f"data.train={path}"), renderer)


def test_reasoning_is_kept_for_the_template(tmp_path: Path, renderer: Renderer) -> None:
    problem = only(tmp_path, renderer, {"question": turn(content="2", reasoning_content="1 + 1"), "answer": "2"})
    assert json.loads(problem.messages[1].extra) == {"reasoning_content": "1 + 1"}


@pytest.mark.parametrize(
    ("row", "key", "answer"),
    [
        ({"question": QUESTION, "a.b": "2"}, "a.b", "2"),
        ({"question": QUESTION, "a.b": {"c.d": [{"e": "3"}]}}, "a.b.c.d.0.e", "3"),
        ({"question": QUESTION, "a": {"b": "4"}, "a.b": "5"}, "a.b", "5"),
        ({"question": QUESTION, "a.b": {}, "a": {"b": {"c": "6"}}}, "a.b.c", "6"),
    ],
)
def test_column_names_may_have_dots(
    tmp_path: Path, renderer: Renderer, row: dict[str, Any], key: str, answer: str
) -> None:
    assert only(tmp_path, renderer, row, f"data.answer='{key}'").answer == answer


def test_an_answer_whose_tokens_are_those_of_another_is_refused(tmp_path: Path, renderer: Renderer) -> None:
    deaf = Renderer(str(cepo.tiny.path()))
    deaf.control.as_text = lambda text: (1,)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="row 0: column 'answer' holds '2', which has the same tokens as '3'"):
        only(tmp_path, deaf, {"question": QUESTION, "answer": "2"})
