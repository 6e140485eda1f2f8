"""`cepo eval` with a toy engine: its measurements, its files and its error messages."""

from __future__ import annotations

import asyncio
import json
import xml.etree.ElementTree as ElementTree
from contextlib import aclosing
from pathlib import Path

import pytest

import cepo.tiny
from cepo.cli import main
from cepo.cli.evaluation.estimates import Estimate
from cepo.cli.evaluation.measuring import Plan, measure_on_bus
from cepo.cli.evaluation.plot import Line, pass_at_k_svg
from cepo.cli.evaluation.scores import ALL, MeasuredPolicy, as_data, sample_lines, scores
from cepo.data.problems import Problem, Problems
from cepo.errors import UserError
from cepo.messages.groups import BASE_POLICY, Message, Outcome, PolicyRef, Purpose, Sampling, Stage
from cepo.prompts.renderer import Renderer
from cepo.run.folder import RunDir
from cepo.service import adapters
from cepo.service.generator import SampledResponse
from cepo.service.stage import StageLoop
from cepo.testing import GenerateCall, MemoryBus, ToyGenerator
from services.rollout.handler import make_handler
from services.verifier.handler import Verifier
from services.verifier.pool import GraderPool
from tests.helpers.factories import POLICY, RUNS, make_config, make_evidenced, make_failed, make_task

RENDERER = Renderer(str(cepo.tiny.path()))
TINY = str(RUNS / "tiny_cepo.toml")


class SumGenerator(ToyGenerator):
    """The base is correct in every second sample; any other policy is always correct."""

    def __init__(self, tokenizer_sha256: str = RENDERER.sha256) -> None:
        super().__init__(RENDERER.tokenizer.encode, (), tokenizer_sha256=tokenizer_sha256)

    def respond(self, call: GenerateCall, index: int) -> SampledResponse:
        right = call.policy != BASE_POLICY or index % 2 == 0
        return self.response("\\boxed{7}" if right else "\\boxed{8}", call.sampling.max_tokens)


async def run_plan(generator: ToyGenerator, *settings: str, folders: dict[PolicyRef, Path]) -> list[MeasuredPolicy]:
    """Runs a plan on an in-memory bus, with the toy generator and the real verifier."""
    problems = Problems(
        tuple(Problem((Message(role="user", content=f"{a} + {7 - a} = ?"),), "7", a) for a in range(5)), ()
    )
    plan = Plan(make_config("eval.prompts=2", *settings), problems, folders, RENDERER.sha256, Path("unused"))
    bus, stop = MemoryBus(), asyncio.Event()
    async with GraderPool(1) as pool, asyncio.TaskGroup() as group:
        for stage, handler in (
            (Stage.ROLLOUT, make_handler(generator, RENDERER, 160)),
            (Stage.VERIFY, Verifier(pool).verify),
        ):
            group.create_task(StageLoop(bus, stage, handler).run(stop))
        try:
            async with aclosing(measure_on_bus(plan, bus, lambda policy: None)) as found:
                return [each async for each in found]
        finally:
            stop.set()


async def test_every_problem_is_sampled_with_every_policy_as_the_eval_section_says() -> None:
    generator = SumGenerator()
    settings = ("eval.samples=4", "eval.top_k=40", "eval.presence_penalty=2.0", "eval.temperature=0.9")
    base, trained = await run_plan(generator, *settings, folders={BASE_POLICY: Path(), POLICY: Path()})
    assert [each.policy for each in (base, trained)] == [BASE_POLICY, POLICY]
    assert len(generator.calls) == 10  # all five problems of two policies; eval.prompts has no effect
    wanted = Sampling(temperature=0.9, top_p=1.0, top_k=40, presence_penalty=2.0, max_tokens=48)
    assert {call.sampling for call in generator.calls} == {wanted}
    tasks = [group.task for group in base.finished]
    assert {(task.purpose, task.samples, task.route) for task in tasks} == {
        (Purpose.EVAL, 4, (Stage.ROLLOUT, Stage.VERIFY))
    }
    assert [task.seed for task in tasks] == [group.task.seed for group in trained.finished]
    assert [scores(each)[ALL].pass_at[1].value for each in (base, trained)] == [0.5, 1.0]
    assert [scores(each)[ALL].pass_at[2].value for each in (base, trained)] == [pytest.approx(5 / 6), 1.0]


async def test_an_engine_with_another_tokenizer_is_not_counted() -> None:
    message = "every group of base failed, the first because: toy has another tokenizer"
    with pytest.RaisesGroup(pytest.RaisesExc(UserError, match=message)):
        await run_plan(SumGenerator("ab" * 32), folders={BASE_POLICY: Path()})


def make_measured() -> MeasuredPolicy:
    """Three groups: a number with one of two samples correct, a choice with both correct, and a failed group."""
    number = make_evidenced([1.0, 0.0], make_task(index=0))
    choice = make_evidenced([1.0, 1.0], make_task(index=1, reference_answer="B"))
    problems = [Problem((Message(role="user", content="?"),), answer, row) for row, answer in enumerate("7B9")]
    return MeasuredPolicy(POLICY, problems, (number, choice, make_failed(make_task(index=2))), 1.5)


def test_scores_are_whole_and_by_kind_and_failed_groups_are_not_counted() -> None:
    found = as_data(make_measured())
    assert (found["version"], found["problems"], found["groups/failed"]) == (POLICY.version, 2, 1)
    assert found["pass@1"]["value"] == found["mean"]["value"] == 0.75
    assert found["pass@2"]["value"] == 1.0
    assert {name: kind["pass@1"]["value"] for name, kind in found["kinds"].items()} == {"number": 0.5, "choice": 1.0}
    assert found["outcomes"] == {"correct": 0.75, "wrong": 0.25}


def test_samples_are_kept_with_their_grades() -> None:
    rows = [json.loads(line) for line in sample_lines(make_measured())]
    assert [row["row"] for row in rows] == [0, 1, 2]
    assert [sample["outcome"] for sample in rows[0]["samples"]] == [Outcome.CORRECT.name.lower(), "wrong"]
    assert rows[2]["failed"] == "it broke"


def test_the_plot_is_a_picture_with_a_line_a_policy() -> None:
    lines = [Line("base", {1: Estimate(0.5, 0.4, 0.6), 2: Estimate(0.7)}), Line("v<3>", {1: Estimate(0.9, 0.8, 1.0)})]
    picture = ElementTree.fromstring(pass_at_k_svg("pass@k of a & b", "2 samples", lines))
    space = "{http://www.w3.org/2000/svg}"
    assert len(picture.findall(f"{space}polyline")) == 2
    texts = [text.text for text in picture.findall(f"{space}text")]
    assert {"pass@k of a & b", "2 samples", "base 70.0%", "v<3> 90.0%", "100%"} <= set(texts)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with two adapters."""
    folder = RunDir(tmp_path / "run")
    folder.create(make_config(), resume=False)
    for version in (1, 2):
        adapters.write(folder.adapters / f"v{version:06d}", dict.fromkeys(adapters.FILES, b"x" * version))
    return folder.path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["eval", TINY, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_mistakes_without_a_run_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "--policy latest needs the --run-dir" in refused(capsys, "--policy", "latest")
    assert "config key data.eval is empty" in refused(capsys, "--set", "data.eval=")
    assert "config key eval.samples=0" in refused(capsys, "--samples", "0")
    assert "config key eval.presence_penalty=3" in refused(capsys, "--set", "eval.presence_penalty=3.0")
    assert "--limit -1" in refused(capsys, "--limit", "-1")
    assert f"{tmp_path} exists; give another --out" in refused(capsys, "--out", str(tmp_path))
    assert "holds no run; train it first" in refused(capsys, "--run-dir", str(tmp_path))


def test_mistakes_with_a_run_folder(capsys: pytest.CaptureFixture[str], run_dir: Path) -> None:
    given = ("--run-dir", str(run_dir), "--set", "model.max_length=160", "--set", "lora.rank=8")
    assert "--policy 7: this run has base and 1 to 2 (latest)" in refused(capsys, *given, "--policy", "7")
    assert "--policy newest: this run has base and 1 to 2" in refused(capsys, *given, "--policy", "newest")
    assert "lora.rank=4 in" in refused(capsys, *given, "--set", "lora.rank=4")
    assert not (run_dir / "eval").exists()
