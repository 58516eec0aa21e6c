"""Removing stored texts at once: prompts that wait, results, and answers kept for idempotency keys.

An erasure is remembered, so that a result which an executor was still working on is removed as well when it arrives:
whoever tidies the database asks again. Figures stay: the ledger, rolled-up usage, and when each job began and ended.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, exists, func, not_, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from penstock.adapters.sql.audit_log import record
from penstock.adapters.sql.definition_tables import erasures, organisations
from penstock.adapters.sql.job_tables import jobs, queued_jobs, results
from penstock.adapters.sql.tables import ledger
from penstock.errors import NotFound
from penstock.lanes.administering import By

_FINAL = ("succeeded", "failed", "cancelled", "expired")
_erasure, _job, _result, _queued = erasures.c, jobs.c, results.c, queued_jobs.c

IS_OF_JOB = exists(select(_job.id).where(_job.id == _result.job))
"""Of a row of results; the others are answers to requests with an idempotency key."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed, and the jobs that have not ended: they are to be cancelled."""

    prompts: int
    results: int
    answers: int
    unfinished: tuple[str, ...]
    ledger_rows: int


def erase(connection: Connection, organisation: str, job: str | None, by: By) -> Removed:
    """Remember the erasure, and remove what is here.

    Raises:
        NotFound: The organisation has no such job.
    """
    if job is not None and not _knows(connection, organisation, job):
        raise NotFound("there is no such job, or it is not yours", code="job_not_found")
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    kept = insert(erasures).values(organisation=organisation, job=job or "", erased_at_ms=by.now_ms)
    connection.execute(
        kept.on_conflict_do_update(index_elements=["organisation", "job"], set_={"erased_at_ms": by.now_ms})
    )
    waiting = 0
    if connection.dialect.name == "sqlite":  # in a cluster prompts wait in the broker
        of_job = _queued.job == job if job is not None else _queued.job.is_not(None)
        waiting = connection.execute(delete(queued_jobs).where(_queued.organisation == organisation, of_job)).rowcount
    of_job = _result.job == job if job is not None else _result.job.is_not(None)
    mine = and_(_result.organisation == organisation, of_job)
    answers = _remove(connection, and_(mine, not_(IS_OF_JOB)))
    count = _remove(connection, mine)
    unfinished = select(_job.id).where(_job.organisation == organisation, _job.state.not_in(_FINAL))
    billed = select(func.count()).select_from(ledger).where(ledger.c.organisation == organisation)
    if job is not None:
        unfinished = unfinished.where(_job.id == job)
        billed = billed.where(ledger.c.reservation == job)
    removed = Removed(
        waiting,
        count,
        answers,
        tuple(connection.execute(unfinished).scalars()),
        connection.execute(billed).scalar_one(),
    )
    record(
        connection,
        at_ms=by.now_ms,
        actor=by.actor,
        action="erase",
        organisation=organisation,
        subject=job or f"organisation {organisation}",
        before={"prompts": waiting, "results": count, "answers": answers, "unfinished": len(removed.unfinished)},
        after=None,
    )
    return removed


def erase_again(connection: Connection) -> int:
    """Remove results that arrived after their erasure; tells how many."""
    of_job = and_(_erasure.organisation == _result.organisation, _erasure.job == _result.job)
    of_all = and_(
        _erasure.organisation == _result.organisation,
        _erasure.job == "",
        or_(
            _result.started_at_ms <= _erasure.erased_at_ms,
            exists(select(_job.id).where(_job.id == _result.job, _job.created_at_ms <= _erasure.erased_at_ms)),
        ),
    )
    return _remove(connection, exists(select(_erasure.job).where(or_(of_job, of_all))))


def _remove(connection: Connection, which: ColumnElement[bool]) -> int:
    """Delete results; of one whose usage is not settled yet the text goes now, the row once its charge is made."""
    unsettled = and_(which, _result.settled.is_(False), or_(_result.body.is_not(None), _result.reason != ""))
    texts = connection.execute(update(results).where(unsettled).values(body=None, reason="")).rowcount
    return texts + connection.execute(delete(results).where(which, _result.settled.is_(True))).rowcount


def owner_of(connection: Connection, target: str) -> tuple[str, str | None]:
    """The organisation of this name, or the organisation that has a job of this id, and the job.

    Raises:
        NotFound: It is neither.
    """
    row = organisations.c
    if connection.execute(select(row.name).where(row.name == target)).first() is not None:
        return target, None
    found = [
        select(_job.organisation).where(_job.id == target),
        select(_result.organisation).where(_result.job == target),
    ]
    if connection.dialect.name == "sqlite":
        found.append(select(_queued.organisation).where(_queued.job == target))
    for each in found:
        owner = connection.execute(each).scalar()
        if owner is not None:
            return owner, target
    raise NotFound(f"{target} is neither an organisation nor a job that is still known; nothing was erased")


def _knows(connection: Connection, organisation: str, job: str) -> bool:
    found: tuple[Select[tuple[str]], ...] = (
        select(_job.id).where(_job.organisation == organisation, _job.id == job),
        select(_result.job).where(_result.organisation == organisation, _result.job == job),
        select(_queued.job).where(_queued.organisation == organisation, _queued.job == job),
    )
    if connection.dialect.name != "sqlite":
        found = found[:2]
    return any(connection.execute(each).first() is not None for each in found)


def stays(removed: Removed, *, is_cluster: bool) -> tuple[str, ...]:
    """What is left and why, in words."""
    told = [
        f"{removed.ledger_rows} rows of the ledger: figures for the bills (tokens, prices, times, key), and no text",
        "the audit log, which says that this was erased, and when",
    ]
    if is_cluster:
        told += [
            "messages of cancelled jobs in RabbitMQ, until a worker takes them and drops them, and dead letters until "
            "they are dealt with",
            "pages and write-ahead log of PostgreSQL, until vacuum and recycling overwrite what was freed",
        ]
    return (*told, "backups that were made before, until they are deleted")
