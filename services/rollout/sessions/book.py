"""The open sessions of a rollout service: in memory, bounded in number, size and idle time."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from cachetools import LRUCache
from pydantic import BaseModel, ConfigDict, Field

from cepo.credit import Scalar
from cepo.errors import PolicyError, Unreachable, UserError
from cepo.messages.groups import Message, SessionTerms
from cepo.messages.requests import SentModel
from cepo.service.metrics import SESSION_SPLITS, SESSIONS_EXPIRED
from services.rollout.sessions.session import Session, SessionGroup, Turn

MAX_SESSIONS = 4096
MAX_TOKENS = 2**22
"""Tokens of all open sessions; about 200 MB."""
IDLE_SECONDS = 1800.0
_NAME = re.compile(r"[A-Za-z0-9._+:-]{1,200}")
log = logging.getLogger(__name__)


class FinishSession(SentModel):
    """The request of `POST /v1/sessions/NAME/finish`."""

    reward: Scalar | None = Field(default=None, description="the reward of the session; left out: the verifier grades")
    answer: str = Field(default="", max_length=65536, description="the reference answer of the group's problem")


class FinishedSession(BaseModel):
    """The reply: what is trained on, and where once the group is complete."""

    model_config = ConfigDict(frozen=True)

    session: str
    group: str
    turns: int
    splits: int = Field(description="turns whose prompt did not continue the token ids of the turns before")
    left_out: int = Field(description="parts between splits that are not trained on")
    waiting_for: int = Field(description="sessions that the group still waits for")
    step: int | None = Field(default=None, description="the step that trains on the group, once it is complete")


class Sessions:
    """The open sessions by name, and their groups."""

    def __init__(
        self,
        terms: Callable[[], Awaitable[SessionTerms]],
        send: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keeps no session yet.

        Args:
            terms: asks the trainer how the next group is to be sampled.
            send: sends a body of `POST /v1/groups` to the trainer and returns its reply.
        """
        self._terms, self._send, self._clock = terms, send, clock
        self._sessions: dict[str, Session] = {}
        self._groups: dict[str, SessionGroup] = {}
        self._ended: LRUCache[str, FinishedSession | str] = LRUCache(2 * MAX_SESSIONS)
        """The reply to each session whose group was taken, and the reason why another one ended."""
        self._taken: LRUCache[str, str] = LRUCache(MAX_SESSIONS)
        """Why a group takes no more sessions, by its name."""

    @contextlib.asynccontextmanager
    async def turn(self, name: str, group: str, messages: Sequence[Message]) -> AsyncIterator[Session]:
        """The session that samples a turn; a new name opens a session. The session cannot expire during the block.

        Raises:
            UserError: a header is wrong, or a bound is reached; the message says the fix.
            PolicyError: the session has ended, or the run takes no more groups.
            Unreachable: the trainer does not answer.
        """
        self._expire()
        session = self._sessions.get(name) or self._opened(name, group, tuple(messages))
        session.require_open(group)
        session.sampling += 1
        try:
            async with session.group.lock:
                if session.group.terms is None:
                    session.group.terms = await self._terms()
            samples = session.group.agreed.samples
            if list(session.group.sessions).index(name) >= samples:  # opened before the terms came
                raise PolicyError(f"group {group}: it has its {samples} sessions; name another group")
            yield session
        finally:
            session.sampling -= 1
            session.touched = self._clock()
            if not session.turns and not session.sampling:
                self._drop(session)

    def record(self, session: Session, turn: Turn) -> None:
        """Adds a turn to its session.

        Raises:
            UserError: the response has no room for it.
            PolicyError: the session finished while the turn was sampled.
        """
        session.require_open(session.group.name)
        if session.add(turn):
            SESSION_SPLITS.inc()
            log.warning(
                "session %s of group %s is split before turn %d: its prompt does not continue the ids of the turns "
                "before",
                session.name,
                session.group.name,
                session.turns,
            )

    async def finish(self, name: str, sent: FinishSession) -> FinishedSession:
        """Closes a session; the last one of its group sends the group to the trainer. May be repeated.

        Raises:
            UserError: a field is wrong, or no such session is open.
            PolicyError: the run does not train on the group, which is dropped.
            Unreachable: the trainer does not answer; the group is kept, so finish the session again.
        """
        self._expire()
        session = self._sessions.get(name)
        if session is None:
            return self._reply_of(name)
        if session.sampling:
            raise UserError(f"session {name}: a turn of it is being sampled; finish it after the reply")
        session.finish(sent.reward, sent.answer)
        session.touched = self._clock()
        group = session.group
        async with group.lock:
            if name not in self._sessions:  # another request has sent the group meanwhile
                return self._reply_of(name)
            if group.missing > 0:
                return self._reply(session)
            try:
                place = await self._send(group.body())
            except (UserError, PolicyError) as error:
                self._close(group, dict.fromkeys(group.sessions, f"its group was refused: {error}"))
                raise
            replies = {each.name: self._reply(each, place["step"]) for each in group.sessions.values()}
            self._close(group, replies)
            return replies[name]

    def _opened(self, name: str, group_name: str, messages: tuple[Message, ...]) -> Session:
        for header, value in (("X-CEPO-Session", name), ("X-CEPO-Group", group_name)):
            if not _NAME.fullmatch(value):
                raise UserError(f"{header}: {value[:40]!r} is no name; use up to 200 letters, digits and ._+:-")
        if name in self._ended:
            raise PolicyError(f"session {name}: it has ended; give the next one another name")
        if why := self._taken.get(group_name):
            raise PolicyError(f"group {group_name}: {why}; give the next one another name")
        if len(self._sessions) >= MAX_SESSIONS:
            raise Unreachable(f"{MAX_SESSIONS} sessions are open; finish some of them first")
        if sum(session.tokens for session in self._sessions.values()) > MAX_TOKENS:
            raise Unreachable(f"the open sessions hold {MAX_TOKENS} tokens; finish some of them first")
        group = self._groups.get(group_name) or SessionGroup(group_name, messages)
        if group.messages != messages:
            raise UserError(
                f"X-CEPO-Group: session {name} begins with other messages than group {group_name}; the sessions of a "
                "group begin with the same"
            )
        if group.terms is not None and len(group.sessions) >= group.terms.samples:
            raise PolicyError(f"group {group_name}: it has its {group.terms.samples} sessions; name another group")
        session = Session(name, group, self._clock())
        self._groups[group_name] = group
        self._sessions[name] = group.sessions[name] = session
        return session

    def _reply_of(self, name: str) -> FinishedSession:
        ended = self._ended.get(name)
        if isinstance(ended, FinishedSession):
            return ended
        why = ended or "it is not open; a session begins with its first chat completion, and ends with the service"
        raise UserError(f"session {name[:200]}: {why}")

    def _reply(self, session: Session, step: int | None = None) -> FinishedSession:
        return FinishedSession(
            session=session.name,
            group=session.group.name,
            turns=session.turns,
            splits=len(session.parts) - 1,
            left_out=len(session.parts) - len(session.trained),
            waiting_for=session.group.missing,
            step=step,
        )

    def _close(self, group: SessionGroup, ended: dict[str, FinishedSession] | dict[str, str]) -> None:
        self._taken[group.name] = "it has ended"
        self._ended.update(ended)
        for session in list(group.sessions.values()):
            self._drop(session)

    def _drop(self, session: Session) -> None:
        self._sessions.pop(session.name, None)
        session.group.sessions.pop(session.name, None)
        if not session.group.sessions:
            self._groups.pop(session.group.name, None)

    def _expire(self) -> None:
        """Drops the sessions without a request for IDLE_SECONDS; a finished one waits as long as its group is used."""
        oldest = self._clock() - IDLE_SECONDS
        for session in list(self._sessions.values()):
            used = [session] if not session.finished else list(session.group.sessions.values())
            if all(each.touched < oldest and not each.sampling for each in used):
                self._ended[session.name] = f"it expired after {IDLE_SECONDS:g} s without a request"
                SESSIONS_EXPIRED.inc()
                log.warning("session %s of group %s: %s", session.name, session.group.name, self._ended[session.name])
                self._drop(session)
