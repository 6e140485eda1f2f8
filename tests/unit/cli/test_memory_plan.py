"""The plan of the GPU's memory: counts against real tensors, cards of each size, and what a refused run is told."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from cepo.cli import main
from cepo.cli.preflight import sizes
from cepo.cli.preflight.checks import CHECKS
from cepo.cli.preflight.machine_checks import kv_cache_bytes
from cepo.cli.preflight.memory_plan import GIB, GpuCard, fitting_settings, parse_gpu, plan_memory
from cepo.cli.preflight.preflight import Preflight
from cepo.errors import UserError
from cepo.model import head, lora, tree
from cepo.model.activations import pass_bytes
from cepo.model.linear import product
from cepo.run import file as runfile
from cepo.run.sections import LINEAR_LAYERS
from cepo.service import gpu
from cepo.service.gpu import GpuMemory
from tests.helpers.factories import RUNS, make_config

CONFIGS = Path(__file__).parents[2] / "helpers" / "model_configs"
DEFAULT = RUNS / "gsm8k_cepo.toml"
OF_1_7B = {(True, False): 42.92 / 16384, (True, True): 3.762 / 16384, (False, False): 1.642 / 32768}
"""GiB a token of a pass of Qwen3-1.7B, by training and checkpointing; the nightly test counts them."""


def count_1_7b(tokens: int, training: bool, checkpointing: bool) -> int:
    return int(tokens * OF_1_7B[training, checkpointing] * GIB)


def run_with(name: str, folder: Path, *overrides: str, file: Path = DEFAULT) -> sizes.Sizes:
    """The default run with a published configuration, whose weights are not there."""
    model = folder / name
    model.mkdir(exist_ok=True)
    shutil.copy(CONFIGS / f"{name}.json", model / "config.json")
    return sizes.measure(runfile.load(file, [f"model.path={model}", *overrides]))


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> sizes.Sizes:
    return run_with("Qwen3-1.7B", tmp_path_factory.mktemp("models"))


def with_keys(run: sizes.Sizes, *overrides: str, file: Path = DEFAULT) -> sizes.Sizes:
    return replace(run, config=runfile.load(file, [f"model.path={run.config.model.path}", *overrides]))


def small(name: str, **overrides: Any) -> Any:
    """A published configuration with three layers and a few hundred hidden numbers."""
    config = AutoConfig.from_pretrained(CONFIGS / f"{name}.json")
    text = config.get_text_config()
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "vocab_size": 2048, "head_dim": 64}
    for key, value in (wide | {"num_attention_heads": 4, "num_key_value_heads": 2} | overrides).items():
        setattr(text, key, value)
    if hasattr(config, "vision_config"):
        text.rope_parameters["mrope_section"] = [12, 10, 10]
        for key, value in {"depth": 1, "hidden_size": 64, "out_hidden_size": 256, "num_heads": 4}.items():
            setattr(config.vision_config, key, value)
        config.vision_config.deepstack_visual_indexes = [0]
    return config


@pytest.mark.parametrize(
    ("name", "overrides", "options"),
    [
        ("Qwen3-1.7B", {}, {}),
        ("Qwen3-1.7B", {}, {"checkpointing": True}),
        ("Qwen3-1.7B", {}, {"training": False}),
        ("Qwen3-4B", {"intermediate_size": 1024, "num_hidden_layers": 5}, {}),
        ("Qwen3-8B", {"hidden_size": 384, "num_key_value_heads": 4}, {"checkpointing": True}),
        ("Qwen3-VL-8B", {}, {}),
    ],
)
def test_counts_on_the_meta_device_are_those_of_real_tensors(
    name: str, overrides: dict[str, int], options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    for sizes_of_device in (head.TILES, tree.STEP, tree.STEPS):
        monkeypatch.setitem(sizes_of_device, "cpu", sizes_of_device["cuda"])
    config = small(name, **overrides)
    monkeypatch.setattr(lora, "product_float32", lambda one, other: product(one, other).float())  # as on a GPU
    counted, real = (
        pass_bytes(config, "bfloat16", LINEAR_LAYERS, 16, 200, device=device, **options) for device in ("meta", "cpu")
    )
    assert counted == pytest.approx(real, rel=0.05)
    assert counted > 2**20


@pytest.mark.nightly
@pytest.mark.parametrize("kind", OF_1_7B)
def test_the_counts_of_the_default_model_are_those_of_its_own_modules(kind: tuple[bool, bool]) -> None:
    config = AutoConfig.from_pretrained(CONFIGS / "Qwen3-1.7B.json")
    tokens = 16384 if kind[0] else 32768
    counted = pass_bytes(config, "bfloat16", LINEAR_LAYERS, 16, tokens, training=kind[0], checkpointing=kind[1])
    assert counted == pytest.approx(count_1_7b(tokens, *kind), rel=0.05)


@pytest.mark.parametrize(
    ("card", "fits"), [("24GB", False), ("48GB", True), ("80GB", True), ("141GB", True), ("3x24GB", True)]
)
def test_the_default_run_fits_cards_from_48_gb(default: sizes.Sizes, card: str, fits: bool) -> None:
    assert default.config.optim.gradient_checkpointing
    plan = plan_memory(default, parse_gpu(card), count_1_7b)
    assert (not plan.problem) is fits
    assert [each.process for each in plan.processes] == ["rollout", "teacher", "trainer"]


@pytest.mark.parametrize(
    ("card", "setting"),
    [
        ("24GB", "optim.gradient_checkpointing=true"),
        ("48GB", "optim.gradient_checkpointing=true"),
        ("80GB", "engine.gpu_memory_utilization=0.2"),
    ],
)
def test_without_checkpointing_the_default_run_is_refused_with_the_setting_that_fits(
    default: sizes.Sizes, card: str, setting: str
) -> None:
    run = with_keys(default, "optim.gradient_checkpointing=false")
    plan = plan_memory(run, parse_gpu(card), count_1_7b)
    assert "GiB together, more than one card of" in plan.problem
    settings = fitting_settings(run, parse_gpu(card), count_1_7b)
    assert settings[0] == setting
    assert not plan_memory(with_keys(run, *settings), parse_gpu(card), count_1_7b).problem


def test_a_card_that_nothing_fits_has_no_setting(default: sizes.Sizes) -> None:
    assert plan_memory(default, parse_gpu("8GB"), count_1_7b).problem
    assert fitting_settings(default, parse_gpu("8GB"), count_1_7b) == []


def test_a_share_that_holds_no_sequence_is_named(default: sizes.Sizes) -> None:
    run = with_keys(default, "engine.gpu_memory_utilization=0.05")
    assert plan_memory(run, parse_gpu("80GB"), count_1_7b).problem == (
        "engine.gpu_memory_utilization=0.05 of one card of 80 GB (74.5 GiB) leaves vLLM no KV cache for one sequence "
        "of model.max_length"
    )


def test_layouts_change_what_a_card_holds(default: sizes.Sizes) -> None:
    def parts(*overrides: str) -> dict[str, dict[str, int]]:
        planned = plan_memory(with_keys(default, *overrides), parse_gpu("80GB"), count_1_7b)
        return {each.process: each.parts for each in planned.processes}

    alone, colocated = parts(), parts("engine.teacher=colocated")
    assert colocated.keys() == {"rollout", "trainer"}
    assert colocated["trainer"]["adapters"] > alone["trainer"]["adapters"]
    assert parts("engine.tensor_parallel=2")["rollout"]["weights"] == alone["rollout"]["weights"] // 2
    shards = parts("engine.trainer_processes=4")["trainer"]["weights"]
    assert alone["trainer"]["weights"] / 4 < shards < alone["trainer"]["weights"] * 0.7
    assert parts("model.dtype=float32")["teacher"]["weights"] == 2 * alone["teacher"]["weights"]


@pytest.mark.parametrize("size", [24, 48, 80])
def test_the_run_file_of_each_card_fits_it(default: sizes.Sizes, size: int) -> None:
    run = with_keys(default, file=RUNS / f"gsm8k_cepo_{size}gb.toml")
    assert plan_memory(run, parse_gpu(f"{size}GB"), count_1_7b).problem == ""


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("model", "file", "card", "fits"),
    [
        ("Qwen3-VL-2B", "geo3k_cepo_2b", "24GB", False),
        ("Qwen3-VL-2B", "geo3k_cepo_2b_24gb", "24GB", True),
        ("Qwen3-VL-2B", "geo3k_cepo_2b", "48GB", True),
        ("Qwen3-VL-4B", "geo3k_cepo_4b", "48GB", False),
        ("Qwen3-VL-4B", "geo3k_cepo_4b_48gb", "48GB", True),
        ("Qwen3-VL-4B", "geo3k_cepo_4b", "80GB", True),
    ],
)
def test_the_runs_of_the_papers_models_fit_the_cards_of_their_files(
    model: str, file: str, card: str, fits: bool, tmp_path: Path
) -> None:
    run = run_with(model, tmp_path, file=RUNS / f"{file}.toml")
    assert (not plan_memory(run, parse_gpu(card), sizes.pass_counter(run)).problem) is fits


@pytest.mark.parametrize("text", ["24", "GB", "0GB", "0x24GB", "24TB", "big"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^--gpu '.*' is not the memory of a card; give 24GB, 80GB or 3x80GB$"):
        parse_gpu(text)


def test_sizes_of_cards_are_read() -> None:
    assert parse_gpu("24GB") == GpuCard(24 * 10**9)
    assert parse_gpu("3x79.6 GiB") == GpuCard(int(79.6 * 2**30), 3)


def test_the_plan_of_the_tiny_run_is_printed_and_its_exit_status_says_whether_it_fits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = [str(RUNS / "tiny_cepo.toml"), "--set", "engine.device=cuda"]
    assert main(["plan", *run, "--gpu", "24GB"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("plan for one card of 24 GB (22.4 GiB), in GiB:\n")
    assert out.endswith("adapters each, in /dev/shm by default\nit fits\n")
    assert main(["plan", *run, "--gpu", "1GB"]) == 1
    assert capsys.readouterr().err.startswith("it does not fit: ")
    assert main(["plan", *run, "--gpu", "big"]) == 2


@pytest.mark.parametrize(
    ("cards", "starts", "state"),
    [
        ([(80, 0)], (), "ok"),
        ([], (), "note"),
        ([(1, 0)], (), "refused"),
        ([(80, 79)], ("trainer",), "refused"),
        ([(80, 70)], ("trainer",), "ok"),
    ],
)
def test_the_check_compares_the_plan_with_the_card_it_finds(
    cards: list[tuple[int, int]], starts: tuple[str, ...], state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "memory", lambda: [GpuMemory(total * GIB, used * GIB) for total, used in cards])
    monkeypatch.setattr(sizes, "pass_counter", lambda run: lambda *kind: GIB // 4)
    run = Preflight(make_config("engine.device=cuda"), tmp_path, starts=starts)
    if state == "refused":
        with pytest.raises(UserError, match=r"GiB|no KV cache"):
            list(CHECKS["memory"](run))
        return
    findings = list(CHECKS["memory"](run))
    assert findings[-1][0] == state
    assert findings[0][1].startswith("plan for one card of ")
    assert findings[-1][1].startswith("the plan fits one card of ")


def test_checkpointing_and_256_sequences_are_the_default_on_cuda_alone() -> None:
    assert make_config("engine.device=cuda").optim.gradient_checkpointing
    assert not make_config("engine.device=cuda", "optim.gradient_checkpointing=false").optim.gradient_checkpointing
    assert not make_config("engine.device=cpu").optim.gradient_checkpointing
    devices = {device: runfile.load(DEFAULT, [f"engine.device={device}"]) for device in ("cpu", "cuda")}
    assert {device: config.engine.max_num_seqs for device, config in devices.items()} == {"cpu": 128, "cuda": 256}


@pytest.mark.parametrize(("file", "adapters"), [("gspo", 0), ("ppo", 1), ("ctdpo", 2)])
def test_models_that_a_method_trains_beside_the_policy_are_counted(
    default: sizes.Sizes, file: str, adapters: int
) -> None:
    """A critic is an adapter with a head, ctDPO has two adapters; each weight has 16 bytes with its gradient."""
    run = sizes.measure(runfile.load(RUNS / f"{file}.toml", [f"model.path={default.config.model.path}"]))
    assert run.auxiliary_parameters == pytest.approx(adapters * run.adapter_parameters, rel=0.01)
    (trainer,) = plan_memory(run, parse_gpu("80GB"), count_1_7b, ("trainer",)).processes
    assert trainer.parts["adapters"] == 12 * run.adapter_parameters + 16 * run.auxiliary_parameters


def test_a_whole_vocabulary_is_refused_with_the_bytes_of_a_group(
    default: sizes.Sizes, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--set", f"model.path={default.config.model.path}"]
    assert main(["plan", str(RUNS / "opsd-official.toml"), *model, "--gpu", "141GB"]) == 2
    refused = capsys.readouterr().err
    assert (
        "the evidence of a group of 8192 response tokens takes 9,957 MB with a vocabulary of 151936 tokens" in refused
    )
    assert 'set algorithm.support = "teacher_topk"' in refused
    run = sizes.measure(runfile.load(RUNS / "opsd-official-top50.toml", model[1:]))
    plan = plan_memory(run, parse_gpu("80GB"), count_1_7b)
    assert "the evidence of a group takes up to 3.28 MB in Redis" in list(plan.lines())


def test_the_planned_cache_does_not_depend_on_what_others_have_loaded(
    default: sizes.Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan_memory(default, parse_gpu("80GB"), count_1_7b).processes[0].parts["KV cache"]
    for used in (0, 20 * GIB):
        monkeypatch.setattr(gpu, "memory", lambda used=used: [GpuMemory(80 * 10**9, used)])
        assert kv_cache_bytes(default.config) == planned > 20 * GIB
    monkeypatch.setattr(gpu, "memory", lambda: [GpuMemory(4 * 10**9, 0)])
    assert kv_cache_bytes(default.config) == 0
    monkeypatch.setattr(gpu, "memory", list)
    assert kv_cache_bytes(default.config) == 0


def test_a_card_of_its_own_can_be_filled(default: sizes.Sizes) -> None:
    hint = "vLLM takes 0.5 of a card of its own; engine.gpu_memory_utilization=0.85 is safe"
    assert hint in list(plan_memory(default, parse_gpu("3x80GB"), count_1_7b).lines())
    assert hint not in list(plan_memory(default, parse_gpu("80GB"), count_1_7b).lines())
