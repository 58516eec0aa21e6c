"""How many replicas of a model server a load wants: the arithmetic of scaling, pure, in one place.

``penstock plan`` simulates with it, the keeper publishes what it says for each model, and ``penstock check
--explain-scaling`` shows it. All of it in tokens, since they are what a model server's time goes into.

::

    queue lane     R1 = max over dues d of  tokens due by d / (tokens per second x 0.8 x time left until d)
    realtime lane  R2 = (arriving tokens per second + 2 x their deviation) / (tokens per second x 0.8)
    cache          R3 = replicas x KV-cache use / 0.8
    wanted = max(ceil(R1 + R2), ceil(R3)), and never below or above the pool's bounds

Work that waits has a due of its own: its acceptance plus the objective's ``drain``, and its job's deadline. Time
left until a deadline is counted without a cold start, in which a new replica does nothing. The 0.8 is headroom for
what the formulas do not know: uneven lengths, batches that are not full, the next request.

Scaling out follows the load at once. Scaling in goes one replica at a time, and only if the load would fit into one
less at 0.7 instead of 0.8; so a load that stays is never answered by two numbers in turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

PERMILLE: Final = 1_000
USED_PERMILLE: Final = 800
"""Of a replica's speed that is counted on when scaling out."""
USED_AFTER_IN_PERMILLE: Final = 700
"""Of it that one replica less may come to."""
DEVIATIONS: Final = 2
"""How many standard deviations above their mean arrivals are prepared for."""
OVERDUE_DIVISOR: Final = 4
"""Overdue work counts as due after a quarter of ``drain``: it wants many replicas, not infinitely many. Until it is
done, none is taken away."""
REPLICAS_MAX: Final = 10_000


class Cause(StrEnum):
    """What a number of replicas came from."""

    BACKLOG = "backlog"
    DEADLINE = "deadline"
    ARRIVALS = "arrivals"
    CACHE = "cache"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    SCALE_IN = "scale-in"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The replicas of one model server: what each can do, and how many there may be.

    Args:
        tokens_per_second: Of one replica, over all its requests.
        cold_start_ms: From asking for a replica until it serves.
        drain_ms: How soon after its acceptance a job should be done.
        replicas_min: Never fewer; 0 lets it be switched off.
        replicas_max: Never more.

    Raises:
        ValueError: Bounds that no pool can have.
    """

    tokens_per_second: int
    cold_start_ms: int
    drain_ms: int
    replicas_min: int
    replicas_max: int

    def __post_init__(self) -> None:
        if self.tokens_per_second < 1 or self.drain_ms < 1 or self.cold_start_ms < 0:
            raise ValueError("a pool has a speed of 1 token/s or more, a drain of 1 ms or more, a cold start >= 0")
        if not 0 <= self.replicas_min <= self.replicas_max <= REPLICAS_MAX or self.replicas_max < 1:
            bounds = f"{self.replicas_min} to {self.replicas_max}"
            raise ValueError(f"a pool has 0 <= min <= max replicas, 1 <= max <= {REPLICAS_MAX}; found {bounds}")


@dataclass(frozen=True, slots=True)
class _Margin:
    """How far a replica is filled, and how close a due may come before it counts as being that close."""

    used_permille: int
    nearest_due_ms: int


def _scaling_out(pool: Pool) -> _Margin:
    return _Margin(USED_PERMILLE, max(1, pool.drain_ms // OVERDUE_DIVISOR))


_SCALING_IN: Final = _Margin(USED_AFTER_IN_PERMILLE, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Work of the queue lane with the same two dues.

    Args:
        tokens: Expected, of jobs that wait or run.
        objective_in_ms: Until the objective wants it done; negative: it is late already.
        deadline_in_ms: Until the jobs expire.
    """

    tokens: int
    objective_in_ms: int
    deadline_in_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a pool has to do.

    Args:
        backlog: Of the queue lane, in any order.
        arrivals_per_second: Tokens of the realtime lane, mean.
        arrivals_deviation: Their standard deviation, in tokens per second.
        cache_permille: Mean KV-cache use of the replicas that there are; None if nobody says.
    """

    backlog: tuple[Due, ...] = ()
    arrivals_per_second: int = 0
    arrivals_deviation: int = 0
    cache_permille: int | None = None

    @property
    def backlog_tokens(self) -> int:
        """All of the backlog."""
        return sum(due.tokens for due in self.backlog)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A number of replicas, and how it came about.

    Args:
        replicas: What there should be now.
        wanted: What the load alone wants, within no bounds.
        cause: The term that decided.
        backlog_permille: Replicas x 1000 that the objective wants for the backlog.
        deadline_permille: The same for the jobs' deadlines.
        arrivals_permille: The same for what arrives.
        cache: Whole replicas that the cache wants.
        is_short: The pool's maximum is below what the load wants: dues will be missed.
    """

    replicas: int
    wanted: int
    cause: Cause
    backlog_permille: int
    deadline_permille: int
    arrivals_permille: int
    cache: int
    is_short: bool


def decide(pool: Pool, load: Load, *, replicas: int) -> Decision:
    """The replicas that a load wants.

    Args:
        replicas: How many there are, or were last asked for.
    """
    margin = _scaling_out(pool)
    backlog, deadline = _by_objective(pool, load, margin), _by_deadline(pool, load, margin)
    arrivals = _by_arrivals(pool, load, margin)
    cache = _by_cache(load, replicas, margin)
    flow = _ceil(max(backlog, deadline) + arrivals, PERMILLE)
    wanted = max(flow, cache)
    if wanted < replicas:
        chosen, cause = _scaled_in(pool, load, replicas)
    else:
        chosen, cause = wanted, _cause(backlog, deadline, arrivals, cache, flow)
    if chosen < pool.replicas_min:
        chosen, cause = pool.replicas_min, Cause.MINIMUM
    if chosen > pool.replicas_max:
        chosen, cause = pool.replicas_max, Cause.MAXIMUM
    return Decision(
        replicas=chosen,
        wanted=wanted,
        cause=cause,
        backlog_permille=backlog,
        deadline_permille=deadline,
        arrivals_permille=arrivals,
        cache=cache,
        is_short=wanted > pool.replicas_max,
    )


def workers(*, replicas: int, concurrency: int, jobs: int, jobs_at_once: int) -> int:
    """Workers of the queue lane: enough to keep the model servers busy, and none for jobs that do not exist.

    Args:
        replicas: Of the model server.
        concurrency: Requests that one replica works on at once.
        jobs: That wait or run.
        jobs_at_once: Of one worker.
    """
    return _ceil(min(jobs, max(replicas, 1) * concurrency), jobs_at_once)


def _by_objective(pool: Pool, load: Load, margin: _Margin) -> int:
    return _steepest(pool, [(due.objective_in_ms, due.tokens) for due in load.backlog], margin)


def _by_deadline(pool: Pool, load: Load, margin: _Margin) -> int:
    return _steepest(pool, [(due.deadline_in_ms - pool.cold_start_ms, due.tokens) for due in load.backlog], margin)


def _steepest(pool: Pool, left: list[tuple[int, int]], margin: _Margin) -> int:
    """Replicas x 1000 for the due that asks for most: everything due until then, in the time until then."""
    counted = pool.tokens_per_second * margin.used_permille
    tokens = most = 0
    for left_ms, more in sorted(left):
        tokens += more
        # tokens / (speed x used/1000 x left_ms/1000) x 1000
        most = max(most, _ceil(tokens * PERMILLE**3, counted * max(left_ms, margin.nearest_due_ms)))
    return most


def _by_arrivals(pool: Pool, load: Load, margin: _Margin) -> int:
    per_second = load.arrivals_per_second + DEVIATIONS * load.arrivals_deviation
    return _ceil(per_second * PERMILLE**2, pool.tokens_per_second * margin.used_permille)


def _by_cache(load: Load, replicas: int, margin: _Margin) -> int:
    return 0 if load.cache_permille is None else _ceil(replicas * load.cache_permille, margin.used_permille)


def _scaled_in(pool: Pool, load: Load, replicas: int) -> tuple[int, Cause]:
    """One less, if everything fits into that with room; else what there is."""
    margin = _SCALING_IN
    flow = max(_by_objective(pool, load, margin), _by_deadline(pool, load, margin)) + _by_arrivals(pool, load, margin)
    fits = max(_ceil(flow, PERMILLE), _by_cache(load, replicas, margin)) <= replicas - 1
    return (replicas - 1 if fits else replicas), Cause.SCALE_IN


def _cause(backlog: int, deadline: int, arrivals: int, cache: int, flow: int) -> Cause:
    if cache > flow:
        return Cause.CACHE
    if arrivals >= max(backlog, deadline):
        return Cause.ARRIVALS
    return Cause.DEADLINE if deadline > backlog else Cause.BACKLOG


def _ceil(amount: int, by: int) -> int:
    return -(-amount // by)
