"""Adapter versions of a run: written atomically, announced, streamed to engines, and proven by them."""

from __future__ import annotations

import asyncio
import math
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
from torch import Tensor

from cepo.errors import PolicyError, WireError
from cepo.messages.groups import BASE_POLICY, PolicyProof, PolicyRef
from cepo.messages.wire import from_proto
from cepo.pb.cepo.v1 import services_pb2
from cepo.service import adapters
from cepo.service.bus import Bus
from services.trainer.learning.learner import Learner

CANARY_TOLERANCE = {"float32": 2e-4, "bfloat16": 5e-2}
"""Mean difference per canary token that numerics explain, by the engines' data type."""


@dataclass(frozen=True)
class Expected:
    """What an engine must report for a policy."""

    bound_modules: int
    canary_logp: float
    folder: str = ""
    """Of its bytes under adapters/; the base has none."""


class Publisher:
    """Writes versions under adapters/ and checks what engines say about them."""

    def __init__(
        self, folder: Path, learner: Learner, bus: Bus, canary_ids: Sequence[int], tokenizer_sha256: str, dtype: str
    ) -> None:
        self._folder = folder
        self._learner = learner
        self._bus = bus
        self._canary_ids = canary_ids
        self._tokenizer_sha256 = tokenizer_sha256
        self._tolerance = CANARY_TOLERANCE[dtype] * (len(canary_ids) - 1)
        self._expected = {BASE_POLICY: Expected(0, learner.canary(canary_ids, base=True))}
        self._published_at: dict[PolicyRef, float] = {}
        self._reload_seconds: dict[PolicyRef, float] = {}

    async def publish(self, version: int) -> PolicyRef:
        """Makes the learner's present weights version `version`."""
        policy = await asyncio.to_thread(self._write, version, f"v{version:06d}")
        await self._bus.announce(policy)  # engines load it while its canary is read
        await asyncio.to_thread(self._read_canary, policy)
        return policy

    async def publish_average(self, version: int, average: Mapping[str, Tensor]) -> PolicyRef:
        """Makes a moving average of the weights, at version `version`, a policy of its own.

        It is not announced: engines that sample never need it, and the teacher fetches it for its first task.
        """

        def written() -> PolicyRef:
            with self._learner.using_adapter(average):
                policy = self._write(version, f"ema-v{version:06d}")
                self._read_canary(policy)
                return policy

        return await asyncio.to_thread(written)

    def _write(self, version: int, folder: str) -> PolicyRef:
        files = self._learner.adapter_files()
        policy = PolicyRef(version=version, sha256=adapters.digest(files))
        adapters.write(self._folder / folder, files)
        self._expected[policy] = Expected(self._learner.bound_modules, math.nan, folder)
        self._published_at[policy] = time.time()
        return policy

    def _read_canary(self, policy: PolicyRef) -> None:
        """With the weights it was written from; until then no proof of it is accepted."""
        canary_logp = self._learner.canary(self._canary_ids)
        self._expected[policy] = replace(self._expected[policy], canary_logp=canary_logp)

    def drop_before(self, version: int, needed: Set[str]) -> None:
        """Deletes the folders of older versions, but for those that are needed; they can be had no more."""
        for folder in [*self._folder.glob("v*"), *self._folder.glob("ema-v*")]:
            if folder.name not in needed and int(folder.name.rpartition("v")[2]) < version:
                gone = folder.rename(folder.with_name(f".{folder.name}"))  # whole or not there, for whoever looks
                shutil.rmtree(gone)
        kept = {p: e for p, e in self._expected.items() if p.version >= version or e.folder in needed}
        self._expected = {BASE_POLICY: self._expected[BASE_POLICY]} | kept
        self._published_at = {policy: at for policy, at in self._published_at.items() if policy in kept}
        self._reload_seconds = {policy: seconds for policy, seconds in self._reload_seconds.items() if policy in kept}

    def folder(self, policy: PolicyRef) -> Path:
        """The folder of a version, which stock PEFT and vLLM load."""
        return self._folder / self._expected[policy].folder

    def prove(self, proof: PolicyProof) -> str | None:
        """Why an engine's proof is not accepted; None when it is."""
        expected = self._expected.get(proof.policy)
        if expected is None:
            return f"{proof.engine} used {proof.policy.name}, which this run did not publish"
        if proof.tokenizer_sha256 != self._tokenizer_sha256:
            return f"{proof.engine} has another tokenizer or chat template than the trainer"
        if proof.bound_modules != expected.bound_modules:
            return (
                f"{proof.engine} bound {proof.bound_modules} of {expected.bound_modules} modules of {proof.policy.name}"
            )
        gap = abs(proof.canary_logp - expected.canary_logp)
        if not gap <= self._tolerance:
            return (
                f"{proof.engine} scores the canary {proof.canary_logp:.4f} under {proof.policy.name}, the trainer "
                f"{expected.canary_logp:.4f}: the weights it serves are not the weights that were trained"
            )
        if proof.first_token_at and proof.policy in self._published_at:
            waited = proof.first_token_at - self._published_at[proof.policy]
            self._reload_seconds.setdefault(proof.policy, max(0.0, waited))
        return None

    def reload_seconds(self, policy: PolicyRef) -> float:
        """Seconds from publishing a policy to an engine's first token with it; 0 for the base or a resumed policy."""
        return self._reload_seconds.get(policy, 0.0)

    def recall(self, policy: PolicyRef, expected: Expected) -> None:
        """Accepts a version that an earlier process of this run published."""
        self._expected[policy] = expected

    def expected(self, policy: PolicyRef) -> Expected:
        return self._expected[policy]

    async def stream(
        self, request: object, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[services_pb2.PolicyChunk]:
        """TrainerService.FetchPolicy: the files of a version, in pieces."""
        try:
            policy = from_proto(PolicyRef, request)
        except WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if policy not in self._expected or policy == BASE_POLICY:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{policy.name} was not published by this run")
        for chunk in adapters.chunks(self.folder(policy)):
            yield chunk

    async def files(self, policy: PolicyRef) -> dict[str, bytes]:
        """The same for an engine in this process.

        Raises:
            PolicyError: this run did not publish it.
        """
        if policy not in self._expected:
            raise PolicyError(f"{policy.name} was not published by this run")
        return adapters.read(self.folder(policy))
