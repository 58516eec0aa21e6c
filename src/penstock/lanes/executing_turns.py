"""Whose job is next in one executor: places are shared evenly between organisations, whoever asked first or most.

::

    waiting for a place -> a place: the executor -> ended
          ^                    |
          '-- its time comes --+-- a limit refuses: the place is free again --> parked, if that takes long

A worker brings more jobs than may run at once, some of every organisation that has any. A place that becomes free goes
to the organisation that runs least; of equals, to the one whose last turn is longest ago. So a job that is the only one
of its organisation waits until as many jobs have ended as other organisations wait, and one, however much they have.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from penstock.lanes.executing import Later, Outcome, Poison
from penstock.lanes.executing_call import Sleep
from penstock.lanes.jobs import Job, read_job

PATIENCE_MS: Final = 1_000
"""A job that its limits refuse for longer leaves this process, and makes room for another of the same queue."""


class Turns:
    """Runs jobs, at most so many at once, and the rest in turn.

    Args:
        execute: Runs one job; see ``penstock.lanes.executing.Executor``.
        places: Jobs at once.
        sleep: Waits so many seconds; tests pass their own.
    """

    def __init__(
        self, execute: Callable[[Job, str | None], Awaitable[Outcome]], *, places: int, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._execute = execute
        self._free = places
        self._sleep = sleep
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the one with the oldest turn first

    async def execute(self, message: bytes, traceparent: str | None = None) -> Outcome:
        """Run one job when it is its turn, and again when its limits let it. Cancelled, it is released."""
        try:
            job = read_job(message)
        except ValueError as error:
            return Poison(f"this is no job: {error}")
        patience_ms = PATIENCE_MS
        while True:
            async with self._place(job.organisation):
                outcome = await self._execute(job, traceparent)
            if not isinstance(outcome, Later) or not outcome.is_limited or outcome.retry_after_ms > patience_ms:
                return outcome
            patience_ms -= outcome.retry_after_ms
            await self._sleep(outcome.retry_after_ms / 1000)

    @asynccontextmanager
    async def _place(self, organisation: str) -> AsyncIterator[None]:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(organisation, deque()).append(turn)
        self._give()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._running[organisation] -= 1
                self._free += 1
            self._running += Counter()  # forgets those that run nothing
            self._give()

    def _give(self) -> None:
        while self._free and self._waiting:
            organisation = min(self._waiting, key=self._running.__getitem__)
            turns = self._waiting.pop(organisation)
            turn = turns.popleft()
            if turns:
                self._waiting[organisation] = turns
            if not turn.cancelled():
                turn.set_result(None)
                self._running[organisation] += 1
                self._free -= 1
