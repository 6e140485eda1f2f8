"""`cepo check` on valid and invalid runs, as text and as JSON."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from redis import Redis
from rich.console import Console

import cepo.tiny
from cepo.cli import main
from cepo.cli.preflight.checks import CHECKS, run_checks
from cepo.cli.preflight.examples import FirstImages, example_prompts
from cepo.cli.preflight.preflight import Preflight
from cepo.cli.preflight.report import html_page, print_prompt
from cepo.cli.preflight.sizes import measure, shown
from cepo.errors import UserError
from cepo.model.forward import load_causal_lm
from cepo.prompts.renderer import Renderer
from cepo.run import file as runfile
from cepo.run.folder import RunDir
from cepo.tiny import vision
from cepo.tiny.figures import figures
from tests.helpers.factories import RUNS, make_config
from tests.helpers.processes import RedisServer

TINY = str(RUNS / "tiny_cepo.toml")
HALF_BLOCK = "\u2580"
GOOD = [{"question": f"{i} + 1 = ?", "answer": str(i + 1)} for i in range(4)]
UNGRADABLE = {"question": "What is a half?", "answer": "\\frac{1}{2"}


def written(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def checked(capsys: pytest.CaptureFixture[str], *settings: str, code: int = 0, words: tuple[str, ...] = ()) -> Any:
    """The output of `cepo check --json` for the tiny run with overridden keys."""
    changed = [word for setting in settings for word in ("--set", setting)]
    assert main(["check", TINY, "--json", *changed, *words]) == code
    return json.loads(capsys.readouterr().out)


def notes(reply: Any) -> list[str]:
    return [finding["text"] for finding in reply["findings"] if finding["state"] == "note"]


def test_a_good_run_passes_every_check_and_shows_three_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    reply = checked(capsys)
    assert reply["ok"] is True
    assert list(dict.fromkeys(finding["check"] for finding in reply["findings"])) == list(CHECKS)
    assert notes(reply) == []
    plain, right, wrong = reply["prompts"]
    renderer = Renderer(str(cepo.tiny.path()))
    assert all(len(renderer.tokenizer.encode(p["text"])) == p["tokens"] for p in reply["prompts"])
    assert right["text"].replace("\n" + right["hint"], "") == plain["text"]
    assert wrong["text"].replace(wrong["hint"], right["hint"]) == right["text"]
    assert wrong["hint"] != right["hint"]


def test_a_colocated_teacher_needs_no_weights_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    texts = {
        layout: next(
            f["text"] for f in checked(capsys, f"engine.teacher={layout}")["findings"] if f["check"] == "memory"
        )
        for layout in ("service", "colocated")
    }
    assert "weights 3 x" in texts["service"]
    assert "(rollout, teacher, trainer)" in texts["service"]
    assert "weights 2 x" in texts["colocated"]
    assert "(rollout, trainer)" in texts["colocated"]


def test_the_text_marks_the_hint_and_says_how_to_train(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", TINY, "--set", "data.eval=''"]) == 0
    said = capsys.readouterr().out
    assert ">>Here is a sample answer: 84<<" in said
    assert "note data     data.eval is empty: the run will not measure whether training helps" in said
    assert f"train with: cepo train {TINY} --set 'data.eval='" in said
    assert len(said.splitlines()) < 40


@pytest.mark.parametrize(
    ("setting", "check", "says"),
    [
        ("model.path=/no/model", "model", "model.path=/no/model: no config.json there"),
        ("model.max_length=2048", "model", "model.max_length=2048 is above the 1024 positions of "),
        ('lora.targets=["q_proj", "qkv"]', "adapter", "has no module qkv; choose from down_proj, gate_proj, k_proj"),
        ("checkpoint.keep=1000000000", "disk", "free space or give another --run-dir"),
        ("data.train=/no/such.jsonl", "data", "data.train=/no/such.jsonl: no such file"),
        ("data.question=text", "data", "row 0: no column 'text'; the columns are question, answer; name the right one"),
        ("loop.stepz=1", "config", "config key loop.stepz is unknown"),
    ],
)
def test_the_first_blocking_problem_is_named_with_its_fix(
    capsys: pytest.CaptureFixture[str], setting: str, check: str, says: str
) -> None:
    reply = checked(capsys, setting, code=2)
    assert reply["ok"] is False
    assert reply["error"]["check"] == check
    assert says in reply["error"]["text"]
    assert "\n" not in reply["error"]["text"]


@pytest.mark.parametrize(("size", "code"), [(4096, 0), (4097, 2)])
def test_whole_distributions_need_a_small_vocabulary(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, size: int, code: int
) -> None:
    shutil.copytree(cepo.tiny.path(), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": size}))
    full = 'algorithm={name="opsd", positive="answer", support="full"}'
    reply = checked(capsys, f"model.path={path.parent}", full, code=code)
    if code:
        assert reply["error"]["check"] == "model"
        refused = (
            'algorithm.support="full": the evidence of a group of 320 response tokens takes 10 MB with a vocabulary of'
        )
        assert reply["error"]["text"].startswith(f"{refused} 4097 tokens (at most 4096 and 268 MB can travel)")


def test_a_blocking_problem_in_text_is_one_line_of_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", TINY, "--set", "data.train=/no/such.jsonl"]) == 2
    said = capsys.readouterr()
    assert said.err == "cepo: data.train=/no/such.jsonl: no such file\n"
    assert said.out.endswith("FAIL data\n")


def test_a_row_that_cannot_be_graded_is_refused_or_dropped(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = written(tmp_path, *GOOD, UNGRADABLE)
    error = checked(capsys, f"data.train={path}", code=2)["error"]
    assert error["check"] == "answers"
    assert error["text"].startswith(f"data.train={path}, row 4: reference answer ")
    assert error["text"].endswith('; fix the row or set data.on_bad_row = "drop"')
    reply = checked(capsys, f"data.train={path}", "data.on_bad_row=drop")
    assert [len(rows) for rows in reply["dropped"].values()] == [1, 0]
    assert any("row 4: reference answer" in note for note in notes(reply))


def test_rows_that_cannot_be_graded_are_left_out_of_the_run_for_good(tmp_path: Path) -> None:
    config = make_config(f"data.train={written(tmp_path, *GOOD, UNGRADABLE)}", "data.on_bad_row=drop")
    preflight = Preflight(config, tmp_path)
    list(run_checks(preflight))
    folder = RunDir(tmp_path / "run")
    folder.create(config, resume=False, excluded=preflight.excluded)
    assert [problem.row for problem in preflight.train.problems] == [0, 1, 2, 3]
    assert list(folder.excluded_rows()["train"]) == [4]
    folder.create(config, resume=True, excluded={})
    assert list(folder.excluded_rows()["train"]) == [4]


def test_a_set_of_which_nothing_can_be_graded_is_refused(tmp_path: Path) -> None:
    config = make_config(f"data.train={written(tmp_path, UNGRADABLE)}", "data.on_bad_row=drop")
    with pytest.raises(UserError, match="is empty: no answer can be graded, the first because: "):
        list(run_checks(Preflight(config, tmp_path)))


def test_the_reward_is_tried_on_a_right_and_a_wrong_answer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "def brief(sample):\n    return -sample.tokens / 0\ndef one(sample):\n    return 1\n"
    )
    monkeypatch.chdir(tmp_path)
    data = f"data.train={written(tmp_path, *GOOD)}"
    reply = checked(capsys, data, "reward={accuracy=0.9, format=0.1}", 'reward.functions=["mine:one"]')
    said = {finding["check"]: finding["text"] for finding in reply["findings"]}
    assert said["reward"] == "a boxed right answer alone earns 2, a boxed wrong one 1.1"
    assert notes(checked(capsys, data, "reward.accuracy=0.0")) == [
        "a right answer earns no more than a wrong one: check [reward]"
    ]
    error = checked(capsys, data, 'reward.functions=["mine:brief"]', code=2)["error"]
    assert error == {
        "check": "reward",
        "text": "reward.functions: reward function mine:brief failed with ZeroDivisionError: division by zero; "
        "fix the function",
    }
    error = checked(capsys, data, 'reward.functions=["absent:f"]', code=2)["error"]
    assert "reward.functions: absent:f cannot be imported: ModuleNotFoundError" in error["text"]


def test_every_environment_begins_a_trajectory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    hostile, data = "tests.unit.rollout.hostile_environments", f"data.train={written(tmp_path, *GOOD)}"
    reply = checked(capsys, data, f"data.environment={hostile}:Echo")
    said = {finding["check"]: finding["text"] for finding in reply["findings"]}
    assert said["environment"] == f"{hostile}:Echo begins with row 0"
    error = checked(capsys, data, f"data.environment={hostile}:BadReset", code=2)["error"]
    assert error["check"] == "environment"
    assert error["text"].startswith(f"environment {hostile}:BadReset, row 0: ValueError: ")
    error = checked(capsys, data, "data.environment=absent:Game", code=2)["error"]
    assert "environment absent:Game cannot be imported: ModuleNotFoundError" in error["text"]


def test_repeated_questions_and_leaks_are_noted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = written(tmp_path, *GOOD, GOOD[1])
    assert notes(checked(capsys, f"data.train={path}", f"data.eval={path}")) == [
        "train: repeated questions: 1 (row 4 as row 1)",
        "eval: repeated questions: 1 (row 4 as row 1)",
        "held-out questions that are also trained on, which inflates accuracy/eval: 5 (eval row 0 is train row 0, "
        "eval row 1 is train row 4, eval row 2 is train row 2, and 2 more)",
    ]


def test_a_redis_is_asked_whether_it_answers(
    capsys: pytest.CaptureFixture[str], redis_server: RedisServer, free_port: Callable[[], int]
) -> None:
    reply = checked(capsys, words=("--redis", redis_server.url))
    assert reply["findings"][0]["text"].endswith(" answers")
    absent = f"127.0.0.1:{free_port()}/0"
    error = checked(capsys, words=("--redis", f"redis://:secret@{absent}"), code=2)["error"]
    assert f"Redis at {absent} does not answer" in error["text"]
    assert "secret" not in error["text"]
    with Redis.from_url(redis_server.url) as client:
        client.config_set("requirepass", "other")
    here = redis_server.url.removeprefix("redis://").removesuffix("/0")
    for refused in (f"redis://:secret@{here}/0", f"redis://{here}/0", f"redis://:other@{here}/99"):
        error = checked(capsys, words=("--redis", refused), code=2)["error"]
        assert f"Redis at {here}/" in error["text"]
        assert " rejected the connection" in error["text"]
        assert "fix the password or the database number in the address" in error["text"]
        assert "secret" not in error["text"]
    error = checked(capsys, words=("--redis", "http://here"), code=2)["error"]
    assert "write redis://[:password@]host:port/0" in error["text"]


@pytest.mark.parametrize(
    ("starts", "key", "refused"),
    [
        (("rollout", "verifier"), "tensor_parallel", True),
        (("rollout", "verifier"), "trainer_processes", False),
        (("trainer",), "trainer_processes", True),
        (("trainer",), "tensor_parallel", False),
        ((), "tensor_parallel", False),
    ],
)
def test_only_what_starts_here_must_find_its_gpus(
    starts: tuple[str, ...], key: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = {"is_available": True, "device_count": 1, "get_device_name": "GPU", "mem_get_info": (0, 2**30)}
    for name, value in machine.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    found = CHECKS["device"](Preflight(make_config("engine.device=cuda", f"engine.{key}=2"), tmp_path, starts=starts))
    if refused:
        with pytest.raises(UserError, match=rf"^engine.{key}=2: PyTorch sees 1 GPU\(s\) here; lower it$"):
            list(found)
    else:
        assert [state for state, _ in found] == ["ok"]


def test_a_model_is_counted_as_it_is_without_its_weights_being_read() -> None:
    found = measure(make_config("lora.rank=8"))
    real = load_causal_lm(str(cepo.tiny.path()), "float32", "cpu")
    assert found.parameters == sum(parameter.numel() for parameter in real.parameters())
    assert found.adapted_modules == 7 * 4
    per_layer = 2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 384)
    assert found.adapter_parameters == 8 * 4 * per_layer
    assert found.cache_numbers == 2 * 4 * 2 * 32
    assert found.cache_bytes == 4 * found.cache_numbers * 256 * 160
    assert found.positions == 1024


def test_bytes_are_shown_as_people_read_them() -> None:
    assert [shown(n) for n in (0, 999, 1500, 3_440_000_000, 2 * 10**13)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "3.44 GB",
        "20 TB",
    ]


def test_images_are_shown_with_their_tokens_in_all_three_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    run = str(RUNS / "tiny_vl_cepo.toml")
    assert main(["check", run, "--json"]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert any("figures_train.jsonl: 1024 images of 24 to 24 tokens" in found["text"] for found in reply["findings"])
    assert [prompt["context"] for prompt in reply["prompts"]] == ["plain", "r+", "r-"]
    renderer = Renderer(str(vision.path()))
    for prompt in reply["prompts"]:
        assert prompt["images"] == ["image/png, 96 x 64 pixels, 24 tokens"]
        assert prompt["text"].count("<|image_pad|>") == 1
        assert len(renderer.tokenizer.encode(prompt["text"])) + 23 == prompt["tokens"]
    assert main(["check", run, "--set", "data.limit=8", "--set", "data.eval=''"]) == 0
    said = capsys.readouterr().out
    assert said.count("image 1: image/png, 96 x 64 pixels, 24 tokens") == 1
    assert "<|vision_start|><|image_pad|><|vision_end|>Find x." in said
    assert HALF_BLOCK not in said


@pytest.fixture
def geo3k(tmp_path: Path) -> list[str]:
    """Options for the paper's run file on this machine: the tiny model, a Parquet file with Geo3k's columns."""
    features = datasets.Features(
        {
            "images": datasets.Sequence(datasets.Image()),
            "problem": datasets.Value("string"),
            "answer": datasets.Value("string"),
        }
    )
    drawn = islice(figures(0, held_out=False), 24)
    rows = [
        {"images": [{"bytes": f.png(), "path": None}], "problem": "<image>Find x.", "answer": str(f.problem.answer)}
        for f in drawn
    ]
    datasets.Dataset.from_list(rows, features).to_parquet(tmp_path / "geo3k.parquet")
    keys = {
        "model.path": vision.path(),
        "model.max_length": 160,
        "sampling.max_tokens": 48,
        "engine.device": "cpu",
        "data.train": tmp_path / "geo3k.parquet",
        "data.eval": "",
    }
    return [word for key, value in keys.items() for word in ("--set", f"{key}={value or repr('')}")]


def test_the_papers_run_shows_its_first_figure_in_a_terminal_and_on_a_page(
    geo3k: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    page = tmp_path / "page.html"
    assert main(["check", str(RUNS / "geo3k_cepo_2b.toml"), *geo3k, "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert "columns problem (text) and answer (text) (EasyR1's names), images in images" in said
    lines = [line.count(HALF_BLOCK) for line in said.splitlines() if HALF_BLOCK in line]
    assert (set(lines), len(lines)) == ({80}, 27)
    figure = next(figures(0, held_out=False)).png()
    text = page.read_text()
    assert f'<img src="data:image/png;base64,{base64.b64encode(figure).decode()}"' in text
    assert "image 1: image/png, 96 x 64 pixels, 24 tokens" in text
    assert text.count("&lt;|image_pad|&gt;") == 3
    assert re.findall("<mark>(.*)</mark>", text)[0].startswith("Here is a sample answer: ")
    missing = tmp_path / "absent" / "page.html"
    assert main(["check", str(RUNS / "geo3k_cepo_2b.toml"), *geo3k, "--html", str(missing)]) == 2
    fix = "give another path, or make this one usable"
    assert capsys.readouterr().err == f"cepo: --html {missing} cannot be written: No such file or directory; {fix}\n"


def test_the_published_run_shows_that_its_teacher_is_blind(
    geo3k: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(RUNS / "cepo-repo.toml"), *geo3k, "--json"]) == 0
    plain, *hinted = json.loads(capsys.readouterr().out)["prompts"]
    assert "<|image_pad|>" in plain["text"]
    assert [prompt["blind"] for prompt in (plain, *hinted)] == [False, True, True]
    for prompt in hinted:
        assert "<|vision_start|><|endoftext|><|vision_end|>Find x." in prompt["text"]
        assert prompt["tokens"] > plain["tokens"]


def test_a_blind_teacher_of_text_alone_is_worth_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--set", "data.limit=8", "--set", "data.eval=''"]
    assert main(["check", TINY, "--set", "algorithm.images=drop", *few]) == 0
    assert 'algorithm.images="drop" changes nothing: no row has an image' in capsys.readouterr().out


@pytest.mark.parametrize(("max_bytes", "kept"), [(2**20, True), (8, False)])
def test_the_data_set_is_read_once_for_the_checks_and_the_example(tmp_path: Path, max_bytes: int, kept: bool) -> None:
    """The file is removed before the example is shown. An image above the memory limit is described, not drawn."""
    first = next(figures(0, held_out=False)).png()
    uri = f"data:image/png;base64,{base64.b64encode(first).decode()}"
    path = written(tmp_path, {"question": "Find x.", "answer": "3", "images": [uri]})
    overrides = [f"data.train={path}", "data.eval=", "data.images=images"]
    store = FirstImages(max_bytes)
    preflight = Preflight(runfile.load(RUNS / "tiny_vl_cepo.toml", overrides), tmp_path, store=store)
    list(run_checks(preflight))
    Path(path).unlink()
    prompts, images = example_prompts(preflight), store.of(preflight)
    assert images == ([first] if kept else [])
    console = Console(width=100, highlight=False, color_system="truecolor", force_terminal=True, file=StringIO())
    print_prompt(console, prompts[0], images)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "image 1: image/png, 96 x 64 pixels" in said
    assert (HALF_BLOCK in said) is kept
    assert ("<img " in html_page("x", [], prompts, images)) is kept
