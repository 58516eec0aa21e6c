"""Deleting what has been kept long enough: jobs, their results, and answers for idempotency keys."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, and_, case, delete, func, select

from penstock.adapters.sql.definition_tables import organisations
from penstock.adapters.sql.erasing import IS_OF_JOB, erase_again
from penstock.adapters.sql.job_tables import jobs, results
from penstock.ports import JobState, Kept

_job, _result = jobs.c, results.c
_FINAL = tuple(state.value for state in JobState if state.is_final)


def forget_jobs(connection: Connection, *, now_ms: int, kept: Kept) -> int:
    """Delete jobs that ended long enough ago, with their results, unless a charge is still on its way; tells how many.

    What was erased goes as well, if it has arrived since.

    Args:
        kept: For organisations that have no retention of their own.
    """
    erase_again(connection)
    answers_ms = _own_or(organisations.c.answers_ms, _result.organisation, kept.answers_ms)
    results_ms = _own_or(organisations.c.results_ms, _result.organisation, kept.results_ms)
    due = _result.finished_at_ms < now_ms - case((IS_OF_JOB, results_ms), else_=answers_ms)
    connection.execute(delete(results).where(_result.settled.is_(True), due))
    old = and_(
        _job.finished_at_ms > 0,
        _job.finished_at_ms < now_ms - _own_or(organisations.c.results_ms, _job.organisation, kept.results_ms),
        _job.state.in_(_FINAL),
        _job.id.not_in(select(_result.job)),
    )
    return connection.execute(delete(jobs).where(old)).rowcount


def _own_or(own: ColumnElement[int | None], organisation: ColumnElement[str], kept_ms: int) -> ColumnElement[int]:
    """An organisation's own retention, or everybody's."""
    found = select(own).where(organisations.c.name == organisation).scalar_subquery()
    return func.coalesce(found, kept_ms)
