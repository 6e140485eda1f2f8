"""The graders: a bounded number of worker processes and one wall-clock deadline per item.

An item that outlives the deadline costs its worker and gets TIMEOUT; one that kills its worker gets GRADER_ERROR;
no other item notices. What strings and plain numbers decide never leaves this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Self

from prometheus_client import Counter

from cepo.contracts import Outcome, Verdict
from services.verifier.verdicts import Item, Question, question
from services.verifier.worker import Worker

VERDICTS = Counter("cepo_verdicts_total", "Verdicts by outcome", ["outcome"])
DEADLINE_SECONDS = 5.0
MEMORY_BYTES = 2 * 2**30


class GraderPool:
    """An async context manager; use it from one event loop."""

    def __init__(
        self, workers: int = 2, deadline_seconds: float = DEADLINE_SECONDS, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self._deadline_seconds = deadline_seconds
        self._workers = [Worker(deadline_seconds, memory_bytes) for _ in range(workers)]
        self._idle: asyncio.LifoQueue[Worker] = asyncio.LifoQueue()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that run."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    async def start(self) -> None:
        """Starts the workers and waits until they are warm."""
        try:
            for worker in self._workers:
                await worker.start()
                self._idle.put_nowait(worker)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kills every worker."""
        for worker in self._workers:
            worker.kill()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def grade(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, in order; equal questions are asked once.

        Raises:
            UserError: a reference holds no answer, or a kind is unknown; nothing was graded.
        """
        questions = [question(item) for item in items]
        distinct = list({q: None for q in questions if isinstance(q, Question)})
        verdicts = dict(zip(distinct, await asyncio.gather(*map(self._judge, distinct)), strict=True))
        found = [verdicts[q] if isinstance(q, Question) else q for q in questions]
        for verdict in found:
            VERDICTS.labels(verdict.outcome.name.lower()).inc()
        return found

    async def _judge(self, asked: Question) -> Verdict:
        decided = asked.decide()
        if decided is not None:
            return asked.judged(decided)
        worker = await self._idle.get()
        try:
            finding = await worker.compare(asked.comparison())
        except TimeoutError:
            return asked.verdict(Outcome.TIMEOUT, f"comparing took longer than {self._deadline_seconds:g} s")
        except (EOFError, OSError):
            return asked.verdict(Outcome.GRADER_ERROR, "the grader died comparing it")
        finally:
            self._idle.put_nowait(worker)
        if finding.error:
            return asked.verdict(Outcome.GRADER_ERROR, f"the grader failed with {finding.error}")
        return asked.found(finding)
