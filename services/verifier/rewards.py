"""The reward of a response: accuracy, format, penalties, the environment's reward and the user's reward functions.

Lengths are in tokens that the policy sampled; a tool result or a user turn adds nothing to them.

The penalty is the sum of terms that are at most 0, except the length term, which rewards a short correct response.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from cepo.errors import UserError
from cepo.messages.groups import Completion, FinishReason, Reward, RolloutGroup, Verdict
from services.verifier.functions import Call, Sample
from services.verifier.pool import Failure, GraderPool

_log = logging.getLogger(__name__)


def check_allowed(rule: Reward, pool: GraderPool) -> None:
    """Checks that this process was started with all functions of a rule.

    Raises:
        UserError: names the first function that is missing.
    """
    for name in rule.functions:
        if name not in pool.functions:
            raise UserError(
                f"reward function {name} is not one this verifier runs; start it with CEPO_REWARD_FUNCTIONS={name}"
            )


async def rewarded(group: RolloutGroup, verdicts: Sequence[Verdict], pool: GraderPool) -> tuple[Verdict, ...]:
    """Adds the rewards to the verdicts of a group; if a reward function fails, the verdict is marked failed."""
    rule, completions = group.task.reward, group.completions
    relative = shorter([c.length for c in completions], [v.accuracy for v in verdicts])
    extras = await asyncio.gather(*(_extra(group, c, v, pool) for c, v in zip(completions, verdicts, strict=True)))
    return tuple(
        _earned(rule, group, completion, verdict, rule.length * short, extra)
        for completion, verdict, short, extra in zip(completions, verdicts, relative, extras, strict=True)
    )


def _earned(
    rule: Reward, group: RolloutGroup, completion: Completion, verdict: Verdict, length: float, extra: float | Failure
) -> Verdict:
    if isinstance(extra, Failure):
        failed = {"outcome": extra.outcome, "reason": extra.reason, "accuracy": 0.0, "reward": 0.0}
        return verdict.model_copy(update=failed)
    if verdict.failed:
        return verdict
    penalty = (
        length
        + rule.overlong_factor * overlong(completion.length, group.task.sampling.max_tokens, rule.overlong_buffer)
        - rule.repetition * (repeated(completion.sampled_ids, rule.repetition_ngram) if rule.repetition else 0.0)
    )
    outcome = rule.accuracy * verdict.accuracy + rule.wrong * (1.0 - verdict.accuracy)
    environment = rule.environment * completion.played.reward if completion.played is not None else 0.0
    reward = outcome + rule.format * verdict.format + penalty + environment + extra
    terms = {"reward": reward, "penalty": penalty, "environment": environment, "functions": extra}
    return verdict.model_copy(update=terms)


async def _extra(group: RolloutGroup, completion: Completion, verdict: Verdict, pool: GraderPool) -> float | Failure:
    """The sum of the reward functions, or why one of them failed."""
    if verdict.failed or not group.task.reward.functions:
        return 0.0
    sample = Sample(
        response=completion.text,
        question=group.task.messages[-1].content,
        answer=group.task.reference_answer,
        extracted=verdict.extracted,
        accuracy=verdict.accuracy,
        tokens=completion.length,
        truncated=completion.finish_reason is FinishReason.LENGTH,
    )
    total = 0.0
    for name in group.task.reward.functions:
        reply = await pool.ask(Call(name, sample))
        if isinstance(reply, Failure):
            _log.warning("%s", reply.reason)
            return reply
        total += reply.value
    return total


def overlong(tokens: int, max_tokens: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (arXiv:2503.14476, Eq. 13): 0 up to the buffer, then falling to -1 at its end."""
    if buffer == 0:
        return 0.0
    return min(0.0, max(-1.0, (max_tokens - buffer - tokens) / buffer))


def shorter(tokens_G: Sequence[int], accuracy_G: Sequence[float]) -> list[float]:
    """Kimi k1.5's length reward (arXiv:2501.12599, 2.3.3) for each response of a group.

    It falls from 0.5 for the shortest response to -0.5 for the longest. A wrong response gets at most 0, and all get 0
    if they are equally long. Example: lengths 10, 20, 30, all correct, give 0.5, 0.0, -0.5.
    """
    shortest, longest = min(tokens_G, default=0), max(tokens_G, default=0)
    if shortest == longest:
        return [0.0] * len(tokens_G)
    share_G = [0.5 - (tokens - shortest) / (longest - shortest) for tokens in tokens_G]
    return [share if accuracy >= 0.5 else min(0.0, share) for share, accuracy in zip(share_G, accuracy_G, strict=True)]


def repeated(token_ids: Sequence[int], size: int) -> float:
    """The share of n-grams that occurred before, in [0, 1): open-r1's repetition penalty, over tokens.

    Example: the tokens 1 2 1 2 1 2 have five 2-grams, of which three are repeated: 0.6.
    """
    total = len(token_ids) - size + 1
    if total <= 0:
        return 0.0
    return 1.0 - len({tuple(token_ids[at : at + size]) for at in range(total)}) / total
