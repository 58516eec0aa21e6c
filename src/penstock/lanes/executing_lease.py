"""Keeps one running job's claim: renews its lease, and notices whatever must stop it.

The realtime lane touches all its requests together; a job is touched alone, since so many more answers matter: it may
be cancelled, ended by somebody else, lost with the store's state, or given to another executor after a silence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

from penstock.errors import StoreUnavailable
from penstock.lanes.executing_call import Sleep
from penstock.lanes.jobs import Job
from penstock.ports import Clock, QuotaStore
from penstock.quota.operations import (
    Acquire,
    Cancelled,
    Duplicate,
    Gone,
    Look,
    Never,
    Reassert,
    Refused,
    Run,
    Seen,
    State,
    Touch,
    Touched,
    Unknown,
)

log = logging.getLogger("penstock.lanes")

TOUCH_EVERY_S: Final = 4.0
"""A job that is cancelled stops within 5 s, so it asks more often than that, also while nothing arrives."""
LOOK_EVERY_S: Final = 2.0
LOOK_MOST_S: Final = 20.0
SILENT_S: Final = 10.0
"""An executor whose lease was not renewed for so long has died: it would have touched twice."""
LEASE_S: Final = 60.0


class Stop(StrEnum):
    """Why a running job must stop."""

    CANCELLED = "cancelled"
    EXPIRED = "expired"
    GONE = "gone"  # somebody else ended it
    NEVER = "never"  # while it had lost its lease, a cap was lowered below it; it is voided


def acquire_call(job: Job, now_ms: int) -> Acquire:
    """The claim for ``job``: its reserve's arguments and epoch."""
    arguments: dict[str, Any] = {name: getattr(job.reserve, name) for name in job.reserve.__dataclass_fields__}
    return Acquire(**(arguments | {"caller_now_ms": now_ms, "epoch": job.epoch}))


class JobLease:
    """One job's lease, from its acquire.

    Args:
        progress: Prompt tokens if somebody counted them, else 0, and completion tokens so far.
    """

    def __init__(
        self, quota: QuotaStore, clock: Clock, job: Job, progress: Callable[[], tuple[int, int]], sleep: Sleep
    ) -> None:
        self._quota = quota
        self._clock = clock
        self._job = job
        self._progress = progress
        self._sleep = sleep
        self._note_renewed()

    async def keep(self) -> Stop:
        """Renew until the job must stop; what ends it otherwise cancels this."""
        while True:
            left_s = (self._job.reserve.job_deadline_ms - self._clock.now_ms()) / 1000
            if left_s <= 0:
                return Stop.EXPIRED
            await self._sleep(min(TOUCH_EVERY_S, left_s))
            try:
                stop = await self._renew()
            except StoreUnavailable as error:  # the next round tries again
                log.warning("a lease was not renewed", extra={"reservation": self._job.job, "why": error.message})
                stop = None
            if stop is not None:
                return stop

    async def _renew(self) -> Stop | None:
        prompt, completion = self._progress()
        touch = Touch(
            organisation=self._job.organisation,
            caller_now_ms=self._clock.now_ms(),
            reservation=self._job.job,
            prompt=prompt,
            completion=completion,
        )
        match await self._quota.apply(touch):
            case Touched():
                if self._clock.monotonic_s() - self._renewed_s >= LEASE_S:  # it returned to queued meanwhile
                    return await self._acquire()
                self._note_renewed()
            case Cancelled():
                return Stop.CANCELLED
            case Duplicate(state):
                return _ended(state)
            case Unknown():
                return await self._reassert(prompt, completion)
        return None

    async def _reassert(self, prompt: int, completion: int) -> Stop | None:
        """The store lost its state."""
        call = Reassert(
            organisation=self._job.organisation,
            caller_now_ms=self._clock.now_ms(),
            arguments=self._job.reserve,
            acquired=True,
            prompt=prompt,
            completion=completion,
            renewed_at_ms=self._renewed_at_ms,
        )
        answer = await self._quota.apply(call)
        if isinstance(answer, Refused):
            return await self._acquire()
        if isinstance(answer, Duplicate) and answer.state is not State.OPEN:
            return _ended(answer.state)
        return None

    async def _acquire(self) -> Stop | None:
        answer = await self._quota.apply(acquire_call(self._job, self._clock.now_ms()))
        if isinstance(answer, Gone):
            return Stop.GONE
        if isinstance(answer, Never):
            return Stop.NEVER
        if isinstance(answer, Run):
            self._note_renewed()
        return None

    def _note_renewed(self) -> None:
        self._renewed_s = self._clock.monotonic_s()
        self._renewed_at_ms = self._clock.now_ms()


def _ended(state: State) -> Stop:
    return Stop.EXPIRED if state is State.EXPIRED else Stop.GONE


async def is_left_alone(quota: QuotaStore, clock: Clock, job: Job, sleep: Sleep) -> bool:
    """Whether no executor renews the job's lease: a broker may bring a message again while the first one lives.

    Raises:
        StoreUnavailable: The store cannot be asked.
    """
    told, began_s = None, clock.monotonic_s()
    since_s = began_s
    while True:
        look = Look(organisation=job.organisation, caller_now_ms=clock.now_ms(), reservation=job.job)
        seen = await quota.apply(look)
        if not isinstance(seen, Seen) or not seen.running or seen.deadline_ms <= clock.now_ms():
            return True
        now_s = clock.monotonic_s()
        progress = seen.deadline_ms, seen.touched_prompt, seen.touched_completion
        if progress != told:
            told, since_s = progress, now_s
        if now_s - since_s >= SILENT_S:
            return True
        if now_s - began_s >= LOOK_MOST_S:
            return False
        await sleep(LOOK_EVERY_S)
