"""The grader pool: a bounded number of worker processes, and one wall-clock deadline for each item.

An item that exceeds the deadline gets TIMEOUT and its worker is killed; an item that crashes its worker gets
GRADER_ERROR. Other items are not affected, because a warm spare replaces the worker. Items that strings and plain
numbers decide never leave this process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from cepo.answers.kinds import Reference
from cepo.errors import UserError
from cepo.messages.groups import Outcome, Verdict
from cepo.service.metrics import verdicts
from services.verifier.functions import Call
from services.verifier.grader import Comparison, Finding
from services.verifier.verdicts import Item, Question, question
from services.verifier.worker import Worker

_log = logging.getLogger(__name__)
DEADLINE_SECONDS = 5.0
MEMORY_BYTES = 2**30
MAX_SPARES = 4
"""Upper bound on warm spares, of which there is one per worker: no item waits for the start of a replacement."""


@dataclass(frozen=True)
class Failure:
    """Why there is no finding."""

    outcome: Outcome
    reason: str


class GraderPool:
    """Grades items with worker processes. It is an async context manager; use it from one event loop."""

    def __init__(
        self,
        workers: int = 2,
        deadline_seconds: float = DEADLINE_SECONDS,
        memory_bytes: int = MEMORY_BYTES,
        functions: Sequence[str] = (),
    ) -> None:
        """Creates the pool; `start` starts its processes.

        Args:
            workers: items that are graded at the same time.
            deadline_seconds: wall-clock limit for one item.
            memory_bytes: address-space limit of one worker process.
            functions: the reward functions, `module:function`, that items may use.
        """
        self.functions = tuple(functions)
        self._deadline_seconds = deadline_seconds
        self._counters = verdicts()
        count = workers + min(workers, MAX_SPARES)
        self._workers = [Worker(deadline_seconds, memory_bytes, self.functions) for _ in range(count)]
        self._idle: asyncio.LifoQueue[Worker] = asyncio.LifoQueue()
        self._slots = asyncio.Semaphore(workers)
        self._revivals: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> None:
        """Starts the workers and waits until they are warm.

        Raises:
            RuntimeError: a process does not start.
            UserError: a reward function cannot be loaded.
        """
        try:
            for worker in self._workers:
                await worker.start()
                self._idle.put_nowait(worker)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kills every worker."""
        self._closed = True
        for revival in self._revivals:
            revival.cancel()
        for worker in self._workers:
            worker.kill()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def grade(self, items: Sequence[Item]) -> list[Verdict]:
        """Returns one verdict per item, in order. Equal questions are compared once.

        Raises:
            UserError: a reference holds no answer, or a kind is unknown; no item was graded.
        """
        references: dict[tuple[str, str], Reference] = {}
        for item in items:
            if (item.answer, item.kind) not in references:
                references[item.answer, item.kind] = Reference.of(item.answer, item.kind)
        questions = [question(item, references[item.answer, item.kind]) for item in items]
        distinct = list({q: None for q in questions if isinstance(q, Question)})
        verdicts = dict(zip(distinct, await asyncio.gather(*map(self._judge, distinct)), strict=True))
        results = [verdicts[q] if isinstance(q, Question) else q for q in questions]
        for verdict in results:
            self._counters[verdict.outcome].inc()
        return results

    async def _judge(self, asked: Question) -> Verdict:
        decided = asked.decide()
        if decided is not None:
            return asked.judged(decided)
        reply = await self.ask(asked.comparison())
        return asked.verdict(reply.outcome, reply.reason) if isinstance(reply, Failure) else asked.found(reply)

    async def ask(self, asked: Comparison | Call) -> Finding | Failure:
        """Runs a comparison or a reward function in a worker."""
        what = "comparing" if isinstance(asked, Comparison) else f"reward function {asked.function}"
        try:
            finding = await self._run(asked)
        except TimeoutError:
            return Failure(Outcome.TIMEOUT, f"{what} took longer than {self._deadline_seconds:g} s")
        except (EOFError, OSError):
            return Failure(Outcome.GRADER_ERROR, f"{what} killed the grader")
        if finding.error:
            return Failure(Outcome.GRADER_ERROR, f"{what} failed with {finding.error}{finding.detail}")
        return finding

    async def _run(self, asked: Comparison | Call) -> Finding:
        async with self._slots:
            worker = await self._idle.get()
            try:
                return await worker.run(asked)
            finally:
                self._retire(worker)

    def _retire(self, worker: Worker) -> None:
        """Returns a worker to the idle queue; starts its process again first if the item killed it."""
        if worker.pid is not None:
            self._idle.put_nowait(worker)
            return
        revival = asyncio.create_task(self._revive(worker))
        self._revivals.add(revival)
        revival.add_done_callback(self._revivals.discard)

    async def _revive(self, worker: Worker) -> None:
        try:
            await worker.start()
        except (RuntimeError, OSError, UserError) as error:
            if not self._closed:
                _log.warning("%s; the next item tries again", error)
        self._idle.put_nowait(worker)
