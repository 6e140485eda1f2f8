"""How the launcher supervises processes, tested with small processes."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from cepo.errors import UserError
from cepo.run.child import MAX_RESTARTS, Child, ServiceDown
from cepo.run.folder import RunDir
from cepo.run.local import KeptServices, Stack, running
from cepo.run.redis_watch import RedisWatch
from tests.helpers.factories import make_config
from tests.helpers.processes import ends
from tests.helpers.runs import make_run


def child(tmp_path: Path, code: str) -> Child:
    return Child("worker", [sys.executable, "-c", code], {"GREETING": "hello"}, tmp_path / "worker.log")


def ended(process: Child) -> Child:
    assert process.process is not None
    process.process.wait(100)
    return process


def test_a_process_gets_its_environment_and_its_output_is_kept(tmp_path: Path) -> None:
    process = child(tmp_path, "import os; print('one'); print(os.environ['GREETING'])")
    process.start()
    assert ended(process).check() == 0
    assert process.last_lines(1) == "hello"
    assert process.last_lines(2) == "one\nhello"


def test_a_process_that_died_is_started_again(tmp_path: Path) -> None:
    process = child(
        tmp_path,
        f"import pathlib, sys; p = pathlib.Path({str(tmp_path / 'been')!r}); "
        "sys.exit(0) if p.exists() else (p.touch(), sys.exit(7))",
    )
    process.start()
    assert ended(process).check() is None
    assert ended(process).check() == 0
    assert len(process.started) == 2


def test_a_users_mistake_ends_everything_with_its_last_line(tmp_path: Path) -> None:
    process = child(tmp_path, "import sys; print('noise'); print('cepo worker: the port is taken'); sys.exit(2)")
    process.start()
    with pytest.raises(UserError, match=r"^the port is taken$"):
        ended(process).check()


def test_a_process_that_keeps_dying_is_given_up_with_its_last_lines(tmp_path: Path) -> None:
    process = child(tmp_path, "import sys; print('out of memory'); sys.exit(1)")
    process.start()
    for _ in range(MAX_RESTARTS):
        assert ended(process).check() is None
    with pytest.raises(ServiceDown, match="out of memory"):
        ended(process).check()


def test_stopping_ends_a_process_that_does_not_listen_and_its_children(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    )
    process = child(tmp_path, code)
    process.start()
    while not process.last_lines(1):
        time.sleep(0.02)
    child_of_it = psutil.Process(int(process.last_lines(1)))
    process.stop(0.1)
    assert ends(child_of_it)


def test_services_get_the_users_token_and_addresses_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEPO_TOKEN", "secret")
    monkeypatch.setenv("CEPO_GRPC_PORT", "1")
    stack = Stack(make_config(), RunDir(tmp_path))
    environments = [stack.children[name].environment for name in ("rollout", "verifier", "teacher", "trainer")]
    assert {environment["CEPO_TOKEN"] for environment in environments} == {"secret"}
    ports = [e[key] for e in environments for key in ("CEPO_GRPC_PORT", "CEPO_HTTP_PORT")]
    assert len(set(ports)) == len(ports)
    assert "1" not in ports
    assert {e["CEPO_TRAINER_ADDRESS"] for e in environments} == {stack.grpc["trainer"]}


def test_a_colocated_teacher_is_no_process(tmp_path: Path) -> None:
    stack = Stack(make_config("engine.teacher=colocated"), RunDir(tmp_path))
    assert set(stack.children) == {"redis", "rollout", "verifier", "trainer"}
    assert set(stack.grpc) == set(stack.http) == {"rollout", "verifier", "trainer"}


def test_kept_services_get_a_new_trainer_for_each_run_and_give_way_to_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, str]] = []
    stopped: list[str] = []

    def start(child: Child) -> None:
        started.append((child.name, child.command[-1]))
        child.started.append(time.monotonic())

    monkeypatch.setattr(Child, "start", start)
    monkeypatch.setattr(Child, "stop", lambda child, grace: stopped.append(child.name))
    monkeypatch.setattr(Stack, "_await_redis", lambda stack: None)
    kept = KeptServices(tmp_path / "services")
    config, other = make_config(), make_config("engine.max_num_seqs=7")
    runs = [make_run(tmp_path / name) for name in ("one", "two", "three")]
    assert not kept.keeps(config)
    with kept.running(kept.stack(config, runs[0])) as first:
        assert [name for name, _ in started] == ["redis", "rollout", "verifier", "teacher", "trainer"]
        assert first.children["rollout"].log == tmp_path / "services" / "logs" / "rollout.log"
        assert first.children["trainer"].log == runs[0].logs / "trainer.log"
    assert kept.keeps(make_config("algorithm.name=grpo"))
    assert not kept.keeps(other)
    with kept.running(kept.stack(config, runs[1])) as second:
        assert second is first
        assert started[5:] == [("trainer", str(runs[1].path))]
        assert json.loads((runs[1].path / "services.json").read_text())["grpc"] == first.grpc
    assert stopped == []
    third = kept.stack(other, runs[2])
    assert third is not first
    assert {*stopped} == {"redis", "rollout", "verifier", "teacher", "trainer"}
    with pytest.raises(KeyboardInterrupt), kept.running(third):
        raise KeyboardInterrupt
    assert len(stopped) == 10
    assert not kept.keeps(other)


def test_the_verifier_alone_is_given_the_runs_reward_functions(tmp_path: Path) -> None:
    config = make_config('reward.functions=["mine:brief", "pkg.more:kind"]')
    stack = Stack(config, RunDir(tmp_path / "run"))
    given = {name: child.environment.get("CEPO_REWARD_FUNCTIONS") for name, child in stack.children.items()}
    assert given.pop("verifier") == "mine:brief,pkg.more:kind"
    assert set(given.values()) <= {"", None}


def test_the_rollout_service_alone_is_given_the_runs_environments(tmp_path: Path) -> None:
    sources = 'data.train=[{path="a", environment="http://127.0.0.1:9"}, {path="b", environment="verifiers:a-b"}]'
    stack = Stack(make_config("data.environment=mine:Game", sources), RunDir(tmp_path / "run"))
    given = {name: child.environment.get("CEPO_ENVIRONMENTS") for name, child in stack.children.items()}
    assert given.pop("rollout") == "mine:Game,http://127.0.0.1:9,verifiers:a-b"
    assert set(given.values()) <= {"", None}


def test_on_policy_the_trainer_has_every_core_and_the_others_half(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    half = str(max(1, cores // 2))
    for override, wanted in (("loop.lag=0", str(cores)), ("loop.lag=1", half), ("engine.teacher=colocated", half)):
        children = Stack(make_config("engine.device=cpu", override), RunDir(tmp_path)).children
        threads = {name: c.environment["OMP_NUM_THREADS"] for name, c in children.items() if name != "redis"}
        assert threads.pop("trainer") == wanted
        assert set(threads.values()) == {half}


FAILS = (
    "import sys; print('ValueError: this model is not supported'); print('RuntimeError: See root cause above'); "
    "sys.exit(1)"
)


def test_a_process_that_dies_twice_in_the_same_way_ends_the_run_with_its_own_error(tmp_path: Path) -> None:
    process = child(tmp_path, FAILS)
    process.start()
    assert ended(process).check() is None
    with pytest.raises(ServiceDown) as error:
        ended(process).check()
    assert str(error.value) == (
        f"worker died twice in the same way (exit 1): ValueError: this model is not supported; see {process.log}"
    )


def test_a_process_that_fails_while_the_run_is_drained_ends_it_at_once(tmp_path: Path) -> None:
    process = child(tmp_path, FAILS)
    process.start()
    with pytest.raises(
        ServiceDown, match=r"worker died .exit 1., so the step cannot be finished: ValueError: this model"
    ):
        ended(process).check(last_step=True)


def test_deaths_by_other_errors_and_kills_are_not_the_same_way(tmp_path: Path) -> None:
    code = (
        f"import os, pathlib, sys; p = pathlib.Path({str(tmp_path / 'lives')!r}); n = len(p.read_text()) if p.exists() "
        "else 0; p.write_text('x' * (n + 1)); n < 2 and (print(f'ValueError: {chr(65 + n)}'), sys.exit(1)); "
        "n < 4 and (print('ValueError: A', flush=True), os.kill(os.getpid(), 9))"
    )
    process = child(tmp_path, code)
    process.start()
    for _ in range(4):
        assert ended(process).check() is None
    assert ended(process).check() == 0
    assert process.causes == ["ValueError: A", "ValueError: B"]


def stack_of(folder: Path, **codes: str) -> Stack:
    """A stack whose services run these programs."""
    run = make_run(folder)
    stack = Stack(make_config(), run, redis_url="redis://127.0.0.1:1/0", services=())
    stack.children = {
        name: Child(name, [sys.executable, "-c", code], {}, run.logs / f"{name}.log") for name, code in codes.items()
    }
    stack._watch = Answering()
    return stack


class Answering(RedisWatch):
    """Says what the test says about Redis."""

    def __init__(self) -> None:
        super().__init__("")
        self.silent = self.just_back = False

    @property
    def was_silent(self) -> bool:
        return self.just_back

    def answers(self) -> bool:
        return not self.silent


def test_a_step_between_two_deaths_forgives_the_first(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, rollout=FAILS, trainer="import time; time.sleep(600)")
    rollout = stack.children["rollout"]
    for each in stack.children.values():
        each.start()
    try:
        ended(rollout)
        assert stack.check() is False
        stack.run.append({"step": 0})
        ended(rollout)
        assert stack.check() is False
        ended(rollout)
        with pytest.raises(ServiceDown, match="died twice in the same way"):
            stack.check()
    finally:
        stack.stop(0.0)


def test_a_drained_run_whose_service_fails_ends_within_seconds_though_its_trainer_waits(tmp_path: Path) -> None:
    waits = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    stack = stack_of(tmp_path, rollout=f"import time; time.sleep(0.5)\n{FAILS}", trainer=waits)
    for each in stack.children.values():
        each.start()
    stack.start = lambda: None  # type: ignore[method-assign]
    while not stack.children["trainer"].last_lines(1):
        time.sleep(0.02)
    begin = time.monotonic()

    def drained() -> None:
        with running(stack):
            stack.drain()
            while not stack.check():
                time.sleep(0.02)

    with pytest.raises(ServiceDown, match="so the step cannot be finished"):
        drained()
    assert time.monotonic() - begin < 10


def test_while_redis_is_silent_nothing_is_judged_and_afterwards_all_are_restarted(tmp_path: Path) -> None:
    unreachable = "import sys; print('cepo verifier: Redis at 127.0.0.1:1 does not answer'); sys.exit(2)"
    stack = stack_of(tmp_path, verifier=unreachable, trainer="import time; time.sleep(600)")
    verifier, watch = stack.children["verifier"], stack._watch
    assert isinstance(watch, Answering)
    for each in stack.children.values():
        each.start()
    try:
        watch.silent = True
        ended(verifier)
        assert stack.check() is False
        assert len(verifier.started) == 1
        watch.silent, watch.just_back = False, True
        verifier.command = [sys.executable, "-c", "import time; time.sleep(600)"]
        assert stack.check() is False
        assert (len(verifier.started), verifier.code, verifier.causes) == (2, None, [])
    finally:
        stack.stop(0.0)
