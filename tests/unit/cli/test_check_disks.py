"""Room for what a run and its engines write."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from cepo.cli.preflight import sizes
from cepo.cli.preflight.checks import CHECKS
from cepo.cli.preflight.preflight import Preflight
from cepo.errors import UserError
from cepo.run import file as runfile
from tests.helpers.factories import RUNS, make_config
from tests.unit.deploy.compose import CLEAR, read
from tests.unit.deploy.kustomize import K8S, render

CONFIGS = Path(__file__).parents[2] / "helpers" / "model_configs"


@pytest.mark.parametrize(
    ("starts", "engines"),
    [((), 2), (("rollout", "verifier", "teacher"), 2), (("rollout",), 1), (("trainer",), 0)],
)
def test_the_cache_of_adapters_has_room_for_those_of_every_engine_here(
    starts: tuple[str, ...], engines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEPO_ADAPTER_CACHE", str(tmp_path / "cache"))
    run = Preflight(make_config(), tmp_path / "run", "", starts=starts)
    one = (run.config.loop.lag + 3) * run.sizes.adapter_parameters * 4
    room = {"run": run.sizes.disk_bytes, "cache": engines * one}
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=min(room.values())))
    monkeypatch.setattr("cepo.cli.preflight.sizes.SPARE_BYTES", -run.sizes.disk_bytes)  # the run folder needs nothing
    assert len(list(CHECKS["disk"](run))) == 1 + (engines > 0)
    room["cache"] -= 1
    if engines:
        with pytest.raises(UserError, match=r" free and the engines \(rollout.*set CEPO_ADAPTER_CACHE to a folder"):
            list(CHECKS["disk"](run))


@pytest.mark.parametrize(("file", "model"), [("gsm8k_cepo.toml", "Qwen3-1.7B"), ("geo3k_cepo_4b.toml", "Qwen3-VL-4B")])
def test_shared_memory_of_containers_holds_the_adapters_of_an_engine(file: str, model: str, tmp_path: Path) -> None:
    shutil.copy(CONFIGS / f"{model}.json", tmp_path / "config.json")
    measured = sizes.measure(runfile.load(RUNS / file, [f"model.path={tmp_path}"]))
    size = re.fullmatch(r"(\d+)gb", read(CLEAR)["rollout"]["shm_size"])[1]
    assert measured.cached_bytes < int(size) * 10**9
    for item in render(K8S / "base"):
        for volume in item.get("spec", {}).get("template", {}).get("spec", {}).get("volumes", ()):
            if volume["name"] == "shm":
                assert measured.cached_bytes < int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30
