"""Adapter versions: publishing, checking proofs, and streaming to a gRPC client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from cepo.errors import PolicyError, Unreachable
from cepo.messages.groups import BASE_POLICY, PolicyProof
from cepo.messages.wire import to_proto
from cepo.model.forward import response_logps
from cepo.net.auth import TokenInterceptor, Tokens, call_metadata
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2_grpc
from cepo.prompts.renderer import Renderer
from cepo.service import adapters
from cepo.service.adapters import CHUNK_BYTES, fetch_adapter
from cepo.testing import MemoryBus
from services.trainer.learning.batch import pack
from services.trainer.learning.learner import Learner
from services.trainer.publisher import Expected, Publisher
from tests.helpers.factories import POLICY, make_config, make_ragged

torch.set_num_threads(1)
CONFIG = make_config("lora.rank=64", "engine.max_lora_rank=64")  # more than one chunk of bytes
RENDERER = Renderer(CONFIG.model.path)
TOKEN = "secret"


@pytest.fixture(scope="module")
def learner() -> Learner:
    return Learner(CONFIG)


def make_publisher(folder: Path, learner: Learner, bus: MemoryBus | None = None) -> Publisher:
    return Publisher(folder, learner, bus or MemoryBus(), RENDERER.canary_ids(16), RENDERER.sha256, CONFIG.model.dtype)


def train(learner: Learner, seed: int) -> None:
    batch = pack(make_ragged([(4, 6), (3, 5)], seed))
    learner.update(batch, CONFIG.algorithm.advantages(batch, 0).adv_BT, CONFIG.algorithm, 0)


def proof_of(learner: Learner, policy: object, **changes: object) -> PolicyProof:
    values = {
        "policy": policy,
        "bound_modules": 28,
        "canary_logp": 0.0,
        "canary_logps": learner.canary(RENDERER.canary_ids(16)),
        "tokenizer_sha256": RENDERER.sha256,
        "engine": "vllm",
    }
    return PolicyProof.model_validate(values | changes)


@asynccontextmanager
async def served(publisher: Publisher) -> AsyncIterator[str]:
    """Starts a gRPC server that requires the token; yields its address."""

    class Servicer(services_pb2_grpc.TrainerServiceServicer):
        FetchPolicy = staticmethod(publisher.stream)

    server = grpc.aio.server(interceptors=[TokenInterceptor(Tokens(TOKEN))])
    services_pb2_grpc.add_TrainerServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def test_every_published_folder_loads_in_stock_peft_with_the_learners_log_probs(tmp_path: Path) -> None:
    learner = Learner(CONFIG)
    publisher = make_publisher(tmp_path, learner)
    prompts, responses = [(5, 6, 7), (8, 9)], [(20, 21, 2), (30, 31, 32, 33)]
    seen = []
    for version in (1, 2, 3):
        train(learner, version)
        policy = await publisher.publish(version)
        with torch.no_grad():
            own_BT = response_logps(learner.peft.get_base_model(), prompts, responses, 1.0)
        seen.append((policy, own_BT))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v000001", "v000002", "v000003"]
    for policy, own_BT in seen:
        assert adapters.digest(adapters.read(publisher.folder(policy))) == policy.sha256
        base = AutoModelForCausalLM.from_pretrained(CONFIG.model.path, dtype=torch.float32)
        stock = PeftModel.from_pretrained(base, publisher.folder(policy)).eval()
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            with torch.no_grad():
                logits_SV = stock(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
            logp_TV = torch.log_softmax(logits_SV, dim=-1)[len(prompt) - 1 : -1]
            logp_T = logp_TV[torch.arange(len(response)), torch.tensor(response)]
            torch.testing.assert_close(logp_T, own_BT[i, : len(response)], rtol=0, atol=1e-5)
    assert (seen[0][1] - seen[2][1]).abs().max() > 1e-3


async def test_a_published_policy_is_announced(tmp_path: Path, learner: Learner) -> None:
    bus = MemoryBus()
    announcements = bus.announcements()
    first = asyncio.ensure_future(anext(announcements))
    await asyncio.sleep(0)
    policy = await make_publisher(tmp_path, learner, bus).publish(1)
    async with asyncio.timeout(60):
        assert await first == policy


async def test_the_same_weights_have_the_same_digest(tmp_path: Path, learner: Learner) -> None:
    publisher = make_publisher(tmp_path, learner)
    one, two = await publisher.publish(1), await publisher.publish(2)
    assert one.sha256 == two.sha256
    assert one.name != two.name


async def test_the_right_proof_is_accepted(tmp_path: Path, learner: Learner) -> None:
    publisher = make_publisher(tmp_path, learner)
    policy = await publisher.publish(1)
    assert publisher.check(proof_of(learner, policy)) is None
    near = [logp + 1e-4 for logp in learner.canary(RENDERER.canary_ids(16))]
    assert publisher.check(proof_of(learner, policy, canary_logps=near)) is None
    base = learner.canary(RENDERER.canary_ids(16), base=True)
    assert publisher.check(proof_of(learner, BASE_POLICY, bound_modules=0, canary_logps=base)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bound_modules": 27}, "vllm bound 27 of 28 modules of v000001"),
        ({"bound_modules": 0}, "vllm bound 0 of 28 modules of v000001"),
        ({"canary_logps": [-1000.0] * 15}, ": the log-probs of the canary differ by 9"),
        ({"canary_logps": [float("nan")] * 15}, ": the log-probs of the canary are not finite"),
        ({"canary_logps": [-1.0] * 14}, ": the engine scored 14 of 15 canary tokens: its longest "),
        ({"policy": POLICY}, f"vllm used {POLICY.name}, which this run did not publish"),
        ({"tokenizer_sha256": "ef" * 32}, "vllm has another tokenizer or chat template than the trainer"),
    ],
)
async def test_a_wrong_proof_is_refused(
    tmp_path: Path, learner: Learner, changes: dict[str, object], reason: str
) -> None:
    publisher = make_publisher(tmp_path, learner)
    policy = await publisher.publish(1)
    refusal = publisher.check(proof_of(learner, **{"policy": policy} | changes))
    assert refusal is not None
    assert refusal.startswith(reason) or (refusal.startswith(f"vllm under {policy.name}: ") and reason in refusal)


async def test_the_weights_of_one_step_ago_are_refused(tmp_path: Path) -> None:
    learner = Learner(CONFIG)
    publisher = make_publisher(tmp_path, learner)
    train(learner, 1)
    stale = proof_of(learner, await publisher.publish(1))
    train(learner, 2)
    policy = await publisher.publish(2)
    refusal = publisher.check(stale.model_copy(update={"policy": policy}))
    assert refusal is not None
    assert "the engine does not serve the weights that were trained" in refusal
    assert publisher.check(stale) is None


async def test_the_first_token_tells_how_long_a_reload_took(tmp_path: Path, learner: Learner) -> None:
    publisher = make_publisher(tmp_path, learner)
    begun = time.time()
    policy = await publisher.publish(1)
    ended = time.time()
    for later in (5.0, 60.0):  # the first proof counts
        assert publisher.check(proof_of(learner, policy, first_token_at=ended + later)) is None
    assert 5.0 <= publisher.reload_seconds(policy) <= 5.1 + ended - begun
    assert publisher.reload_seconds(BASE_POLICY) == 0.0


async def test_a_recalled_policy_is_proven_as_it_was_published(tmp_path: Path, learner: Learner) -> None:
    publisher = make_publisher(tmp_path, learner)
    publisher.recall(POLICY, Expected(28, (-3.0, -2.0)))
    assert publisher.expected(POLICY) == Expected(28, (-3.0, -2.0))
    assert publisher.check(proof_of(learner, POLICY, canary_logps=(-3.0, -2.0))) is None
    assert publisher.check(proof_of(learner, POLICY, canary_logps=(-4.0, -2.0))) is not None


async def test_an_adapter_streams_in_pieces_that_match_its_digest(tmp_path: Path, learner: Learner) -> None:
    publisher = make_publisher(tmp_path, learner)
    policy = await publisher.publish(1)
    async with served(publisher) as address:
        files = await fetch_adapter(Settings(trainer_address=address, token=TOKEN), policy)
        assert adapters.digest(files) == policy.sha256
        assert files == adapters.read(publisher.folder(policy))
        async with grpc.aio.insecure_channel(address) as channel:
            stub = services_pb2_grpc.TrainerServiceStub(channel)
            call = stub.FetchPolicy(to_proto(policy), metadata=call_metadata(TOKEN))
            sizes = [len(chunk.data) async for chunk in call]
    assert len(sizes) > 2
    assert max(sizes) == CHUNK_BYTES


async def test_without_the_token_no_adapter_is_given(tmp_path: Path, learner: Learner) -> None:
    publisher = make_publisher(tmp_path, learner)
    policy = await publisher.publish(1)
    async with served(publisher) as address:
        for token in ("", "guess"):
            with pytest.raises(Unreachable, match="UNAUTHENTICATED: wrong or missing token"):
                await fetch_adapter(Settings(trainer_address=address, token=token), policy)


async def test_a_policy_that_was_not_published_is_not_found(tmp_path: Path, learner: Learner) -> None:
    publisher = make_publisher(tmp_path, learner)
    async with served(publisher) as address:
        for policy in (POLICY, BASE_POLICY):
            with pytest.raises(PolicyError, match=f"does not have {policy.name}: "):
                await fetch_adapter(Settings(trainer_address=address, token=TOKEN), policy)
            async with grpc.aio.insecure_channel(address) as channel:
                call = services_pb2_grpc.TrainerServiceStub(channel).FetchPolicy(
                    to_proto(policy), metadata=call_metadata(TOKEN)
                )
                assert await call.code() is grpc.StatusCode.NOT_FOUND
