"""Adapter versions of a run: writes, announces and streams them to engines, and checks the engines' proofs."""

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

from cepo.errors import PolicyError, UserError, WireError
from cepo.messages.groups import BASE_POLICY, PolicyProof, PolicyRef, PolicyRequest
from cepo.messages.wire import from_proto
from cepo.pb.cepo.v1 import services_pb2
from cepo.service import adapters
from cepo.service.bus import Bus
from services.trainer.canary import canary_fault
from services.trainer.fanout import Fanout
from services.trainer.finite import diverged, first_not_finite
from services.trainer.learning.learner import Learner


@dataclass(frozen=True)
class Expected:
    """What an engine must report once it has loaded a policy."""

    bound_modules: int
    canary_logps: tuple[float, ...]
    folder: str = ""
    """The policy's folder under adapters/; empty for the base."""


class Publisher:
    """Writes versions under adapters/ and checks the proofs of the engines that load them."""

    def __init__(
        self, folder: Path, learner: Learner, bus: Bus, canary_ids: Sequence[int], tokenizer_sha256: str, dtype: str
    ) -> None:
        self._folder = folder
        self._learner = learner
        self._bus = bus
        self._canary_ids = canary_ids
        self._tokenizer_sha256 = tokenizer_sha256
        self._dtype = dtype
        self._expected = {BASE_POLICY: Expected(0, learner.canary(canary_ids, base=True))}
        if broken := [logp for logp in self._expected[BASE_POLICY].canary_logps if not math.isfinite(logp)]:
            raise UserError(
                f"model.path: the base model gives the log-prob {broken[0]} in the trainer; its weights are damaged, "
                f"or do not work in model.dtype={dtype}"
            )
        self._fanout = Fanout()
        self._published_at: dict[PolicyRef, float] = {}
        self._reload_seconds: dict[PolicyRef, float] = {}

    async def publish(self, version: int) -> PolicyRef:
        """Publishes the learner's current weights as a version.

        Raises:
            UserError: the weights, or the log-probs under them, are not finite. No task names such a version.
        """
        policy = await asyncio.to_thread(self._write, version, f"v{version:06d}")
        await self._bus.announce(policy)  # engines load it while the trainer computes its canary
        await asyncio.to_thread(self._expect_canary, policy)
        return policy

    async def publish_average(self, version: int, average: Mapping[str, Tensor]) -> PolicyRef:
        """Publishes the moving average of the weights at a version as a policy of its own.

        It is not announced: rollout engines never need it, and the teacher fetches it for its first task.
        """

        def written() -> PolicyRef:
            with self._learner.using_adapter(average):
                policy = self._write(version, f"ema-v{version:06d}")
                self._expect_canary(policy)
                return policy

        return await asyncio.to_thread(written)

    def _write(self, version: int, folder: str) -> PolicyRef:
        if broken := first_not_finite(self._learner.adapter()):
            raise diverged(f"the adapter of version {version} is not finite ({broken})", self._folder.parent)
        files = self._learner.adapter_files()
        policy = PolicyRef(version=version, sha256=adapters.digest(files))
        adapters.write(self._folder / folder, files)
        self._expected[policy] = Expected(self._learner.bound_modules, (), folder)
        self._published_at[policy] = time.time()
        return policy

    def _expect_canary(self, policy: PolicyRef) -> None:
        """Stores the canary's log-probs under the learner's weights; until then no proof of the policy is accepted."""
        canary_logps = self._learner.canary(self._canary_ids)
        if broken := [logp for logp in canary_logps if not math.isfinite(logp)]:
            shutil.rmtree(self.folder(policy))
            raise diverged(f"under version {policy.version} log-probs are {broken[0]}", self._folder.parent)
        self._expected[policy] = replace(self._expected[policy], canary_logps=canary_logps)

    def drop_before(self, version: int, needed: Set[str]) -> None:
        """Deletes the folders of older versions, except needed ones; deleted versions can no longer be fetched."""
        for folder in [*self._folder.glob("v*"), *self._folder.glob("ema-v*")]:
            if folder.name not in needed and int(folder.name.rpartition("v")[2]) < version:
                hidden = folder.rename(folder.with_name(f".{folder.name}"))  # so that no reader finds half a folder
                shutil.rmtree(hidden)
        kept = {p: e for p, e in self._expected.items() if p.version >= version or e.folder in needed}
        self._expected = {BASE_POLICY: self._expected[BASE_POLICY]} | kept
        self._published_at = {policy: at for policy, at in self._published_at.items() if policy in kept}
        self._reload_seconds = {policy: seconds for policy, seconds in self._reload_seconds.items() if policy in kept}

    def folder(self, policy: PolicyRef) -> Path:
        """The folder of a version, which PEFT and vLLM can load."""
        return self._folder / self._expected[policy].folder

    def check(self, proof: PolicyProof) -> str | None:
        """The reason to reject an engine's proof; None if it is accepted."""
        expected = self._expected.get(proof.policy)
        if expected is None:
            return f"{proof.engine} used {proof.policy.name}, which this run did not publish"
        if proof.tokenizer_sha256 != self._tokenizer_sha256:
            return f"{proof.engine} has another tokenizer or chat template than the trainer"
        if proof.bound_modules != expected.bound_modules:
            return (
                f"{proof.engine} bound {proof.bound_modules} of {expected.bound_modules} modules of {proof.policy.name}"
            )
        if fault := canary_fault(tuple(proof.canary_logps), expected.canary_logps, self._dtype, self._learner.layers):
            return f"{proof.engine} under {proof.policy.name}: {fault}"
        if proof.first_token_at and proof.policy in self._published_at:
            waited = proof.first_token_at - self._published_at[proof.policy]
            self._reload_seconds.setdefault(proof.policy, max(0.0, waited))
        return None

    def reload_seconds(self, policy: PolicyRef) -> float:
        """Seconds from publishing a policy to an engine's first token with it; 0 for the base or a resumed policy."""
        return self._reload_seconds.get(policy, 0.0)

    def recall(self, policy: PolicyRef, expected: Expected) -> None:
        """Adds a version that an earlier process of this run published."""
        self._expected[policy] = expected

    def intact(self, policy: PolicyRef) -> bool:
        """Whether the files of a version are whole: those of its digest."""
        if policy == BASE_POLICY:
            return True
        try:
            return adapters.digest(adapters.read(self.folder(policy))) == policy.sha256
        except OSError:
            return False

    def write_again(self, policy: PolicyRef, files: Mapping[str, bytes]) -> None:
        """Replaces the damaged or missing files of a version."""
        adapters.write(self.folder(policy), files)

    def restored_otherwise(self, policy: PolicyRef) -> str:
        """How the canary under the learner's weights differs from the one of a recalled version; empty if it agrees."""
        now, then = self._learner.canary(self._canary_ids), self._expected[policy].canary_logps
        if not canary_fault(now, then, self._dtype, self._learner.layers):
            return ""
        return f"{sum(now):.4f}, and {sum(then):.4f} when {policy.name} was saved"

    def expected(self, policy: PolicyRef) -> Expected:
        """What an engine must report for a published policy."""
        return self._expected[policy]

    async def stream(
        self, request: object, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[services_pb2.PolicyChunk]:
        """TrainerService.FetchPolicy: streams the files of a version in chunks, or names a holder of them."""
        try:
            asked = from_proto(PolicyRequest, request)
        except WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        policy = asked.policy
        if policy not in self._expected or policy == BASE_POLICY:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{policy.name} was not published by this run")
        async for chunk in self._fanout.stream(asked, context.peer(), self.folder(policy)):
            yield chunk

    async def files(self, policy: PolicyRef) -> dict[str, bytes]:
        """The files of a version by name, for an engine in this process.

        Raises:
            PolicyError: this run did not publish the version, or has deleted it.
        """
        if policy not in self._expected:
            raise PolicyError(f"{policy.name} was not published by this run")
        return adapters.read(self.folder(policy))
