"""What waits and runs in the queue lane, and what passed of late: sums, each found by an index.

The same on SQLite and PostgreSQL. ``ix_jobs_open`` has the jobs that are not over, and no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from penstock.lanes.waiting import OpenJobs
from penstock.quota.events import EventKind

# Jobs that are due at about the same time go together: by acceptance to a second or the twentieth part of the shortest
# objective, by deadline to the minute, or the hour if it is far. Of each group the earliest counts.
_OPEN: Final = text(
    """
    SELECT model, state, count(*) AS jobs, sum(tokens_held) AS tokens_held,
        min(CASE WHEN created_at_ms = 0 THEN NULL ELSE created_at_ms END) AS created_at_ms,
        min(CASE WHEN deadline_ms = 0 THEN NULL ELSE deadline_ms END) AS deadline_ms
    FROM jobs WHERE state IN ('queued', 'running')
    GROUP BY model, state, CASE WHEN created_at_ms < :since_ms THEN :since_ms ELSE created_at_ms END / :width_ms,
        CASE WHEN deadline_ms < :soon_ms THEN deadline_ms / 60000 ELSE -(deadline_ms / 3600000) END
    """
)
_SOON_MS: Final = 3_600_000

_PASSED: Final = text(
    """
    SELECT model, lane, occurred_at_ms / :width_ms * :width_ms AS at_ms, count(*) AS requests,
        sum(CASE WHEN completion_tokens > 0 THEN completion_tokens ELSE prompt_tokens END) AS work,
        sum(tokens_held) AS tokens_held
    FROM ledger
    WHERE organisation IN (SELECT name FROM organisations) AND occurred_at_ms >= :since_ms
        AND kind = :kind
    GROUP BY model, lane, occurred_at_ms / :width_ms
    """
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedRow:
    """What was charged in one stretch of time: ``work`` is completion tokens, or the prompt's where there are none."""

    model: str
    lane: str
    at_ms: int
    requests: int
    work: int
    tokens_held: int


def open_jobs(connection: Connection, *, now_ms: int, oldest_ms: int, width_ms: int) -> list[OpenJobs]:
    """Every job that waits or runs, in groups.

    Args:
        oldest_ms: Jobs that are older than this go together, whatever their age.
        width_ms: Of a group's acceptances.
    """
    asked = {"since_ms": now_ms - oldest_ms, "width_ms": width_ms, "soon_ms": now_ms + _SOON_MS}
    return [
        OpenJobs(
            model=row.model,
            is_running=row.state == "running",
            jobs=int(row.jobs),
            tokens_held=int(row.tokens_held),
            created_at_ms=row.created_at_ms or 0,
            deadline_ms=row.deadline_ms or 0,
        )
        for row in connection.execute(_OPEN, asked)
    ]


def passed_since(connection: Connection, *, since_ms: int, width_ms: int) -> list[PassedRow]:
    """What ended since, in stretches of ``width_ms``."""
    asked = {"since_ms": since_ms, "width_ms": width_ms, "kind": EventKind.POSTED.value}
    return [
        PassedRow(
            model=row.model,
            lane=row.lane,
            at_ms=int(row.at_ms),
            requests=int(row.requests),
            work=int(row.work),
            tokens_held=int(row.tokens_held),
        )
        for row in connection.execute(_PASSED, asked)
    ]
