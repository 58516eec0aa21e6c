"""The queue lane of one process: the table, the executor beside the realtime lane, and what keeps the table small."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from penstock.adapters.embedded.committing import CommitObserver
from penstock.adapters.sql.job_store import SqlJobs
from penstock.api.responses import TRANSLATIONS
from penstock.config import Configuration
from penstock.errors import StoreUnavailable
from penstock.lanes.accepting import QueueAcceptor
from penstock.lanes.executing import Executor
from penstock.lanes.queueing import Queue
from penstock.lanes.realtime import RealtimeLane
from penstock.lanes.settling import RetryInProcess, Settling
from penstock.ports import Clock, Kept, Observer, QuotaStore, Tracer, WorkQueue
from penstock.quota.events import Event
from penstock.quota.operations import Lane

FORGET_EVERY_S = 5.0
RUNNING_S = 5.0  # what still runs then runs again after the next start

_log = logging.getLogger(__name__)


class CommitNotices:
    """Tells those who wait for a job that a commit may have changed it, and passes each commit on."""

    def __init__(self, observer: CommitObserver, jobs: SqlJobs) -> None:
        self._observer = observer
        self._jobs = jobs

    def committed(self, events: Sequence[Event], duration_s: float) -> None:
        """A group is on the disk."""
        self._observer.committed(events, duration_s)
        for event in events:
            if event.lane == Lane.QUEUE:
                self._jobs.tell(event.reservation)

    def commit_failed(self) -> None:
        """A group could not be committed."""
        self._observer.commit_failed()


@asynccontextmanager
async def embedded_queue(
    configuration: Configuration,
    jobs: SqlJobs,
    quota: QuotaStore,
    lane: RealtimeLane,
    *,
    organisations: Iterable[str],
    clock: Clock,
    observer: Observer,
    tracer: Tracer | None,
    reached: Callable[[str], None],
) -> AsyncIterator[QueueAcceptor]:
    """What accepts jobs into this process's queue, which runs them meanwhile.

    Raises:
        StoreUnavailable: What an earlier process left cannot be read.
    """
    settings = configuration.queue
    executor = Executor(
        quota, lane.caller, clock, lane.models,
        observer=observer, translations=TRANSLATIONS, is_alone=True, tracer=tracer,
    )  # fmt: skip
    queue = Queue(quota, jobs, executor.execute, clock, concurrency=settings.concurrency, reached=reached)
    retries = RetryInProcess(quota)
    settling = Settling(quota, retries)
    acceptor = QueueAcceptor(
        quota,
        jobs,
        queue,
        settling,
        clock,
        lane.models,
        deadline_ms=settings.deadline_ms,
        random_bits=random.Random(secrets.randbits(256)).getrandbits,
        reached=reached,
    )
    await queue.start(organisations)
    forgetting = asyncio.create_task(forget(jobs, clock, kept=Kept(settings.results_ms, settings.answers_ms)))
    try:
        yield acceptor
    finally:
        forgetting.cancel()
        await asyncio.wait([forgetting])
        await acceptor.close()
        await queue.close(wait_s=RUNNING_S)
        await settling.close()
        await retries.close()


async def forget(jobs: WorkQueue, clock: Clock, *, kept: Kept) -> None:
    """Delete jobs and results that have been kept long enough, every few seconds, until cancelled."""
    while True:
        try:
            count = await jobs.forget(now_ms=clock.now_ms(), kept=kept)
            if count:
                _log.info("old jobs deleted", extra={"count": count})
        except StoreUnavailable as error:
            _log.warning("old jobs stay for now", extra={"why": error.message})
        await asyncio.sleep(FORGET_EVERY_S)
