"""What waits and runs in the queue lane: jobs as the store groups them, and what they add up to by model. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenJobs:
    """Jobs of one model and state that are due at about the same time; times are of the earliest, 0 if not known.

    Args:
        is_running: They do not wait.
        tokens_held: By all of them.
    """

    model: str
    is_running: bool
    jobs: int
    tokens_held: int
    created_at_ms: int
    deadline_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What a model's queue holds at one instant.

    Args:
        backlog_tokens: Held by the jobs that wait.
        oldest_age_ms: Since the acceptance of the one that waits longest; 0 if none waits.
    """

    waiting_jobs: int = 0
    running_jobs: int = 0
    backlog_tokens: int = 0
    oldest_age_ms: int = 0


def by_model(jobs: Iterable[OpenJobs]) -> dict[str, list[OpenJobs]]:
    """The same jobs, by the model that they wait for."""
    found: dict[str, list[OpenJobs]] = defaultdict(list)
    for each in jobs:
        found[each.model].append(each)
    return dict(found)


def waiting_of(jobs: Iterable[OpenJobs], *, now_ms: int) -> Waiting:
    """Add up one model's open jobs."""
    waiting = running = tokens = age_ms = 0
    for each in jobs:
        if each.is_running:
            running += each.jobs
        else:
            waiting += each.jobs
            tokens += each.tokens_held
            age_ms = max(age_ms, now_ms - (each.created_at_ms or now_ms))
    return Waiting(waiting_jobs=waiting, running_jobs=running, backlog_tokens=tokens, oldest_age_ms=age_ms)
