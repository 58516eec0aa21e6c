"""The queue lane in one process: takes jobs from the table and runs them, a bounded number at once.

::

    waiting --a place is free--> running --Finished--> result kept --> settled --> out of the queue
       ^                            |----Dropped (cancelled, expired)----------------^
       '--Later, after its time-----'

Jobs of an organisation for a model are a line, and begin in the order of their acceptance, but for those that a rate
makes wait: others pass them, up to a few; then the line stands still until the first of these comes again. A place that
becomes free goes to the model that runs least, and of its lines to the one that runs least and had its last turn
longest ago: however many jobs one organisation has, another's waits for one of them at most, and one of each other.

What a kill between two steps costs: nothing. A job stays in the table until its result is settled; whether it has a
result is the first thing asked of it, so that what was answered is not asked of a model again, and what is settled
twice is charged once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Final

import msgspec

from penstock.errors import StoreUnavailable
from penstock.lanes.executing import Dropped, Finished, Later, Outcome, Poison
from penstock.lanes.jobs import JobResult
from penstock.lanes.settling import apply_ending
from penstock.ports import Clock, JobState, QueuedJob, QuotaStore, StoredResult, WorkQueue
from penstock.quota.operations import Done, Duplicate, Inspect, Inspected, Lane, Settle, Settled, Void

log = logging.getLogger("penstock.lanes")

STORE_RETRY_S: Final = 1.0
BUG_RETRY_S: Final = 30.0
LIMITED_MOST: Final = 8
"""Jobs of one line that wait for their time; with more, each would be asked for again and again in vain."""

RESERVED: Final = "job-reserved"  # the quota holds it, the table does not know it
QUEUED: Final = "job-queued"  # it is safe, and nobody has been told
RESULT_KEPT: Final = "job-result-kept"
SETTLED: Final = "job-settled"
REMOVED: Final = "job-removed"
CRASH_POINTS: Final = (RESERVED, QUEUED, RESULT_KEPT, SETTLED, REMOVED)
"""Points between two steps at which the kill test ends the process; ``reached`` is told each."""

Execute = Callable[[bytes], Awaitable[Outcome]]


def unnoticed(_point: str) -> None:
    """Do nothing at a crash point."""


@dataclass(slots=True)
class _Line:
    """One organisation's jobs for one model: those that wait, by place; how many run, and wait for their time."""

    model: str
    waiting: list[tuple[int, QueuedJob]] = field(default_factory=list)
    running: int = 0
    limited: int = 0
    turn: int = 0


class Queue:
    """Runs the jobs of one process.

    Args:
        execute: Runs one job message; cancelled, it stops the work and leaves the job to be run again.
        concurrency: Jobs at once.
        later: Calls back after some seconds; by default the event loop does.
        reached: Called at each crash point.
    """

    def __init__(
        self,
        quota: QuotaStore,
        work: WorkQueue,
        execute: Execute,
        clock: Clock,
        *,
        concurrency: int,
        later: Callable[[float, Callable[[], None]], Any] | None = None,
        reached: Callable[[str], None] = unnoticed,
    ) -> None:
        self._quota = quota
        self._work = work
        self._execute = execute
        self._clock = clock
        self._concurrency = concurrency
        self._later = later
        self._reached = reached
        self._lines: dict[tuple[str, str], _Line] = {}
        self._by_model: Counter[str] = Counter()  # how many run
        self._turn = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[Any] = set()
        self._is_open = False
        self.failures = 0

    @property
    def waiting(self) -> int:
        """How many jobs wait for a place or for their time."""
        return sum(len(line.waiting) for line in self._lines.values()) + len(self._timers)

    @property
    def running(self) -> int:
        """How many jobs run."""
        return len(self._tasks)

    async def start(self, organisations: Iterable[str]) -> None:
        """Take up what an earlier process left: queued jobs go on, and holds that were never queued are voided.

        Args:
            organisations: Those that are served; jobs of others stay in the table until theirs is served again.

        Raises:
            StoreUnavailable: The database does not work.
        """
        waiting = await self._work.waiting()
        known = {each.job for each in waiting}
        served = frozenset(organisations)
        for organisation in sorted(served):
            now_ms = self._clock.now_ms()
            standing = await self._quota.apply(Inspect(organisation=organisation, caller_now_ms=now_ms))
            holds = standing.holds if isinstance(standing, Inspected) else ()
            for hold in holds:
                if hold.lane == Lane.QUEUE and hold.reservation not in known:
                    await self._void(organisation, hold.reservation, "it was never accepted")
        self._is_open = True
        for each in waiting:
            if each.organisation in served:
                self._wait(each)

    async def put(self, job: str, organisation: str, model: str, message: bytes) -> None:
        """Add a job that is reserved; durable when it returns. Raises ``StoreUnavailable``."""
        self._wait(await self._work.put(job, organisation, model, message))

    async def close(self, *, wait_s: float) -> None:
        """Begin nothing more; what still runs after ``wait_s`` is stopped, and runs again after the next start."""
        self._is_open = False
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=wait_s)
        stopped = tuple(self._tasks)
        for task in stopped:
            task.cancel()
        await asyncio.gather(*stopped, return_exceptions=True)

    # --- who is next -----------------------------------------------------------------------------------------

    def _wait(self, entry: QueuedJob) -> None:
        line = self._lines.setdefault((entry.organisation, entry.model), _Line(entry.model))
        heappush(line.waiting, (entry.place, entry))
        self._fill()

    def _fill(self) -> None:
        while self._is_open and len(self._tasks) < self._concurrency:
            lines = [line for line in self._lines.values() if line.waiting and line.limited < LIMITED_MOST]
            if not lines:
                return
            line = min(lines, key=self._rank)
            _, entry = heappop(line.waiting)
            self._turn += 1
            line.turn = self._turn
            line.running += 1
            self._by_model[line.model] += 1
            task = asyncio.get_running_loop().create_task(self._run(entry, line), name=f"job-{entry.job}")
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _rank(self, line: _Line) -> tuple[int, int, int, int]:
        """The least is next."""
        return self._by_model[line.model], line.running, line.turn, line.waiting[0][0]

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._fill()

    def _again(self, entry: QueuedJob, line: _Line, wait_s: float) -> None:
        """Let it wait for its time, then for a place."""
        timer: Any = None

        def ready() -> None:
            self._timers.discard(timer)
            line.limited -= 1
            self._wait(entry)

        if self._is_open:
            line.limited += 1
            timer = (self._later or asyncio.get_running_loop().call_later)(wait_s, ready)
            self._timers.add(timer)

    # --- one job ---------------------------------------------------------------------------------------------

    async def _run(self, entry: QueuedJob, line: _Line) -> None:
        try:
            wait_s = await self._step(entry)
        except StoreUnavailable as error:
            log.warning("a job waits for the store", extra={"reservation": entry.job, "why": error.message})
            wait_s = STORE_RETRY_S
        except Exception:
            self.failures += 1
            log.exception("job %s: a bug stopped it; it is tried again in %g s", entry.job, BUG_RETRY_S)
            wait_s = BUG_RETRY_S
        finally:
            line.running -= 1
            self._by_model[line.model] -= 1
        if wait_s is not None:
            self._again(entry, line, wait_s)

    async def _step(self, entry: QueuedJob) -> float | None:
        """Bring a job as far as it goes; seconds until it can go on, or None at its end."""
        kept = await self._work.result(entry.job)
        if kept is None:
            message = await self._work.message(entry.job)
            if message is None:  # erased while it waited; one that ended before stays as it ended
                await self._void(entry.organisation, entry.job, "erased")
            match Dropped() if message is None else await self._execute(message):
                case Finished(result):
                    kept = await self._work.store(_stored(result))
                    self._reached(RESULT_KEPT)
                case Later(retry_after_ms):
                    return retry_after_ms / 1000
                case Poison(reason):
                    log.error("a job cannot be understood", extra={"reservation": entry.job, "why": reason})
                    await self._void(entry.organisation, entry.job, reason)
                case Dropped():
                    pass
        if kept is not None:
            await self._settle(kept)
            self._reached(SETTLED)
        await self._work.remove(entry.job)
        self._reached(REMOVED)
        return None

    async def _settle(self, kept: StoredResult) -> None:
        """Charge what the result that won says; again and again does no harm."""
        if kept.usage is None:
            await self._void(kept.organisation, kept.job, kept.reason or kept.state.value)
            return
        settle = Settle(
            organisation=kept.organisation,
            caller_now_ms=self._clock.now_ms(),
            reservation=kept.job,
            usage=kept.usage,
        )
        answer = await apply_ending(self._quota, settle)
        if not isinstance(answer, Settled | Duplicate):
            raise StoreUnavailable(f"the quota store does not settle the job: {answer}")

    async def _void(self, organisation: str, job: str, reason: str) -> None:
        void = Void(organisation=organisation, caller_now_ms=self._clock.now_ms(), reservation=job, reason=reason)
        answer = await apply_ending(self._quota, void)
        if not isinstance(answer, Done | Duplicate):
            raise StoreUnavailable(f"the quota store does not void the job: {answer}")


def _stored(result: JobResult) -> StoredResult:
    body = bytes(result.body)
    return StoredResult(
        job=result.job,
        organisation=result.organisation,
        model=result.model,
        route=result.arguments.route,
        state=JobState(result.status.value),
        http_status=result.http_status,
        body=None if body in (b"", b"null") else body.decode(),
        reason=result.reason,
        usage=result.usage,
        attempts=result.attempts,
        started_at_ms=result.started_at_ms,
        finished_at_ms=result.finished_at_ms,
        arguments=msgspec.to_builtins(result.arguments),
    )
