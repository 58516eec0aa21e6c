"""What clients may know of a job, and do to it: one look at where the queue lane's two memories agree.

The quota store knows a job from its first moment and while it is open; the database knows it a moment later, and
alone knows how it ended. So the database decides every final state, and the quota store what is still open.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Final, NamedTuple

from penstock.errors import Conflict, NotFound, StoreUnavailable
from penstock.ports import Clock, JobQuery, Jobs, JobState, QuotaStore, StoredJob
from penstock.quota.identity import created_at_ms
from penstock.quota.operations import Cancel, Done, Lane, Look, NotReady, Seen, State

LOOK_EVERY_S: Final = 1.0  # at the latest: a notice may be lost
ALIVE_EVERY_S: Final = 15.0
CANCELLED_KNOWN_S: Final = 3.0  # how long the database may take to hear of a cancelled job


class JobEvent(NamedTuple):
    """One step of a job's life; ``number`` is 1 for queued, 2 for running, 3 for the end."""

    number: int
    job: StoredJob


class Following:
    """Looks, lists, waits and cancels, always within one organisation.

    Args:
        is_stopping: The service is going to end: nobody waits any longer.
    """

    def __init__(
        self, jobs: Jobs, quota: QuotaStore, clock: Clock, *, is_stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._jobs = jobs
        self._quota = quota
        self._clock = clock
        self._is_stopping = is_stopping

    async def get(self, organisation: str, job: str) -> StoredJob:
        """One job.

        Raises:
            NotFound: The organisation has none of this id.
            StoreUnavailable: Quota store or database do not answer.
        """
        known = await self._jobs.get(organisation, job)
        if known is not None and known.state.is_final:
            return known
        seen = await self._quota.apply(
            Look(organisation=organisation, caller_now_ms=self._clock.now_ms(), reservation=job)
        )
        found = None
        if isinstance(seen, Seen) and seen.lane == Lane.QUEUE and (known is None or seen.state is State.OPEN):
            found = _merged(known or _only_seen(organisation, job, seen), seen)
        found = found or known  # one that has ended stays as it was until the database knows how
        if found is None:
            if isinstance(seen, NotReady):
                raise StoreUnavailable("the quota store is not ready; try again")
            raise NotFound("there is no such job, or it is not yours", code="job_not_found")
        return found

    async def list(self, query: JobQuery) -> list[StoredJob]:
        """A page of jobs without bodies, newest first. Raises ``StoreUnavailable``."""
        return list(await self._jobs.list(query))

    async def wait(self, organisation: str, job: str, wait_s: float) -> StoredJob:
        """The job once it has ended, or as it stands after ``wait_s``. Raises like ``get``."""
        ends_s = self._clock.monotonic_s() + wait_s
        with self._jobs.watch(job) as watch:
            while True:
                found = await self.get(organisation, job)
                left_s = ends_s - self._clock.monotonic_s()
                if found.state.is_final or left_s <= 0 or self._is_stopping():
                    return found
                await watch.changed(min(left_s, LOOK_EVERY_S))

    async def events(self, organisation: str, job: str, *, after: int = 0) -> AsyncIterator[JobEvent | None]:
        """Each step of its life from ``after`` on, past ones first, until the end; None where it has been quiet.

        Raises:
            NotFound: The job was forgotten meanwhile. Otherwise like ``get``.
        """
        told, quiet_since_s = after, self._clock.monotonic_s()
        with self._jobs.watch(job) as watch:
            while not self._is_stopping():
                for step in steps(await self.get(organisation, job)):
                    if step.number > told:
                        told, quiet_since_s = step.number, self._clock.monotonic_s()
                        yield step
                if told >= 3:
                    return
                if self._clock.monotonic_s() - quiet_since_s >= ALIVE_EVERY_S:
                    quiet_since_s = self._clock.monotonic_s()
                    yield None
                await watch.changed(LOOK_EVERY_S)

    async def cancel(self, organisation: str, job: str) -> StoredJob:
        """Cancel it: one that waits ends at once, one that runs is stopped within seconds, and charged until then.

        Raises:
            Conflict: It has ended already.
            NotFound: The organisation has none of this id.
        """
        found = await self.get(organisation, job)
        if found.state.is_final:
            raise _ended(found)
        call = Cancel(organisation=organisation, caller_now_ms=self._clock.now_ms(), reservation=job)
        with self._jobs.watch(job) as watch:
            answer = await self._quota.apply(call)
            if isinstance(answer, NotReady):
                raise StoreUnavailable("the quota store is not ready; try again")
            ends_s = self._clock.monotonic_s() + CANCELLED_KNOWN_S
            while True:
                found = await self.get(organisation, job)
                if found.state.is_final or found.cancel_requested or self._clock.monotonic_s() >= ends_s:
                    break
                await watch.changed(LOOK_EVERY_S / 4)
        if found.state.is_final and not isinstance(answer, Done):
            raise _ended(found)
        return found


def steps(job: StoredJob) -> list[JobEvent]:
    """What a job has been through, each step as it looked then."""
    waiting = replace(
        job, state=JobState.QUEUED, started_at_ms=0, finished_at_ms=0, usage=None, cost_nanos=None, reason="",
        http_status=0, body=None, cancel_requested=False,
    )  # fmt: skip
    found = [JobEvent(1, waiting)]
    if job.state is JobState.RUNNING or job.started_at_ms:
        found.append(JobEvent(2, replace(waiting, state=JobState.RUNNING, started_at_ms=job.started_at_ms)))
    if job.state.is_final:
        found.append(JobEvent(3, job))
    return found


def _merged(known: StoredJob, seen: Seen) -> StoredJob:
    """A job as the quota store sees it: open, or ended a moment ago, and how is not known here yet."""
    state = JobState.RUNNING if seen.running or seen.published else JobState.QUEUED
    return replace(known, state=state, cancel_requested=seen.cancelled)


def _only_seen(organisation: str, job: str, seen: Seen) -> StoredJob:
    return StoredJob(
        id=job,
        organisation=organisation,
        team=None,
        key=seen.key,
        model=seen.model,
        state=JobState.RUNNING if seen.started else JobState.QUEUED,
        created_at_ms=created_at_ms(job),
        deadline_ms=seen.job_deadline_ms,
    )


def _ended(job: StoredJob) -> Conflict:
    return Conflict(
        f"the job has ended already, as {job.state.value}: there is nothing to cancel; GET /v1/jobs/{job.id} shows it",
        code="job_finished",
    )
