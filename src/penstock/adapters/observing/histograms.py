"""A histogram that costs one bisection per value: plain integers, read out only when Prometheus asks.

The client library's own takes a lock for each bucket and each sum; the request's path has no time for that.
"""

from __future__ import annotations

from bisect import bisect_left

DURATION_BOUNDS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""OpenTelemetry's advice for gen_ai.client.operation.duration."""

FIRST_TOKEN_BOUNDS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""OpenTelemetry's advice for gen_ai.server.time_to_first_token."""

INTER_TOKEN_BOUNDS_S = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
QUEUE_WAIT_BOUNDS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21600.0)
RESERVE_BOUNDS_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
COMMIT_BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)

TOKEN_BOUNDS = tuple(float(4**power) for power in range(14))
"""OpenTelemetry's advice for gen_ai.client.token.usage: 1, 4, 16 ... 67,108,864."""

COMMIT_EVENT_BOUNDS = tuple(float(2**power) for power in range(12))


class Histogram:
    """Counts of values at or below each bound.

    Example:
        >>> histogram = Histogram((1.0, 2.0))
        >>> for value in (0.5, 1.0, 1.5, 9.0):
        ...     histogram.observe(value)
        >>> histogram.cumulative(), histogram.total
        ([('1.0', 2), ('2.0', 3), ('+Inf', 4)], 12.0)
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: Histogram) -> None:
        """Count everything that ``other`` counted; its bounds must be the same."""
        assert self.bounds == other.bounds
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def cumulative(self) -> list[tuple[str, int]]:
        """What Prometheus wants: (upper bound, how many at or below it), "+Inf" last."""
        result, running = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            result.append((bound, running))
        return result
