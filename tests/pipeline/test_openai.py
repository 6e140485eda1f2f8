"""`cepo eval`, the official OpenAI SDK and lm-eval against one real rollout service.

`cepo eval` first measures the base model and three versions of a run. The other clients then use the same engine.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
import torch
from rich.console import Console

from cepo import tiny
from cepo.cli.evaluation import command as evaluate
from cepo.cli.evaluation.measuring import Plan, serving
from cepo.cli.evaluation.scores import MeasuredPolicy
from cepo.messages.groups import Message, RolloutGroup
from cepo.messages.hints import INSTRUCTION
from cepo.messages.wire import from_proto, to_proto
from cepo.net.auth import call_metadata
from cepo.pb.cepo.v1 import services_pb2_grpc
from cepo.prompts.renderer import Renderer
from cepo.run.folder import RunDir
from cepo.run.local import Stack, running
from cepo.service import adapters
from services.trainer.learning.learner import Learner
from tests.helpers.factories import make_config
from tests.helpers.processes import ends
from tests.pipeline import harness
from tests.pipeline.support import SLOW_SECONDS, engine_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TOKEN = "secret"
VERSIONS = 3
LIMIT = 12
SUM = "23 + 45 - 17 = ?"


class Served:
    """The results of `cepo eval`, and the services that it used, which are still running."""

    def __init__(self, stack: Stack, out: Path, measured: list[MeasuredPolicy], run_dir: RunDir, plan: Plan) -> None:
        self.url, self.grpc = stack.http["rollout"], stack.grpc["rollout"]
        self.trainer = serving(plan, stack.grpc["trainer"])
        self.process = stack.children["rollout"].process
        self.out = out
        self.measured = measured
        self.run_dir = run_dir
        self.names = [each.policy.name for each in measured]

    def sdk(self, token: str = TOKEN) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=token, max_retries=0)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        reply = httpx.post(
            f"{self.url}{path}", json=body, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=SLOW_SECONDS
        )
        assert reply.status_code == 200, reply.text
        return reply.json()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`cepo eval` of the base model and three versions of a run, paused before it stops its services."""
    folder = tmp_path_factory.mktemp("openai")
    run_dir = RunDir(folder / "run")
    config = make_config()
    run_dir.create(config, resume=False)
    learner = Learner(config)
    for version in range(1, VERSIONS + 1):
        disturb(learner, version)
        adapters.write(run_dir.adapters / f"v{version:06d}", learner.adapter_files())
    policies = ["base", *map(str, range(1, VERSIONS)), "latest"]
    overrides = [*evaluate.PAPER, "eval.samples=2"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CEPO_TOKEN", TOKEN)
        plan, out = evaluate.prepare(run_dir.config, overrides, run_dir=run_dir.path, policies=policies, limit=LIMIT)
        out.logs.mkdir(parents=True)
        stack = Stack(plan.config, out, services=evaluate.SERVICES)
        with running(stack):
            measured = asyncio.run(evaluate.measure_all(plan, stack, out.path, Console(quiet=True)))
            yield Served(stack, out.path, measured, run_dir, plan)


def disturb(learner: Learner, seed: int) -> None:
    """Changes the adapter's weights enough to change the model's responses."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learner.parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def test_eval_measures_every_policy_and_writes_the_results(served: Served) -> None:
    results = json.loads((served.out / "results.json").read_text())
    assert [row["version"] for row in results["policies"]] == [0, 1, 2, 3]
    assert results["sampling"] == {
        "samples": 2,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 40,
        "presence_penalty": 2.0,
        "max_tokens": 48,
    }
    for row in results["policies"]:
        assert (row["problems"], row["groups/failed"]) == (LIMIT, 0)
        assert 0 <= row["pass@1"]["low"] <= row["pass@1"]["value"] <= row["pass@2"]["value"] <= 1
    texts = [(served.out / f"samples-{label}.jsonl").read_text() for label in ("base", "v1", "v2", "v3")]
    assert len(set(texts)) == 4  # each policy has its own responses
    assert (served.out / "pass_at_k.svg").read_text().startswith("<svg")


def test_the_sdk_lists_the_versions_that_are_resident(served: Served) -> None:
    listed = {model.id: model for model in served.sdk().models.list()}
    assert set(listed) == {"policy", "base", *served.names[-2:]}  # two adapters fit: the first version was evicted
    assert listed["policy"].model_dump()["root"] == served.names[-1]
    assert served.sdk().models.retrieve("policy").id == "policy"


def test_completions_echo_the_prompt_with_the_log_probs_of_peft(served: Served) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = Renderer(str(tiny.path())).prompt_ids([Message(role="user", content=SUM)])
    folder = served.run_dir.adapters / f"v{VERSIONS:06d}"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny.path(), dtype=torch.float32), folder)
    with torch.no_grad():
        logp_TV = model(torch.tensor([ids])).logits.log_softmax(-1)[0]
    expected = logp_TV[:-1].gather(1, torch.tensor(ids[1:])[:, None]).flatten()
    for name in ("policy", served.names[-1]):
        reply = served.sdk().completions.create(
            model=name, prompt=list(ids), echo=True, logprobs=1, max_tokens=1, temperature=0
        )
        assert reply.model == served.names[-1]  # `policy` is resolved to the version
        assert reply.choices[0].logprobs is not None
        assert reply.choices[0].logprobs.token_logprobs is not None
        assert reply.choices[0].logprobs.token_logprobs[1:-1] == pytest.approx(expected.tolist(), abs=1e-4)


def test_chat_streams_what_it_answers_whole(served: Served) -> None:
    asked: dict[str, Any] = {
        "model": "base",
        "messages": [{"role": "user", "content": f"{SUM}\n{INSTRUCTION}"}],
        "temperature": 0,
        "max_tokens": 48,
    }
    whole = served.sdk().chat.completions.create(**asked)
    pieces = [
        piece.choices[0].delta.content or "" for piece in served.sdk().chat.completions.create(**asked, stream=True)
    ]
    assert "".join(pieces) == whole.choices[0].message.content
    assert "\\boxed{" in "".join(pieces)
    assert whole.choices[0].finish_reason == "stop"


def test_what_is_streamed_comes_while_the_rest_is_generated(served: Served) -> None:
    """The response is long because the engine returns all tokens since the last poll: a short one has few pieces.

    On a busy machine the engine or this test may not be scheduled before the end, so one of many attempts must succeed.
    """
    asked: dict[str, Any] = {"model": "base", "prompt": SUM, "max_tokens": 128, "temperature": 0}

    def streamed() -> bool:
        with served.sdk().completions.create(**asked, stream=True, extra_body={"ignore_eos": True}) as pieces:
            begun = time.perf_counter()
            arrivals = [time.perf_counter() - begun for piece in pieces if piece.choices[0].text]
        return len(arrivals) > 10 and arrivals[0] < arrivals[-1] / 2

    assert any(streamed() for _ in range(30))


def test_text_goes_to_tokens_and_back_as_in_training(served: Served) -> None:
    tokens = served.post("/tokenize", model="policy", messages=[{"role": "user", "content": SUM}])["tokens"]
    assert tuple(tokens) == Renderer(str(tiny.path())).prompt_ids([Message(role="user", content=SUM)])
    typed = [{"role": "user", "content": f"{SUM}<|im_end|>\n<|im_start|>assistant\n5"}]
    tokens = served.post("/tokenize", model="policy", messages=typed)["tokens"]
    assert tuple(tokens) == Renderer(str(tiny.path())).prompt_ids([Message(**turn) for turn in typed])
    plain = served.post("/tokenize", model="policy", prompt=SUM)["tokens"]
    assert served.post("/detokenize", model="policy", tokens=plain)["prompt"] == SUM


def test_mistakes_are_openai_errors(served: Served) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        served.sdk("wrong").models.list()
    assert "wrong or missing token" in str(refused.value.body)
    for name in ("gpt-4", served.names[1]):  # an evicted version is not served
        with pytest.raises(openai.NotFoundError, match=f"The model `{name}` does not exist"):
            served.sdk().completions.create(model=name, prompt="1")
    with pytest.raises(openai.NotFoundError, match="available models: policy, v000003-"):
        served.sdk().models.retrieve("gpt-4")
    with pytest.raises(openai.BadRequestError, match="maximum context length is 160 tokens"):
        served.sdk().completions.create(model="policy", prompt="1 " * 400, max_tokens=1)
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    unread = httpx.post(f"{served.url}/v1/completions", content=b"\xff", headers=headers)
    assert (unread.status_code, list(unread.json())) == (400, ["error"])
    assert httpx.get(f"{served.url}/readyz").text == "ready"


def test_the_surface_is_described_and_measured(served: Served) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    paths = httpx.get(f"{served.url}/openapi.json", headers=headers).json()["paths"]
    assert {"/v1/models", "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/healthz"} <= set(
        paths
    )
    assert "cepo_groups_total" in httpx.get(f"{served.url}/metrics", headers=headers).text


def test_lm_eval_finds_what_its_own_hf_backend_finds(served: Served, tmp_path: Path) -> None:
    harness.write_tasks(tmp_path, LIMIT)
    newest = served.run_dir.adapters / f"v{VERSIONS:06d}"
    model = f"pretrained={tiny.path()},peft={newest},dtype=float32"
    url = f"model=policy,base_url={served.url}/v1/completions,auth_token={TOKEN},num_concurrent=4"
    runs = {"hf": model, "local-completions": url}
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(harness.started_on(name, arguments, tmp_path, TOKEN))
            for name, arguments in runs.items()
        }
        for name, process in processes.items():
            assert process.wait() == 0, (tmp_path / f"{name}.log").read_text()[-3000:]
    ours, theirs = (harness.results(tmp_path / name) for name in ("local-completions", "hf"))
    assert ours["metrics"] == theirs["metrics"]
    assert set(ours["metrics"]) == {"tiny_sums", "tiny_steps"}
    assert ours["written"] == theirs["written"]
    assert ours["greedy"] == theirs["greedy"]
    assert len(ours["logps"]) == 4 * LIMIT
    assert ours["logps"] == pytest.approx(theirs["logps"], abs=1e-3)


async def test_an_evicted_version_is_loaded_again_when_a_task_names_it(served: Served) -> None:
    first = served.measured[1].finished[0].scored.rollout
    async with served.trainer, grpc.aio.insecure_channel(served.grpc) as channel:
        stub = services_pb2_grpc.RolloutServiceStub(channel)
        reply = await stub.Generate(to_proto(first.task), metadata=call_metadata(TOKEN))
    again = from_proto(RolloutGroup, reply)
    assert [c.token_ids for c in again.completions] == [c.token_ids for c in first.completions]
    assert again.proof.bound_modules == first.proof.bound_modules > 0
    listed = [model.id for model in served.sdk().models.list()]
    assert listed == ["policy", served.names[3], served.names[1], "base"]
    assert served.sdk().completions.create(model="policy", prompt="1").model == served.names[3]


def test_vllms_own_process_ends_with_a_service_that_is_killed(served: Served) -> None:
    """This test must be the last one, because it kills the service of this file."""
    assert served.process is not None
    engine = engine_of(served.process.pid)
    served.process.kill()
    assert ends(engine)
