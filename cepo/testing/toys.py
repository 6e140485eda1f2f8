"""Engines without a model, for tests: they load any policy, sample given texts and score with random weights."""

from __future__ import annotations

import itertools
import math
import random
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cepo.messages.groups import BASE_POLICY, PolicyProof, PolicyRef, Sampling
from cepo.messages.spans import sampled_spans
from cepo.service.generator import RolloutPrompt, SampledResponse
from cepo.teaching.handler import Likeliest, Logps, Pair, Scored


class ToyEngine:
    """An engine that loads every policy at once.

    Attributes:
        loaded: The policy of each `load` call, in order.
        closed: Whether `close` was called.
    """

    def __init__(self, tokenizer_sha256: str = "0" * 64) -> None:
        self.loaded: list[PolicyRef] = []
        self.closed = False
        self._tokenizer_sha256 = tokenizer_sha256

    def proof(self, policy: PolicyRef) -> PolicyProof:
        """The proof that `load` returns. Override it to prove what a trainer expects of its adapter."""
        return PolicyProof(
            policy=policy,
            bound_modules=4,
            canary_logp=-1.5,
            tokenizer_sha256=self._tokenizer_sha256,
            engine="toy",
        )

    async def load(self, policy: PolicyRef) -> PolicyProof:
        self.loaded.append(policy)
        return self.proof(policy)

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class GenerateCall:
    """The arguments of one `ToyGenerator.generate` call."""

    prompt: RolloutPrompt
    samples: int
    sampling: Sampling
    seed: int
    policy: PolicyRef


class ToyGenerator(ToyEngine):
    """A rollout engine (`Generator`) that answers every prompt with the same texts, in turn.

    Attributes:
        calls: The arguments of each `generate` call, in order.

    Example:
        >>> import asyncio
        >>> from cepo.messages.groups import BASE_POLICY, Sampling
        >>> from cepo.service.generator import RolloutPrompt
        >>> from cepo.testing import ToyGenerator
        >>> generator = ToyGenerator(lambda text: map(ord, text), ["7", "3+4"])
        >>> prompt = RolloutPrompt(ids=(1, 2), compact_ids=(1, 2), images=())
        >>> responses = asyncio.run(generator.generate(prompt, 3, Sampling(max_tokens=2), seed=0, policy=BASE_POLICY))
        >>> [(response.token_ids, response.finished) for response in responses]
        [((55,), True), ((51, 43), False), ((55,), True)]
    """

    def __init__(
        self,
        encode: Callable[[str], Iterable[int]],
        texts: Sequence[str],
        stop_ids: Iterable[int] = (),
        tokenizer_sha256: str = "0" * 64,
    ) -> None:
        """Creates the engine.

        Args:
            encode: turns a text into token ids, as a tokenizer's `encode` without special tokens.
            texts: response i has the text `texts[i % len(texts)]`.
            stop_ids: token ids that end each response.
        """
        super().__init__(tokenizer_sha256)
        self.calls: list[GenerateCall] = []
        self._encode = encode
        self._texts = texts
        self._stop_ids = tuple(stop_ids)

    async def generate(
        self, prompt: RolloutPrompt, samples: int, sampling: Sampling, seed: int, policy: PolicyRef
    ) -> Sequence[SampledResponse]:
        call = GenerateCall(prompt, samples, sampling, seed, policy)
        self.calls.append(call)
        return [self.respond(call, i) for i in range(samples)]

    def respond(self, call: GenerateCall, index: int) -> SampledResponse:
        """Response `index` of a call. Override it for responses that depend on the prompt, the seed or the policy."""
        return self.response(self._texts[index % len(self._texts)], call.sampling.max_tokens)

    def response(self, text: str, max_tokens: int) -> SampledResponse:
        """A response with this text, cut at `max_tokens`; token t (from 0) has the log-prob -(t + 1) / 4."""
        ids = (*self._encode(text), *self._stop_ids)
        kept = ids[:max_tokens]
        return SampledResponse(kept, tuple(-(t + 1) / 4 for t in range(len(kept))), finished=kept == ids)


class ToyScorer(ToyEngine):
    """A teacher engine (`Scorer`) that behaves like a model with random weights.

    The next-token distribution is a function of the context, its images, the response so far and the policy, so the
    methods agree with each other, and different contexts or policies give different values. The numbers are exact in
    single precision, so they do not change on the wire.

    Attributes:
        pairs: The pairs of all `score` calls, in order.

    Example:
        >>> import asyncio, math
        >>> from array import array
        >>> from cepo.messages.groups import BASE_POLICY
        >>> from cepo.teaching.handler import Pair
        >>> from cepo.testing import ToyScorer
        >>> scorer, pair = ToyScorer(vocabulary=4), Pair(context_ids=(1, 2), response_ids=(3, 0))
        >>> (logps,) = asyncio.run(scorer.score([pair], 1.0, BASE_POLICY)).values
        >>> (top,) = asyncio.run(scorer.likeliest([pair], 0, 1.0, BASE_POLICY)).values  # k = 0: all 4 tokens
        >>> ids, probabilities = array("i", top.ids), [math.exp(logp) for logp in array("f", top.logps)]
        >>> round(sum(probabilities[:4]), 6), round(sum(probabilities[4:]), 6)
        (1.0, 1.0)
        >>> probabilities[ids.index(3)] == math.exp(logps[0])
        True
    """

    def __init__(self, vocabulary: int = 512, hidden_size: int = 8, tokenizer_sha256: str = "0" * 64) -> None:
        """Creates the engine.

        Args:
            vocabulary: number of tokens; response ids must be below it.
            hidden_size: length of the vectors that `pool` returns.
        """
        super().__init__(tokenizer_sha256)
        self.pairs: list[Pair] = []
        self._vocabulary = vocabulary
        self._hidden_size = hidden_size

    async def score(self, pairs: Sequence[Pair], temperature: float, policy: PolicyRef) -> Scored[Logps]:
        self.pairs += pairs
        values = []
        for pair in pairs:
            rows = self._logps(pair, temperature, policy)
            values.append(tuple(row[token] for row, token in zip(rows, pair.response_ids, strict=True)))
        return Scored(values)

    async def likeliest(
        self, pairs: Sequence[Pair], k: int, temperature: float, policy: PolicyRef
    ) -> Scored[Likeliest]:
        values = []
        for pair in pairs:
            rows = self._logps(pair, temperature, policy)
            ranked = [sorted(range(self._vocabulary), key=row.__getitem__, reverse=True) for row in rows]
            for span in pair.given:
                ranked[span.start : span.end] = [[0] * self._vocabulary] * (span.end - span.start)
            values.append(_likeliest(rows, [ids[: k or self._vocabulary] for ids in ranked]))
        return Scored(values)

    async def gather(
        self, pairs: Sequence[Pair], ids: Sequence[bytes], temperature: float, policy: PolicyRef
    ) -> Scored[Likeliest]:
        values = []
        for pair, packed in zip(pairs, ids, strict=True):
            rows, flat = self._logps(pair, temperature, policy), array("i", packed)
            k = len(flat) // max(1, len(rows))
            values.append(_likeliest(rows, [flat[t * k : (t + 1) * k] for t in range(len(rows))]))
        return Scored(values)

    async def pool(self, pairs: Sequence[Pair], policy: PolicyRef) -> Scored[tuple[float, ...]]:
        values = []
        for pair in pairs:
            spans = sampled_spans(pair.given, len(pair.response_ids))
            sources = [_random(pair, t, policy) for start, end in spans for t in range(start, end)]
            means = [sum(s.random() for s in sources) / max(1, len(sources)) for _ in range(self._hidden_size)]
            values.append(tuple(array("f", means)))
        return Scored(values)

    def _logps(self, pair: Pair, temperature: float, policy: PolicyRef) -> list[array[float]]:
        """[T][V]: the log-prob of every token at each response position; 0 at given tokens."""
        shares = {policy: 1 - pair.base_share, BASE_POLICY: pair.base_share} if pair.base_share else {policy: 1.0}
        rows = []
        for t in range(len(pair.response_ids)):
            logits = [0.0] * self._vocabulary
            for each, share in shares.items():
                source = _random(pair, t, each)
                logits = [logit + 4 * share * source.random() / temperature for logit in logits]
            total = math.log(sum(map(math.exp, logits)))
            rows.append(array("f", [logit - total for logit in logits]))
        for span in pair.given:
            rows[span.start : span.end] = [array("f", [0.0] * self._vocabulary)] * (span.end - span.start)
        return rows


def _random(pair: Pair, t: int, policy: PolicyRef) -> random.Random:
    """A generator whose seed is the context, its images, the first `t` response tokens and the policy."""
    images = [image.sha256 for image in pair.images]
    return random.Random(f"{pair.context_ids} {images} {pair.response_ids[:t]} {policy.name}")


def _likeliest(rows: Sequence[Sequence[float]], ids: Sequence[Sequence[int]]) -> Likeliest:
    """Packs token ids [T][k] and their log-probs, which are picked from rows [T][V]."""
    logps = [row[token] for row, tokens in zip(rows, ids, strict=True) for token in tokens]
    return Likeliest(array("i", itertools.chain(*ids)).tobytes(), array("f", logps).tobytes())
