"""A session and its group: the turns of an agent as token ids with log-probs, never tokenised again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cepo.errors import PolicyError, UserError
from cepo.messages.groups import Message, SessionTerms
from cepo.messages.spans import Trajectory

MAX_TURNS = 256


@dataclass(frozen=True)
class Turn:
    """One chat completion."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logps: tuple[float, ...]
    cut: bool
    """Whether `max_tokens` ended the turn."""


@dataclass
class Part:
    """Turns whose prompts continue each other: a prompt and the response to it."""

    prompt_ids: tuple[int, ...]
    trajectory: Trajectory = field(default_factory=Trajectory)
    cut: bool = False

    @property
    def length(self) -> int:
        """Tokens of the response, given tokens included."""
        return len(self.trajectory.token_ids)

    def given(self, prompt_ids: Sequence[int]) -> tuple[int, ...] | None:
        """The ids that a later prompt adds to this part; None if the prompt does not begin with the part's ids."""
        so_far = (*self.prompt_ids, *self.trajectory.token_ids)
        return tuple(prompt_ids[len(so_far) :]) if tuple(prompt_ids[: len(so_far)]) == so_far else None


@dataclass(eq=False)
class SessionGroup:
    """The sessions that begin with the same messages and are compared with each other."""

    name: str
    messages: tuple[Message, ...]
    sessions: dict[str, Session] = field(default_factory=dict)
    terms: SessionTerms | None = None
    """What the trainer answered to the first turn of the group; every session keeps to it."""
    prompt_ids: tuple[int, ...] = ()
    answer: str = ""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def agreed(self) -> SessionTerms:
        """The terms, once the first turn has them."""
        assert self.terms is not None
        return self.terms

    @property
    def missing(self) -> int:
        """The number of sessions that have yet to finish."""
        return self.agreed.samples - sum(session.finished for session in self.sessions.values())

    def body(self) -> dict[str, Any]:
        """The body of `POST /v1/groups`."""
        return {
            "id": self.name,
            "policy_version": self.agreed.policy.version,
            "messages": [message.model_dump() for message in self.messages],
            "prompt_token_ids": list(self.prompt_ids),
            "answer": self.answer,
            "responses": [response for session in self.sessions.values() for response in session.responses()],
        }


@dataclass(eq=False)
class Session:
    """The turns of one agent."""

    name: str
    group: SessionGroup
    touched: float
    """Seconds of a monotonic clock at its last request."""
    parts: list[Part] = field(default_factory=list)
    turns: int = 0
    sampling: int = 0
    """Turns that the engine samples now."""
    reward: float | None = None
    finished: bool = False

    @property
    def tokens(self) -> int:
        """Tokens that the session keeps."""
        return sum(len(part.prompt_ids) + part.length for part in self.parts)

    @property
    def room(self) -> int:
        """Tokens that the response may still get.

        Raises:
            UserError: none, or the session may not have another turn.
        """
        limit, part = self.group.agreed.sampling.max_tokens, self.parts[-1] if self.parts else None
        if self.turns >= MAX_TURNS:
            raise UserError(f"session {self.name}: it has {MAX_TURNS} turns; finish it")
        if part is not None and part.length >= limit:
            raise self._full(limit)
        return limit - (part.length if part is not None else 0)

    @property
    def trained(self) -> list[Part]:
        """The parts that respond to the group's prompt; with a reward all of them, otherwise the last."""
        parts = self.parts if self.reward is not None else self.parts[-1:]
        return [part for part in parts if part.prompt_ids == self.group.prompt_ids]

    def add(self, turn: Turn) -> bool:
        """Appends a turn; returns whether the trajectory was split before it.

        A prompt that does not continue the ids so far begins another part. That part responds to the group's prompt if
        it begins with it: what follows the prompt is given. Otherwise the part has a prompt of its own.

        Raises:
            UserError: the response has no room for the turn, or the first prompt is not the group's.
        """
        group = self.group
        if not self.parts and group.prompt_ids and turn.prompt_ids != group.prompt_ids:
            raise UserError(
                f"session {self.name}: its first prompt has other token ids than that of group {group.name}"
            )
        part = self.parts[-1] if self.parts else Part(turn.prompt_ids)
        given = part.given(turn.prompt_ids)
        split = given is None
        if given is None:
            part = Part(group.prompt_ids)
            given = part.given(turn.prompt_ids)
        if given is None:
            part, given = Part(turn.prompt_ids), ()
        limit = group.agreed.sampling.max_tokens
        if part.length + len(given) + len(turn.token_ids) > limit:
            if self.parts:
                self.parts[-1].cut = True
            raise self._full(limit)
        group.prompt_ids = group.prompt_ids or turn.prompt_ids
        part.trajectory.give(given)
        part.trajectory.sample(turn.token_ids, turn.logps)
        part.cut = turn.cut
        self.turns += 1
        if not self.parts or split:
            self.parts.append(part)
        return split

    def finish(self, reward: float | None, answer: str) -> None:
        """Closes the trajectory.

        Raises:
            UserError: the session finished before with another reward, or does not fit the sessions of its group.
        """
        if self.finished and reward != self.reward:
            raise UserError(f"session {self.name}: it has finished with reward {self.reward}; finish it once")
        others = [session for session in self.group.sessions.values() if session.finished and session is not self]
        if any((session.reward is None) != (reward is None) for session in others):
            raise UserError(f"reward: give a reward to every session of group {self.group.name}, or to none")
        if answer and self.group.answer and answer != self.group.answer:
            raise UserError(f"answer: group {self.group.name} has the answer {self.group.answer!r}; send the same")
        if reward is None and not (answer or self.group.answer):
            raise UserError("answer: give the reference answer, or a reward")
        self.reward = reward
        if not self.trained:
            raise UserError(
                f"session {self.name}: its last turn does not continue the group's prompt, which the chat template "
                "rewrites; finish it with a reward"
            )
        self.group.answer, self.finished = self.group.answer or answer, True

    def responses(self) -> list[dict[str, Any]]:
        """The parts that are trained on, as responses of `POST /v1/groups`."""
        return [
            {
                "token_ids": part.trajectory.token_ids,
                "given": [span.model_dump() for span in part.trajectory.given],
                "logps": part.trajectory.logps,
                "reward": self.reward,
                "truncated": part.cut,
            }
            for part in self.trained
        ]

    def require_open(self, group: str) -> None:
        """Raises PolicyError unless the session takes another turn of a group."""
        if self.finished:
            raise PolicyError(f"session {self.name}: it has finished; give the next one another name")
        if group != self.group.name:
            raise PolicyError(f"X-CEPO-Group: session {self.name} belongs to group {self.group.name}")

    def _full(self, limit: int) -> UserError:
        return UserError(f"session {self.name}: its response has reached sampling.max_tokens={limit}; finish it")
