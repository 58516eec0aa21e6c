"""The queue lane's executor: runs one job, with the realtime lane's own caller, and says what became of it.

::

    wait while another runs it -> acquire -> call, renewing the lease -> result
                                     |                 |
                 GONE: dropped       |                 | cancelled, expired: stopped, and charged what was produced
                 WAIT, away: later <-+                 +-> ended by somebody else: dropped

It settles nothing: whoever gets the result publishes it, says so to the store, then settles or voids, so that of two
results of one job one counts. Cancelling ``execute`` releases the job: its lease ends, and another delivery runs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from penstock.errors import InvalidRequest, StoreUnavailable
from penstock.lanes.bodies import error_body
from penstock.lanes.calling import Caller
from penstock.lanes.executing_call import Ending, ModelCall, Sleep, Translations
from penstock.lanes.executing_lease import JobLease, Stop, acquire_call, is_left_alone
from penstock.lanes.jobs import Job, JobResult, JobStatus, read_job
from penstock.lanes.models import ServedModel
from penstock.lanes.tracing import traceparent_of
from penstock.ports import Clock, Observer, QuotaStore, RequestRecord, Tracer
from penstock.quota.operations import (
    Done,
    Duplicate,
    Gone,
    Invalid,
    Look,
    Never,
    NotReady,
    Reassert,
    Run,
    Seen,
    State,
    Wait,
)

AWAY_MS: Final = 1_000
REBUILT_MS: Final = 90_000
"""What was lost is rebuilt within a lease and a little; who is unknown for longer must not keep a place from others."""
NOT_READY_MAX: Final = 1_000
"""Organisations that the store was not ready for, and that are remembered."""
ELSEWHERE_MS: Final = 5_000

CANCELLED_STATUS: Final = 499
EXPIRED_STATUS: Final = 504

ACQUIRED: Final = "job-acquired"  # the store counts it as running, and no model knows it
ANSWERED: Final = "job-answered"  # the model has worked, and nobody has been told
CRASH_POINTS: Final = (ACQUIRED, ANSWERED)
"""Points between two steps at which tests end the process; ``reached`` is told each."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The job ended: publish the result, then tell the store that it is published, then settle."""

    result: JobResult


@dataclass(frozen=True, slots=True)
class Dropped:
    """The job has ended elsewhere, was cancelled or expired: acknowledge the message, and do nothing else."""


@dataclass(frozen=True, slots=True)
class Later:
    """Nothing was done, or nothing that counts: bring the same message again after ``retry_after_ms``.

    ``is_limited``: it is the organisation's own limits that refuse; others may run meanwhile.
    """

    retry_after_ms: int
    reason: str
    is_limited: bool = False


@dataclass(frozen=True, slots=True)
class Poison:
    """The message can never be understood: reject it, so that it is looked at."""

    reason: str


Outcome = Finished | Dropped | Later | Poison


class Executor:
    """Runs jobs, as many at once as it is asked to.

    Args:
        caller: The one of this process, since it knows which servers work.
        models: By the name that clients use.
        translations: Of the routes in ``penstock.lanes.jobs.TRANSLATED``.
        is_alone: No other process runs jobs, so a lease that is still held was this one's before it died.
        sleep: Waits so many seconds; tests pass their own.
        tracer: Goes on with the traces of jobs; None where nothing is traced.
        reached: Called at each crash point.
    """

    def __init__(
        self,
        quota: QuotaStore,
        caller: Caller,
        clock: Clock,
        models: Mapping[str, ServedModel],
        *,
        observer: Observer,
        translations: Translations,
        is_alone: bool = False,
        sleep: Sleep = asyncio.sleep,
        tracer: Tracer | None = None,
        reached: Callable[[str], None] | None = None,
    ) -> None:
        self._quota = quota
        self._is_alone = is_alone
        self._caller = caller
        self._clock = clock
        self._models = models
        self._observer = observer
        self._translations = translations
        self._sleep = sleep
        self._tracer = tracer
        self._reached = reached
        self._not_ready_since_ms: dict[str, int] = {}

    async def execute(self, message: bytes | Job, traceparent: str | None = None) -> Outcome:
        """Run one job to its end, or say what else is to be done with its message. Raises nothing on purpose.

        Args:
            traceparent: Of whoever brought it, if it belongs to a trace.
        """
        try:
            job = message if isinstance(message, Job) else read_job(message)
        except ValueError as error:
            return Poison(f"this is no job: {error}")
        try:
            if not (self._is_alone or await is_left_alone(self._quota, self._clock, job, self._sleep)):
                return Later(ELSEWHERE_MS, "another executor works on it")
            outcome = await self._acquire(job)
        except StoreUnavailable as error:
            return Later(error.retry_after_ms, error.message)
        except ValueError as error:
            return Poison(f"the quota store refuses it: {error}")
        if outcome is not None:
            return outcome
        self._reach(ACQUIRED)
        outcome = await self._run(job, traceparent)
        self._reach(ANSWERED)
        return outcome

    def _reach(self, point: str) -> None:
        if self._reached is not None:
            self._reached(point)

    async def _acquire(self, job: Job) -> Outcome | None:
        """Claim the job; None if it may run."""
        answer = await self._quota.apply(acquire_call(job, self._clock.now_ms()))
        if isinstance(answer, NotReady):
            return self._not_ready(job)
        self._not_ready_since_ms.pop(job.organisation, None)
        match answer:
            case Run():
                return None
            case Wait(retry_after_ms):
                return Later(retry_after_ms, "its limits, or the store, let it run later", is_limited=True)
            case Gone():
                return await self._claim_again(job)
            case Never(limit):
                return Finished(self._result(job, _never(limit), attempts=0, started_at_ms=0))
            case Invalid(why):
                return Poison(f"the quota store refuses it: {why}")
            case _:
                return Later(AWAY_MS, f"the quota store is not ready: {type(answer).__name__}")

    async def _claim_again(self, job: Job) -> Outcome | None:
        """Claim a job of which the store knows nothing; None if it takes that back, and the job may run.

        What ended is remembered until its deadline. So one that is unknown before that is in the end of a history that
        was lost with no loss of the rest, such as what was not on the disk yet; its acceptance was told to a client.
        """
        now_ms = self._clock.now_ms()
        by: dict[str, Any] = {"organisation": job.organisation, "caller_now_ms": now_ms}
        seen = await self._quota.apply(Look(**by, reservation=job.job))
        if isinstance(seen, NotReady):  # lost since it answered that the job is gone: that says nothing any more
            return self._not_ready(job)
        if isinstance(seen, Seen):
            is_told = seen.state is State.OPEN and not (seen.published or seen.cancelled)
            return Later(AWAY_MS, "the quota store was told of it again meanwhile") if is_told else Dropped()
        again = Reassert(**by, arguments=job.reserve, acquired=True, prompt=0, completion=0, renewed_at_ms=now_ms)
        answer = await self._quota.apply(again)
        if isinstance(answer, NotReady):
            return self._not_ready(job)
        is_claimed = answer in (Done(), Duplicate(State.OPEN))  # the second: to an attempt whose first answer was lost
        return None if is_claimed else Dropped()

    def _not_ready(self, job: Job) -> Outcome:
        """The store lost the organisation and is given it back by the keeper; or there is none, as time tells."""
        now_ms = self._clock.now_ms()
        if now_ms > job.reserve.job_deadline_ms:
            return Poison("its deadline has passed, and the quota store does not know its organisation")
        if len(self._not_ready_since_ms) >= NOT_READY_MAX:
            self._not_ready_since_ms.clear()
        since_ms = self._not_ready_since_ms.setdefault(job.organisation, now_ms)
        reason = "the quota store is not ready for its organisation"
        return Later(AWAY_MS, reason, is_limited=now_ms - since_ms > REBUILT_MS)

    async def _run(self, job: Job, traceparent: str | None) -> Outcome:
        """Call the model until there is an answer or a reason to stop."""
        started_at_ms = self._clock.now_ms()
        record = RequestRecord(
            request_id=job.request_id, route=job.route, lane="queue", organisation=job.organisation,
            key=job.reserve.key, model=job.model, reservation=job.job, received_at_s=self._clock.monotonic_s(),
            waited_ms=max(0, started_at_ms - job.accepted_at_ms),
        )  # fmt: skip
        if self._tracer is not None:
            record.trace = self._tracer.begin(record, traceparent or traceparent_of(job.reserve.nonce))
        self._observer.started(record)
        try:
            ending = await self._ended(job, record)
            if ending is None:
                record.outcome = "dropped"
                return Dropped()
            _note(record, ending)
            return Finished(self._result(job, ending, attempts=record.attempts, started_at_ms=started_at_ms))
        except asyncio.CancelledError:
            record.outcome = "released"
            raise
        finally:
            record.total_ms = (self._clock.monotonic_s() - record.received_at_s) * 1000
            self._observer.finished(record)

    async def _ended(self, job: Job, record: RequestRecord) -> Ending | None:
        """How the job ended; None if somebody else ended it."""
        model = self._models.get(job.model)
        if model is None:
            message = f"the model {job.model[:200]!r} is not served any more; send the request with another"
            body = error_body(message, "model_not_found")
            return Ending(status=JobStatus.FAILED, http_status=404, body=body, reason=message)
        try:
            call = ModelCall(job, model, self._caller, self._clock, record, self._sleep, self._translations)
        except InvalidRequest as error:  # what it was accepted for has changed since
            body = error_body(error.message, error.code or "invalid_request")
            return Ending(status=JobStatus.FAILED, http_status=400, body=body, reason=error.message)
        lease = JobLease(self._quota, self._clock, job, call.progress, self._sleep)
        answering, keeping = asyncio.create_task(call.answer()), asyncio.create_task(lease.keep())
        try:
            await asyncio.wait((answering, keeping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (answering, keeping):
                task.cancel()
            await asyncio.wait((answering, keeping))
        if not answering.cancelled():
            return answering.result()
        return _stopped(keeping.result(), call)

    def _result(self, job: Job, ending: Ending, *, attempts: int, started_at_ms: int) -> JobResult:
        return JobResult(
            job=job.job,
            organisation=job.organisation,
            model=job.model,
            status=ending.status,
            http_status=ending.http_status,
            body=msgspec.Raw(ending.body),
            reason=ending.reason,
            usage=ending.usage,
            attempts=attempts,
            started_at_ms=started_at_ms,
            finished_at_ms=self._clock.now_ms(),
            arguments=job.reserve,
        )


def _never(limit: str) -> Ending:
    message = f"{limit}: its cap was lowered below what the job needs; raise it, or send less"
    return Ending(
        status=JobStatus.FAILED, http_status=400, body=error_body(message, "larger_than_limit"), reason=message
    )


def _stopped(stop: Stop, call: ModelCall) -> Ending | None:
    if stop is Stop.GONE:
        return None
    if stop is Stop.NEVER:
        return _never("a limit")
    if stop is Stop.CANCELLED:
        return Ending(
            status=JobStatus.CANCELLED, http_status=CANCELLED_STATUS, reason="cancelled while it ran", usage=call.usage
        )
    reason = "its deadline passed while it ran" + (f"; before that: {call.last_error}" if call.last_error else "")
    return Ending(status=JobStatus.EXPIRED, http_status=EXPIRED_STATUS, reason=reason, usage=call.usage)


def _note(record: RequestRecord, ending: Ending) -> None:
    record.status = ending.http_status
    if ending.status is not JobStatus.SUCCEEDED:
        record.outcome = "upstream_error" if ending.status is JobStatus.FAILED else ending.status.value
        record.error = ending.reason
    usage = ending.usage
    if usage is not None:
        record.prompt_tokens, record.cached_tokens = usage.prompt, usage.cached
        record.completion_tokens = usage.completion
        record.usage_source = usage.source.value
