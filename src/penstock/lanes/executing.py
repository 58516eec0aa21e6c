"""The queue lane's executor: runs one job, with the realtime lane's own caller, and says what became of it.

::

    look -> acquire -> call, renewing the lease -> result          the collector settles, or the embedded queue
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.lanes.jobs import JobResult


@dataclass(frozen=True, slots=True)
class Finished:
    """The job ended: publish the result, then tell the store that it is published, then settle."""

    result: JobResult


@dataclass(frozen=True, slots=True)
class Dropped:
    """The job has ended elsewhere, was cancelled or expired: acknowledge the message, and do nothing else."""


@dataclass(frozen=True, slots=True)
class Later:
    """Nothing was done, or nothing that counts: bring the same message again after ``retry_after_ms``."""

    retry_after_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class Poison:
    """The message can never be understood: reject it, so that it is looked at."""

    reason: str


Outcome = Finished | Dropped | Later | Poison
