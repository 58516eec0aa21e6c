"""Which of a model's servers takes the next request: the least busy one that works. A circuit breaker for each.

Pure: time is an argument, in seconds that never go back. Each server::

    healthy --failures--> ejected --its time passed: one request tries it--> healthy | ejected, twice as long
    (closed)              (open)                     (half-open)

Failures are three in a row, or half of its last 20 requests, of 10 at least: a server that fails every other request
never fails three times in a row.

A failure is a connection that fails, a 5xx, a timeout or a broken answer. Where all are ejected the one whose time
passes first is tried anyway: refusing without trying would turn a short fault into a longer one.

Asking a second server has a budget: a fifth of the requests of late. While all are failing, the ones that are left must
not get twice the load.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

FAILURES_MAX: Final = 3
SEEN_MIN: Final = 10
SEEN_MOST: Final = 20
EJECTED_FIRST_S: Final = 1.0
EJECTED_MOST_S: Final = 60.0
RETRY_COST: Final = 5
RETRIES_MOST: Final = 10
_SEEN: Final = (1 << SEEN_MOST) - 1


class Verdict(Enum):
    """What a call showed of its server."""

    WORKED = "worked"
    FAILED = "failed"
    NOTHING = "nothing"  # the client left first


@dataclass(slots=True)
class _Standing:
    weight: int
    in_flight: int = 0
    turn: int = 0
    failures: int = 0
    of_late: int = 0  # one bit for each of the last 20 requests: it failed
    seen: int = 0
    ejected_s: float = 0.0  # 0: healthy
    ejected_until_s: float = 0.0
    being_tried: bool = False


def _note(standing: _Standing, *, failed: bool) -> None:
    standing.of_late = (standing.of_late << 1 | failed) & _SEEN
    standing.seen = min(SEEN_MOST, standing.seen + 1)


def _fails_often(standing: _Standing) -> bool:
    return standing.seen >= SEEN_MIN and 2 * standing.of_late.bit_count() >= standing.seen


class RetryBudget:
    """How many requests may be sent a second time: a fifth of those sent, and ten at once."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = RETRIES_MOST * RETRY_COST

    def earn(self) -> None:
        """A request was sent."""
        if self._left < RETRIES_MOST * RETRY_COST:
            self._left += 1

    def spend(self) -> bool:
        """Whether one may be sent a second time; counts it."""
        if self._left < RETRY_COST:
            return False
        self._left -= RETRY_COST
        return True


class Balance:
    """The standing of one model's servers, in the order given."""

    def __init__(self, weights: Sequence[int]) -> None:
        self._standings = [_Standing(weight) for weight in weights]

    def pick(self, *, now_s: float, avoid: Collection[int] = ()) -> int | None:
        """Choose a server and count a request in flight to it; None if all are to be avoided."""
        standings = self._standings
        left = [index for index in range(len(standings)) if index not in avoid] if avoid else range(len(standings))
        if not left:
            return None
        chosen = left[0] if len(left) == 1 else self._choose(left, now_s)
        standing = standings[chosen]
        standing.in_flight += 1
        standing.being_tried = standing.ejected_s > 0
        return chosen

    def done(self, index: int, verdict: Verdict, *, now_s: float) -> bool | None:
        """The request is over. True if this made the server healthy, False if it ejected it, None if neither."""
        standing = self._standings[index]
        standing.in_flight -= 1
        tried = standing.ejected_s > 0
        standing.being_tried = False
        if verdict is Verdict.WORKED:
            standing.failures = 0
            standing.ejected_s = 0.0
            if standing.of_late or standing.seen < SEEN_MIN:
                _note(standing, failed=False)
            return True if tried else None
        if verdict is Verdict.FAILED:
            standing.failures += 1
            _note(standing, failed=True)
            if tried or standing.failures >= FAILURES_MAX or _fails_often(standing):
                standing.of_late = standing.seen = 0
                standing.ejected_s = min(EJECTED_MOST_S, standing.ejected_s * 2) if tried else EJECTED_FIRST_S
                standing.ejected_until_s = now_s + standing.ejected_s
                return None if tried else False
        return None

    def _choose(self, left: Sequence[int], now_s: float) -> int:
        standings = self._standings
        usable = [index for index in left if self._is_usable(standings[index], now_s)]
        if not usable:
            return min(left, key=lambda index: standings[index].ejected_until_s)
        return usable[0] if len(usable) == 1 else self._least_busy(usable)

    @staticmethod
    def _is_usable(standing: _Standing, now_s: float) -> bool:
        return standing.ejected_s == 0 or (now_s >= standing.ejected_until_s and not standing.being_tried)

    def _least_busy(self, usable: list[int]) -> int:
        least = min(self._standings[index].in_flight for index in usable)
        equal = [index for index in usable if self._standings[index].in_flight == least]
        if len(equal) == 1:
            return equal[0]
        for index in equal:  # smooth weighted round robin, as in nginx
            self._standings[index].turn += self._standings[index].weight
        chosen = max(equal, key=lambda index: self._standings[index].turn)
        self._standings[chosen].turn -= sum(self._standings[index].weight for index in equal)
        return chosen
