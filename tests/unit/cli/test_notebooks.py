"""`cepo.credit(...)` and what a notebook shows, by executing the notebooks of examples/ cell by cell."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cepo
from cepo.cli import main
from cepo.credit import CreditReply
from cepo.credit.display import SHOWN
from cepo.errors import UserError
from cepo.net.environment import child_environment
from tests.helpers.factories import RUNS
from tests.helpers.runs import make_run, make_status, write_groups

ROOT = RUNS.parents[1]
EXAMPLES = ROOT / "examples"
SUM = json.loads((ROOT / "docs" / "sum.json").read_text())


class Shown:
    """What the cells of a notebook showed."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.text = io.StringIO()


def executed(name: str) -> Shown:
    """Executes the cells of a notebook of examples/ in the current folder; a line that begins with `!` is a command."""
    cells = json.loads((EXAMPLES / name).read_text())["cells"]
    shown, names = Shown(), {"__name__": "__main__"}
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and source.startswith("!"):
            path = f"{Path(sys.executable).parent}:{child_environment({})['PATH']}"
            subprocess.run(source[1:], shell=True, check=True, env=child_environment({"PATH": path}), timeout=280)
        elif cell["cell_type"] == "code":
            body = ast.parse(source).body
            quiet = source.rstrip().endswith(";")
            last: Any = body.pop() if isinstance(body[-1], ast.Expr) and not quiet else None
            with contextlib.redirect_stdout(shown.text):
                exec(compile(ast.Module(body, []), name, "exec"), names)
                value = eval(compile(ast.Expression(last.value), name, "eval"), names) if last is not None else None
            if value is not None:
                shown.values.append(value)
    return shown


@pytest.fixture(scope="module", autouse=True)
def _no_windows() -> Iterator[None]:
    import matplotlib
    from matplotlib import pyplot

    before = matplotlib.get_backend()
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")
    pyplot.switch_backend(before)


@pytest.fixture(scope="module")
def credit_notebook() -> Shown:
    return executed("credit.ipynb")


@pytest.fixture(scope="module")
def reply(credit_notebook: Shown) -> CreditReply:
    return credit_notebook.values[0]


def test_the_credit_notebook_says_where_responses_were_decided(credit_notebook: Shown) -> None:
    reply, strongest = credit_notebook.values
    assert credit_notebook.text.getvalue().splitlines()[:3] == [
        "cepo credit of 3 responses, r+ 83",
        "  response 0: correct, decided at `83` in line 2",
        "  response 1: wrong, went wrong at `92` in line 2",
    ]
    assert repr(reply) == str(reply) == credit_notebook.text.getvalue().rstrip("\n")
    assert strongest.iloc[0].text in ("9", "2", "7", "8")
    assert list(strongest.delta.abs()) == sorted(strongest.delta.abs(), reverse=True)


def test_a_reply_in_this_process_is_that_of_the_command(reply: CreditReply, tmp_path: Path, capsys: Any) -> None:
    sent = {**SUM, "responses": SUM["responses"][:3], "method": "cepo", "compare": [{"method": "rlsd"}]}
    (tmp_path / "request.json").write_text(json.dumps(sent))
    assert main(["credit", str(tmp_path / "request.json")]) == 0
    assert CreditReply.model_validate_json(capsys.readouterr().out) == reply


def test_a_frame_has_a_row_for_each_token_under_each_method(reply: CreditReply) -> None:
    frame = reply.frame()
    assert len(frame) == 2 * sum(len(response.tokens) for response in reply.responses)
    assert set(frame.method) == {"cepo", "rlsd"}
    assert "".join(frame[(frame.method == "rlsd") & (frame.response == 1)].text) == reply.responses[1].text
    assert frame[frame.response == 0].outcome.unique() == ["correct"]


def test_a_plot_has_rlsd_above_cepo_and_the_whole_response(reply: CreditReply) -> None:
    axes = reply.plot(1)
    words = [text.get_text() for text in axes.texts]
    assert words.index("RLSD") < words.index("CEPO")
    assert "".join(words).count("131-39=92") == 2
    assert axes.get_title(loc="left").endswith("went wrong at `92` in line 2")
    alphas = [patch.get_facecolor()[3] for patch in axes.patches]
    assert max(alphas) == pytest.approx(0.75, abs=0.01)
    with pytest.raises(UserError, match="response=3: the reply has responses 0 to 2"):
        reply.plot(3)


def test_the_html_is_small_has_no_script_and_shows_markup_as_text(reply: CreditReply) -> None:
    html = reply._repr_html_()
    assert html.index("RLSD") < html.index("CEPO")
    assert "went wrong at `92` in line 2" in html
    assert len(html) < 8000
    hostile = reply.responses[0].model_copy(
        update={
            "text": "<script>",
            "tokens": [token.model_copy(update={"text": "<script>"}) for token in reply.responses[0].tokens],
        }
    )
    many = reply.model_copy(update={"responses": [hostile] * (SHOWN + 2), "compared": [], "positive": "<img src=x>"})
    assert "<script" not in many._repr_html_()
    assert "<img" not in many._repr_html_()
    assert "and 2 more; .frame() has all of them" in many._repr_html_()


def test_a_missing_library_is_named(reply: CreditReply, monkeypatch: pytest.MonkeyPatch) -> None:
    for call, library in ((reply.frame, "pandas"), (reply.plot, "matplotlib")):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(UserError, match=rf"needs {library}; install it with `pip install {library}`"):
            call()


async def test_a_call_inside_a_running_loop_works_and_refuses_in_our_words() -> None:
    """A notebook has an event loop in its own thread."""
    credit: Any = cepo.credit  # a module that can be called
    reply = credit("1 + 1 = ?", "\\boxed{2}", "2", method="rlsd")
    assert (reply.method.name, len(reply.responses)) == ("rlsd", 1)
    with pytest.raises(UserError, match="did you mean `negative`"):
        credit("1 + 1 = ?", "2", "2", negatve="3")
    with pytest.raises(UserError, match=r"adapter=absent: no adapter_config\.json"):
        credit("1 + 1 = ?", "2", "2", adapter="absent")


def test_a_script_without_a_guard_starts_killable_processes(tmp_path: Path) -> None:
    """A child that ran the script again would start children of its own, and so on."""
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio\nfrom multiprocessing.connection import Connection\n"
        "from cepo.service.killable import KillableProcess\nprint('started')\n"
        "async def main():\n    child = KillableProcess('child', Connection.send, 'ready')\n    await child.spawn()\n"
        "    await child.readable()\n    print(child.connection.recv())\nasyncio.run(main())\n"
    )
    environment = child_environment({"PYTHONPATH": str(ROOT)})
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.returncode) == ("started\nready\n", 0), done.stderr


def test_the_notebook_that_reads_a_run_reads_any_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs" / "first", 6)
    write_groups(run, 5)
    run.write_status(make_status(run, "done", 6))
    samples, tokens, reply = executed("reading_a_run.ipynb").values
    assert list(samples.outcome) == ["correct", "wrong"] * 2
    assert samples.question[0] == "20 + 30 = ? (step 5)"
    assert tokens.advantage.is_monotonic_increasing
    assert [response.grade.outcome for response in reply.responses] == ["correct", "wrong"]


@pytest.mark.nightly
def test_the_first_run_trains_and_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "examples"
    folder.mkdir()
    for room in ("cepo", "deploy"):
        (tmp_path / room).symlink_to(ROOT / room)
    monkeypatch.chdir(folder)
    steps, reply = executed("first_run.ipynb").values
    assert len(steps) == 3
    assert reply.policy.version == 1
    samples, *_ = executed("reading_a_run.ipynb").values
    assert len(samples) == 8


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_notebooks_are_committed_with_small_outputs_and_a_picture(path: Path) -> None:
    outputs = [output for cell in json.loads(path.read_text())["cells"] for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert path.stat().st_size < 150_000
