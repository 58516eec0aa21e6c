"""What models were asked for of late: how fast work arrives, and how much of a hold is used in the end.

Fed with the ledger's events as the keeper writes them, so that nothing has to be read again; begun from the ledger when
a keeper becomes active. Work is counted as capacity is: completion tokens, or the prompt's where nothing is completed
(embeddings).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isqrt
from typing import Final

from penstock.quota.events import Event, EventKind
from penstock.quota.operations import Lane

BUCKET_MS: Final = 10_000
REMEMBERED_MS: Final = 900_000
ARRIVALS_BUCKETS: Final = 12
"""Two minutes, without the one that is not over yet."""
JOBS_MIN: Final = 20
"""From so many ended jobs on, their share of what they held is believed."""
PERMILLE: Final = 1_000
PERMILLE_MAX: Final = 2_000


@dataclass(slots=True)
class Passed:
    """What ended in one stretch of time, of one model: work in tokens, and what the queue lane's jobs had held."""

    realtime_work: int = 0
    queue_work: int = 0
    queue_held: int = 0
    queue_jobs: int = 0

    def add(self, other: Passed) -> None:
        """Both."""
        self.realtime_work += other.realtime_work
        self.queue_work += other.queue_work
        self.queue_held += other.queue_held
        self.queue_jobs += other.queue_jobs


class Flow:
    """The last quarter of an hour, in stretches of ten seconds.

    Example:
        >>> flow = Flow()
        >>> flow.add("m", at_ms=100_000, passed=Passed(realtime_work=1_200))
        >>> flow.arrivals("m", now_ms=115_000)  # 1,200 tokens in one of twelve stretches of ten seconds
        (10, 33)
    """

    def __init__(self) -> None:
        self._passed: dict[str, dict[int, Passed]] = {}

    def clear(self) -> None:
        """Forget all: what passed while nobody listened is not known."""
        self._passed.clear()

    def note(self, events: Iterable[Event]) -> None:
        """Take in what was written to the ledger."""
        for event in events:
            if event.kind is EventKind.POSTED:
                work = event.usage.completion or event.usage.prompt
                passed = Passed(queue_work=work, queue_held=event.tokens_held, queue_jobs=1)
                if event.lane != Lane.QUEUE:
                    passed = Passed(realtime_work=work)
                self.add(event.model, at_ms=event.occurred_at_ms, passed=passed)

    def add(self, model: str, *, at_ms: int, passed: Passed) -> None:
        """Take in what passed around a moment, Unix milliseconds."""
        buckets = self._passed.setdefault(model, {})
        bucket = at_ms // BUCKET_MS
        if bucket in buckets:
            buckets[bucket].add(passed)
            return
        buckets[bucket] = passed
        oldest = max(buckets) - REMEMBERED_MS // BUCKET_MS
        for each in [each for each in buckets if each < oldest]:
            del buckets[each]

    def arrivals(self, model: str, *, now_ms: int) -> tuple[int, int]:
        """Mean and standard deviation of the realtime lane's work, in tokens per second."""
        buckets, last = self._passed.get(model, {}), now_ms // BUCKET_MS - 1
        work = [
            buckets[each].realtime_work if each in buckets else 0 for each in range(last, last - ARRIVALS_BUCKETS, -1)
        ]
        mean = sum(work) // ARRIVALS_BUCKETS
        variance = sum((each - mean) ** 2 for each in work) // ARRIVALS_BUCKETS
        return mean * 1_000 // BUCKET_MS, isqrt(variance) * 1_000 // BUCKET_MS

    def used_permille(self, model: str, *, now_ms: int) -> int:
        """How much of 1,000 held tokens jobs turned out to use; 1,000 while too few have ended to know."""
        oldest = (now_ms - REMEMBERED_MS) // BUCKET_MS
        total = Passed()
        for bucket, passed in self._passed.get(model, {}).items():
            if bucket >= oldest:
                total.add(passed)
        if total.queue_jobs < JOBS_MIN or not total.queue_held:
            return PERMILLE
        return max(1, min(PERMILLE_MAX, total.queue_work * PERMILLE // total.queue_held))
