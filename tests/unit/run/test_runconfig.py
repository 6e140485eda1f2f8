"""Run files: which files load, and the messages for files that are refused."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from cepo.algo.methods.rlsd import Rlsd
from cepo.algo.variants import ALGORITHMS, Grpo
from cepo.errors import UserError
from cepo.run.file import load
from cepo.run.folder import RunDir
from tests.helpers.factories import RUNS, make_config

MINIMAL = """
name = "r"
[model]
path = "org/model"
[data]
train = "org/data"
[algorithm]
name = "grpo"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_run_loads(path: Path) -> None:
    assert load(path).name == path.stem


def test_the_shipped_runs_cover_every_algorithm() -> None:
    assert {load(path).algorithm.name for path in RUNS.glob("*.toml")} == set(ALGORITHMS)


@pytest.mark.parametrize(
    ("settings", "cap"),
    [
        ((), None),
        (("loop.lag=1",), 2.0),
        (("loop.lag=2", "algorithm.name=dapo"), 2.0),
        (("loop.lag=1", "algorithm.name=sdpo"), 2.0),
        (("loop.lag=1", "algorithm.importance_cap=1.5"), 1.5),
        (("loop.lag=1", "algorithm.importance_cap=0.0"), 0.0),
        (("algorithm.importance_cap=3.0",), 3.0),
        (("loop.lag=1", "algorithm.old_logp=rollout"), None),  # the weights would all be 1
    ],
)
def test_importance_weights_are_truncated_where_rollouts_lag_unless_told_otherwise(
    tmp_path: Path, settings: Sequence[str], cap: float | None
) -> None:
    config = load(written(tmp_path, MINIMAL), settings)
    assert config.algorithm.model_dump()["importance_cap"] == cap
    run = RunDir(tmp_path / "run")
    run.create(config, resume=False)
    assert load(run.config) == config
    assert tomllib.loads(run.config.read_text())["algorithm"].get("importance_cap") == cap


def test_a_method_without_importance_weights_may_lag_too(tmp_path: Path) -> None:
    assert load(written(tmp_path, MINIMAL), ["algorithm.name=dpo", "loop.lag=1"]).algorithm.name == "dpo"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loop.stepz=3", "config key loop.stepz is unknown; known here: deterministic, lag, seed, steps"),
        ("loops.steps=3", "config key loops is unknown; known here: algorithm, checkpoint, data, "),
        ("loop.steps=many", "config key loop.steps='many': Input should be a valid integer"),
        ("loop.steps=0", "config key loop.steps=0: Input should be greater than or equal to 1"),
        ("loop=3", "config key loop=3: write a table, such as [loop]"),
        ("lora.targets=q_proj", "config key lora.targets='q_proj': Input should be a valid tuple"),
        ("optim.lr=inf", "config key optim.lr=inf: Input should be a finite number"),
        ("optim.lr=nan", "config key optim.lr=nan: Input should be "),
        ("algorithm.lam=1.5", "config key algorithm.lam=1.5: Input should be less than or equal to 1"),
        ("algorithm.lam=-0.1", "config key algorithm.lam=-0.1: Input should be greater than or equal to 0"),
        ("algorithm.lam=nan", "config key algorithm.lam=nan: Input should be "),
        ("algorithm.eps_w=1.0", "config key algorithm.eps_w=1.0: Input should be less than 1"),
        ("algorithm.eps_w=0.0", "config key algorithm.eps_w=0.0: Input should be greater than 0"),
        ("algorithm.name=sft", "config key algorithm.name='sft' is unknown; known: 'grpo', 'dr-grpo', "),
        ("algorithm.beta=1.0", "config key algorithm.beta is unknown; known here: advantage_eps, "),
        (
            "algorithm.ratio_max=3.0",
            "config key algorithm.ratio_max has no effect with estimator='grpo', surrogate='clip'",
        ),
        (
            "algorithm.surrogate=gspo",
            "config key algorithm.surrogate='gspo' spreads the credit of a token over its whole response, and cepo ",
        ),
        ('algorithm={name="reinforce++", surrogate="gspo"}', "config key algorithm.surrogate='gspo' spreads "),
        ('algorithm={name="vineppo", surrogate="gspo"}', "config key algorithm.surrogate='gspo' spreads "),
        ("algorithm.kl_coef=inf", "config key algorithm.kl_coef=inf: Input should be a finite number"),
        ('data.train=""', "config key data.train='': String should have at least 1 character"),
        (
            'algorithm={name="dr-grpo", advantage_eps=1e-4}',
            "config key algorithm.advantage_eps has no effect with advantage_scale='none', which divides by nothing",
        ),
        (
            "optim.warmup_steps=9",
            'config key optim.warmup_steps=9 has no effect with optim.schedule="constant"; set it to 0',
        ),
        (
            "reward.overlong_factor=2.0",
            "config key reward.overlong_factor=2.0 has no effect while reward.overlong_buffer is 0; set that too",
        ),
        (
            "reward.repetition_ngram=4",
            "config key reward.repetition_ngram=4 has no effect while reward.repetition is 0; ",
        ),
        ("lora.targets=[]", "config key lora.targets=[]: Tuple should have at least 1 item"),
        ("data.answer_kind=sums", "config key data.answer_kind: answer kind 'sums' is unknown; leave it empty or "),
        ('algorithm={name="prm"}', "config key algorithm.name='prm' needs a URL that scores steps in "),
        ("reward.scorer=http://127.0.0.1/", "config key reward.scorer has no effect: cepo uses no step rewards"),
        (
            'algorithm={name="ctdpo", estimator_steps=20}',
            "config key loop.steps=20 ends before the policy learns: ctdpo trains another model first; "
            "raise loop.steps, or lower the steps for that model in the algorithm section",
        ),
        ('algorithm={name="ppo", critic_warmup=20}', "config key loop.steps=20 ends before the policy learns: ppo "),
        ('algorithm={name="ctdpo", estimator_steps=0}', "config key algorithm.estimator_steps=0: Input should be "),
        ("reward.scorer=file:///x", "config key reward.scorer='file:///x'"),
        ("algorithm.kl_in=reward", "config key algorithm.kl_in has no effect while kl_coef is 0"),
        ('algorithm={name="grpo", lam=0.5}', "config key algorithm.lam is unknown; known here: advantage_eps, "),
        ('algorithm={name="rlsd", no_negative="grpo"}', "config key algorithm.no_negative is unknown; known here: "),
        ("algorithm={lam=0.5}", 'config key algorithm.name is missing; for example name = "cepo"'),
        ('model={dtype="float32"}', "config key model.path is missing"),
        ("model.dtype=float16", "config key model.dtype='float16': Input should be 'float32' or 'bfloat16'"),
        ('lora.targets=["q_proj", "lm_head"]', "config key lora.targets: leave out ['lm_head']; the engines ignore "),
        ("lora.rank=64", "config key lora.rank=64 is above engine.max_lora_rank=8; lower the rank or raise the limit"),
        (
            "sampling.max_tokens=160",
            "config key sampling.max_tokens=160 leaves no room for a prompt in model.max_length=160; "
            "lower the first or raise the second",
        ),
        (
            "optim.minibatches=3",
            "config key sampling.prompts=32 cannot be split into optim.minibatches=3 equal parts",
        ),
        ("data.hint=Look here", "config key data.hint='Look here' must contain {answer}, or every context is the same"),
        (
            "reward.overlong_buffer=49",
            "config key reward.overlong_buffer=49 is above sampling.max_tokens=48, the length at which it ends; lower ",
        ),
        ("reward.accuracy=-1.0", "config key reward.accuracy=-1.0: Input should be greater than or equal to 0"),
        ("reward.acuracy=1.0", "config key reward.acuracy is unknown; known here: accuracy, environment, format, "),
        (
            'reward.functions=["./mine.py"]',
            "config key reward.functions='./mine.py': write module:function, as in my_rewards:brief",
        ),
        ('reward.functions=["a:b", "a:b"]', "config key reward.functions=['a:b', 'a:b'] names a function twice; "),
        ("data.placement=end", "config key data.placement='end': Input should be 'user', 'assistant' or 'system'"),
        (
            "algorithm.positive=solution",
            "config key data.solution is missing: algorithm.name=cepo shows the reference solution; name its column",
        ),
        ("sampling.group_size=8", "config key sampling.group_size is unknown; write sampling.samples; known here: "),
        (
            "algorithm.tis_cap=2.0",
            "config key algorithm.tis_cap is unknown; write algorithm.importance_cap; known ",
        ),
        (
            "algorithm.wrong_hints=9",
            "config key algorithm.wrong_hints=9 is above sampling.samples=8, the answers of a group; lower it",
        ),
        (
            "algorithm.teacher.every=5",
            "config key algorithm.teacher.every is unknown; known here: actor_share, ema_rate, source, sync_every",
        ),
        ("algorithm.teacher.source=me", "config key algorithm.teacher.source='me': Input should be 'actor', "),
        ("algorithm.teacher.source=sync", 'config key algorithm.teacher.sync_every is missing: source = "sync" needs'),
        ("algorithm.positive=peer_prefix", "config key algorithm.feedback_tokens is missing: "),
        ("name=a b", "config key name='a b': String should match pattern"),
        ("loop.steps", "--set 'loop.steps': write key=value, for example --set loop.steps=10"),
        ("=3", "--set '=3': write key=value, for example --set loop.steps=10"),
        ("model.path.x=3", "--set 'model.path.x=3': path is not a section"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_key(override: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        make_config(override)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("engine.teacher=colocated", "engine.trainer_processes=2"),
            'config key engine.teacher="colocated" needs the whole base model in one process, and '
            'engine.trainer_processes=2 shards it; set engine.teacher="service" or engine.trainer_processes=1',
        ),
        (
            ("engine.device=cpu", "engine.tensor_parallel=2"),
            'config key engine.tensor_parallel=2 needs engine.device="cuda"; set it to 1',
        ),
    ],
)
def test_settings_of_engines_that_do_not_go_together_are_refused(overrides: Sequence[str], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        make_config(*overrides)
    assert str(refusal.value) == message


@pytest.mark.parametrize("section", ["name", "model", "data", "algorithm"])
def test_a_missing_section_is_named(tmp_path: Path, section: str) -> None:
    start = rf'{section} = "r"' if section == "name" else rf"\[{section}\]\n.*"
    with pytest.raises(UserError, match=f"^config key {section} is missing$"):
        load(written(tmp_path, re.sub(f"^{start}$", "", MINIMAL, count=1, flags=re.MULTILINE)))


@pytest.mark.parametrize("content", [b"name = ", b"steps: 3", b"name = '\xff\xfe'"], ids=["cut", "yaml", "bytes"])
def test_what_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"run file .*run\.toml is not TOML: "):
        load(path)


def test_a_file_that_is_not_there_is_named_with_an_example(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(UserError, match=rf"run file {path}: .*; give the path of a TOML file such as deploy/runs/"):
            load(path)


@pytest.mark.parametrize(
    ("overrides", "tokens"),
    [
        ([], 128),
        (["algorithm.negative=peer_full"], 128 + 48),
        (["algorithm.negative=peer_prefix", "algorithm.feedback_tokens=9"], 128 + 9),
        (["algorithm.positive=peer_suffix", "algorithm.feedback_tokens=900"], 128 + 48),
    ],
)
def test_the_teacher_has_room_for_what_a_context_shows(overrides: list[str], tokens: int) -> None:
    assert make_config(*overrides).hint_tokens == tokens


def test_files_are_relative_to_the_run_file_and_names_are_left_alone(tmp_path: Path) -> None:
    text = MINIMAL.replace("org/data", "../rows.jsonl") + '[telemetry]\nwandb_project = "./z"'
    config = load(written(tmp_path, text), [f"data.eval={tmp_path}/eval.jsonl"])
    assert config.data.train == str(tmp_path.parent / "rows.jsonl")
    assert config.data.eval == str(tmp_path / "eval.jsonl")
    assert config.model.path == "org/model"
    assert config.telemetry.wandb_project == "./z"


@pytest.mark.parametrize(
    ("overrides", "lr", "project"),
    [
        (["optim.lr=1e-3", "telemetry.wandb_project=mine"], 1e-3, "mine"),
        (["optim.lr = 1", 'telemetry.wandb_project = "a=b"'], 1.0, "a=b"),
        (["optim.lr=1e-3", "optim.lr=2e-3"], 2e-3, ""),
    ],
)
def test_overrides_are_toml_values_or_bare_words_and_the_last_wins(
    overrides: Sequence[str], lr: float, project: str
) -> None:
    config = make_config(*overrides)
    assert (config.optim.lr, config.telemetry.wandb_project) == (lr, project)


def test_an_override_may_name_a_section_the_file_leaves_out(tmp_path: Path) -> None:
    assert load(written(tmp_path, MINIMAL), ["loop.lag=2"]).max_loras == 4


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.toml")), ids=lambda path: path.name)
def test_the_resolved_config_of_a_run_folder_loads_back_equal(tmp_path: Path, path: Path) -> None:
    config = load(path, ["optim.max_grad_norm=2.0", 'data.hint="é {answer} \\"\\n"'])
    folder = RunDir(tmp_path / "run")
    folder.create(config, resume=False)
    assert load(folder.config) == config


def test_evaluations_come_every_so_many_steps_and_at_the_end() -> None:
    assert make_config("eval.every=10", "loop.steps=25").eval_steps == {9, 19, 24}
    assert make_config("data.eval=''").eval_steps == frozenset()


def run_files(folder: Path, **files: str) -> Path:
    """Writes run files into a folder and returns the path of the last file."""
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)
    return folder / f"{name}.toml"


BASE = """
name = "base"
[model]
path = "../model"
[data]
train = "./train.jsonl"
[algorithm]
name = "cepo"
eps_w = 0.4
[loop]
steps = 7
seed = 3
"""


def test_a_run_file_takes_what_it_does_not_say_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    run_files(tmp_path, base=BASE)
    child = run_files(
        tmp_path / "deeper", child='base = "../base.toml"\nname = "child"\n[loop]\nsteps = 9\n[algorithm]\nlam = 0.2\n'
    )
    config = load(child)
    assert (config.name, config.loop.steps, config.loop.seed) == ("child", 9, 3)
    assert config.algorithm.model_dump() | {"lam": 0.2, "eps_w": 0.4} == config.algorithm.model_dump()
    assert config.data.train == str(tmp_path / "train.jsonl")
    assert config.model.path == str(tmp_path.parent / "model")


def test_another_algorithm_takes_no_parameter_of_the_base(tmp_path: Path) -> None:
    child = run_files(tmp_path, base=BASE, child='base = "base.toml"\n[algorithm]\nname = "grpo"\n')
    assert load(child).algorithm.name == "grpo"


def test_an_override_of_the_algorithm_leaves_no_parameter_of_the_files(tmp_path: Path) -> None:
    base = run_files(tmp_path, base=BASE + "lag = 1\n")
    config = load(base, ["algorithm.clip_high=0.4", "algorithm.name=grpo", "loop.steps=8"])
    assert config.algorithm == Grpo(clip_high=0.4, importance_cap=2.0)
    assert (config.loop.steps, config.loop.seed) == (8, 3)
    again = load(base, ["algorithm.name=cepo", "algorithm.lam=0.2"]).algorithm  # the same one: nothing is lost
    assert again.model_dump() | {"lam": 0.2, "eps_w": 0.4} == again.model_dump()


def test_the_home_of_a_user_who_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config key data.train='~nobody-here/rows.jsonl': Could not determine home"):
        load(run_files(tmp_path, base=BASE), ["data.train=~nobody-here/rows.jsonl"])


def test_a_file_that_is_its_own_base_or_names_none_is_refused(tmp_path: Path) -> None:
    one = run_files(tmp_path, two='base = "one.toml"\n', one='base = "two.toml"\n')
    with pytest.raises(UserError, match="is its own base"):
        load(one)
    with pytest.raises(UserError, match="No such file"):
        load(run_files(tmp_path, child='base = "missing.toml"\n'))
    with pytest.raises(UserError, match="config key base=3"):
        load(run_files(tmp_path, child="base = 3\n"))


def test_paths_of_overrides_are_relative_to_where_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    base = run_files(tmp_path, base=BASE)
    monkeypatch.chdir(tmp_path / "here")
    assert load(base, ["data.train=./mine.jsonl"]).data.train == str(tmp_path / "here" / "mine.jsonl")


@pytest.mark.parametrize(
    ("name", "eps_w", "decay_steps", "sync_every", "student_logp", "first"),
    [
        ("rlsd-paper", 0.2, 50, 10, "old", 0.5),
        ("rlsd-official-script", 0.2, 60, 20, "current", 0.5 * 59 / 60),
        ("rlsd-cepo-table7", 0.5, 25, 50, "old", 0.5),
    ],
)
def test_the_three_settings_of_rlsd(
    name: str, eps_w: float, decay_steps: int, sync_every: int, student_logp: str, first: float
) -> None:
    config = load(RUNS / f"{name}.toml")
    rlsd = config.algorithm
    assert isinstance(rlsd, Rlsd)
    assert (rlsd.eps_w, rlsd.decay_steps, rlsd.student_logp) == (eps_w, decay_steps, student_logp)
    assert (rlsd.teacher.source, rlsd.teacher.sync_every) == ("sync", sync_every)
    assert rlsd.lam_at(0) == pytest.approx(first)
    assert "Reference solution" in config.data.hint


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.toml")), ids=lambda path: path.name)
def test_no_shipped_run_ends_within_its_warm_up(path: Path) -> None:
    config = load(path)
    assert config.optim.schedule == "constant" or config.optim.warmup_steps < config.loop.steps


def test_dapos_run_has_the_settings_of_its_published_script() -> None:
    config = load(RUNS / "dapo.toml")
    assert (config.optim.warmup_steps, config.optim.weight_decay, config.sampling.samples) == (10, 0.1, 16)
    assert config.algorithm.model_dump() | {"dual_clip": 10.0, "max_tries": 10} == config.algorithm.model_dump()


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.toml")), ids=lambda path: path.name)
def test_a_shipped_run_that_shows_solutions_has_data_with_solutions(path: Path) -> None:
    config = load(path)
    assert not config.algorithm.shows_solution or config.data.train == "DigitalLearningGmbH/MATH-lighteval"
