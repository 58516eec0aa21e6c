"""Statements on the tables of the queue lane, the same on SQLite and PostgreSQL; each takes the caller's connection.

``project`` belongs into the transaction that writes the same events into the ledger, so that the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    RowMapping,
    Select,
    and_,
    case,
    func,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from penstock.adapters.sql.job_tables import jobs, queued_jobs, results
from penstock.adapters.sql.rows import month_of
from penstock.adapters.sql.tables import ledger
from penstock.ports import Attempt, JobQuery, JobState, StoredJob, StoredResult
from penstock.quota.events import CHARGING, Event, EventKind, Usage, UsageSource
from penstock.quota.operations import Lane

CANCELLED = "cancelled"  # the reason that the quota gives

_FINAL = tuple(state.value for state in JobState if state.is_final)
_job, _result, _charge = jobs.c, results.c, ledger.c
_DEFAULTS: dict[str, Any] = {"created_at_ms": 0, "started_at_ms": 0, "finished_at_ms": 0, "reason": ""}
_STATE: ColumnElement[str] = func.coalesce(_result.status, _job.state)
_CHARGES = [kind.value for kind in CHARGING]


def project(connection: Connection, events: Iterable[Event]) -> list[str]:
    """Carry the events of the queue lane over into ``jobs``; writing them twice changes nothing.

    Returns:
        The ids of the jobs that may have changed.
    """
    rows: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.lane == Lane.QUEUE:
            _fold(rows.setdefault(event.reservation, _row(event)), event)
    if rows:
        insert = postgresql.insert(jobs) if connection.dialect.name == "postgresql" else sqlite.insert(jobs)
        new = insert.excluded
        # one comparison for each state: a list would be expanded, which several rows at once do not allow
        stays = or_(*(_job.state == final for final in _FINAL), new.state == JobState.QUEUED.value)
        known = {
            name: case((_job[name] == 0, new[name]), else_=_job[name])
            for name in ("created_at_ms", "started_at_ms", "finished_at_ms", "tokens_held")
        }
        changes = {
            **known,
            "state": case((stays, _job.state), else_=new.state),
            "reason": case((_job.reason == "", new.reason), else_=_job.reason),
        }
        connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=changes), list(rows.values()))
    return list(rows)


def _row(event: Event) -> dict[str, Any]:
    return {
        "id": event.reservation,
        "organisation": event.organisation,
        "team": event.team,
        "key": event.key,
        "model": event.model,
        "state": JobState.QUEUED.value,
        "deadline_ms": event.job_deadline_ms,
        "tokens_held": event.tokens_held,
        **_DEFAULTS,
    }


def _fold(row: dict[str, Any], event: Event) -> None:
    match event.kind:
        case EventKind.RESERVED:
            row["created_at_ms"] = event.occurred_at_ms
        case EventKind.ACQUIRED:
            row["started_at_ms"] = row["started_at_ms"] or event.occurred_at_ms
            state = JobState.RUNNING
            row["state"] = row["state"] if row["state"] in _FINAL else state.value
        case _:
            if row["state"] not in _FINAL:
                row["state"] = _end_of(event).value
                row["finished_at_ms"] = event.occurred_at_ms
                row["reason"] = "" if event.kind in (EventKind.POSTED, EventKind.LATE) else event.reason


def _end_of(event: Event) -> JobState:
    if event.kind in (EventKind.POSTED, EventKind.LATE):
        return JobState.SUCCEEDED
    if event.reason == CANCELLED:
        return JobState.CANCELLED
    return JobState.EXPIRED if event.kind is EventKind.EXPIRED else JobState.FAILED


def get_job(connection: Connection, organisation: str, job: str) -> StoredJob | None:
    """One job with its body; None until its first event was projected."""
    statement = _select(with_body=True).where(_job.id == job, _job.organisation == organisation)
    found = connection.execute(statement).one_or_none()
    return None if found is None else _jobs(connection, organisation, [found])[0]


def list_jobs(connection: Connection, query: JobQuery) -> list[StoredJob]:
    """A page, newest first, without bodies."""
    wanted: list[ColumnElement[bool]] = [_job.organisation == query.organisation]
    if query.state is not None:
        wanted.append(_STATE.in_([query.state.value]))
    if query.models is not None:
        wanted.append(_job.model.in_(query.models))
    if query.created_from_ms is not None:
        wanted.append(_job.created_at_ms >= query.created_from_ms)
    if query.created_before_ms is not None:
        wanted.append(_job.created_at_ms < query.created_before_ms)
    if query.after is not None:
        wanted.append(tuple_(_job.created_at_ms, _job.id) < tuple_(*query.after))
    order = (_job.created_at_ms.desc(), _job.id.desc())
    statement = _select(with_body=False).where(and_(*wanted)).order_by(*order).limit(query.count_max)
    return _jobs(connection, query.organisation, connection.execute(statement).all())


def _select(*, with_body: bool) -> Select[Any]:
    columns = [_result.status, _result.http_status, _result.route, _result.reason.label("result_reason")]
    columns += [_result.finished_at_ms.label("result_at_ms"), _result.started_at_ms.label("run_at_ms")]
    columns += [_result[name] for name in ("prompt_tokens", "completion_tokens", "cached_tokens", "usage_source")]
    if with_body:
        columns.append(_result.body)
    joined = jobs.outerjoin(results, and_(_job.id == _result.job, _job.organisation == _result.organisation))
    return select(jobs, *columns).select_from(joined)


def _jobs(connection: Connection, organisation: str, rows: Sequence[Row[Any]]) -> list[StoredJob]:
    charges = _charges(connection, organisation, [row.id for row in rows])
    return [_to_job(row._mapping, charges.get(row.id)) for row in rows]


def _to_job(row: RowMapping, charge: tuple[Usage, int] | None) -> StoredJob:
    has_result = row["status"] is not None
    usage, cost_nanos = charge if charge is not None else (_result_usage(row), None)
    return StoredJob(
        id=row["id"],
        organisation=row["organisation"],
        team=row["team"],
        key=row["key"],
        model=row["model"],
        state=JobState(row["status"] if has_result else row["state"]),
        created_at_ms=row["created_at_ms"],
        deadline_ms=row["deadline_ms"],
        started_at_ms=row["started_at_ms"] or row["run_at_ms"] or 0,
        finished_at_ms=row["result_at_ms"] if has_result else row["finished_at_ms"],
        route=row["route"] or "",
        usage=usage,
        cost_nanos=cost_nanos,
        reason=row["result_reason"] if has_result else row["reason"],
        http_status=row["http_status"] or 0,
        body=row.get("body"),
    )


def _result_usage(row: RowMapping) -> Usage | None:
    """What a result asks to be charged; the ledger has it a moment later."""
    if row["usage_source"] is None:
        return None
    source = UsageSource(row["usage_source"])
    return Usage(row["prompt_tokens"], row["completion_tokens"], row["cached_tokens"], source)


def _charges(connection: Connection, organisation: str, ids: Sequence[str]) -> dict[str, tuple[Usage, int]]:
    """What the ledger charged for each: an expiry and what came late add up."""
    if not ids:
        return {}
    sums = [func.sum(_charge[name]) for name in ("prompt_tokens", "completion_tokens", "cached_tokens", "cost_nanos")]
    statement = (
        select(_charge.reservation, func.min(_charge.usage_source), *sums)
        .where(
            _charge.month.in_({month_of(each) for each in ids}),
            _charge.reservation.in_(ids),
            _charge.organisation == organisation,
            _charge.kind.in_(_CHARGES),
        )
        .group_by(_charge.reservation)
        .having(func.sum(_charge.requests) > 0)
    )
    return {
        job: (Usage(int(prompt), int(completion), int(cached), UsageSource(source)), int(cost_nanos))
        for job, source, prompt, completion, cached, cost_nanos in connection.execute(statement)
    }


def store_result(connection: Connection, result: StoredResult) -> bool:
    """Keep how a job ended. The first result wins; False if there was one already."""
    usage = result.usage
    row = {
        "job": result.job,
        "organisation": result.organisation,
        "model": result.model,
        "route": result.route,
        "status": result.state.value,
        "http_status": result.http_status,
        "body": result.body,
        "reason": result.reason,
        "prompt_tokens": None if usage is None else usage.prompt,
        "cached_tokens": None if usage is None else usage.cached,
        "completion_tokens": None if usage is None else usage.completion,
        "usage_source": None if usage is None else usage.source.value,
        "attempts": result.attempts,
        "started_at_ms": result.started_at_ms,
        "finished_at_ms": result.finished_at_ms,
        "arguments": result.arguments,
        "settled": False,
    }
    insert = postgresql.insert(results) if connection.dialect.name == "postgresql" else sqlite.insert(results)
    kept = connection.execute(insert.on_conflict_do_nothing().returning(_result.job), row)
    return kept.first() is not None


def get_result(connection: Connection, job: str) -> StoredResult | None:
    """The result that won."""
    row = connection.execute(select(results).where(_result.job == job)).one_or_none()
    return None if row is None else _to_result(row)


def _to_result(row: Row[Any]) -> StoredResult:
    return StoredResult(
        job=row.job,
        organisation=row.organisation,
        model=row.model,
        route=row.route,
        state=JobState(row.status),
        http_status=row.http_status,
        body=row.body,
        reason=row.reason,
        usage=_result_usage(row._mapping),
        attempts=row.attempts,
        started_at_ms=row.started_at_ms,
        finished_at_ms=row.finished_at_ms,
        arguments=row.arguments,
        settled=row.settled,
    )


def unsettled_answers(connection: Connection) -> list[StoredResult]:
    """Answers whose usage was not acknowledged, but for those of jobs: whoever runs the queue sees to these."""
    queued = select(queued_jobs.c.job)
    statement = select(results).where(_result.settled.is_(False), _result.job.not_in(queued))
    return [_to_result(row) for row in connection.execute(statement)]


def mark_settled(connection: Connection, job: str) -> None:
    """The quota store has acknowledged what the result charges."""
    connection.execute(update(results).where(_result.job == job).values(settled=True))


def last_attempt(connection: Connection, organisation: str, prefix: str) -> Attempt | None:
    """The newest of the reservations named ``prefix``, a hyphen and a number, as the ledger and the results know it."""
    statement = select(_charge.reservation, _charge.kind).where(
        _charge.month == month_of(prefix),
        _charge.reservation > f"{prefix}-",
        _charge.reservation < f"{prefix}.",
        _charge.organisation == organisation,
    )
    kinds: dict[int, set[str]] = {}
    for reservation, kind in connection.execute(statement):
        kinds.setdefault(int(reservation.removeprefix(f"{prefix}-")), set()).add(kind)
    stored = select(_result.job).where(
        _result.job > f"{prefix}-", _result.job < f"{prefix}.", _result.organisation == organisation
    )
    for job in connection.execute(stored).scalars():
        kinds.setdefault(int(job.removeprefix(f"{prefix}-")), set())  # stored, and not in the ledger yet
    if not kinds:
        return None
    number = max(kinds)
    job = f"{prefix}-{number}"
    ends = (EventKind.LATE, EventKind.POSTED, EventKind.EXPIRED, EventKind.VOIDED)
    result = get_result(connection, job)
    return Attempt(
        number=number,
        ended=next((kind for kind in ends if kind.value in kinds[number]), None),
        job=get_job(connection, organisation, job) or (None if result is None else _answered(result)),
        fingerprint=None if result is None else result.arguments["fingerprint"],
    )


def _answered(result: StoredResult) -> StoredJob:
    """A request of the realtime lane, whose answer was kept, as a job that has ended."""
    return StoredJob(
        id=result.job,
        organisation=result.organisation,
        team=None,
        key=result.arguments["key"],
        model=result.model,
        state=result.state,
        created_at_ms=result.started_at_ms,
        deadline_ms=result.arguments["job_deadline_ms"],
        started_at_ms=result.started_at_ms,
        finished_at_ms=result.finished_at_ms,
        route=result.route,
        usage=result.usage,
        http_status=result.http_status,
        body=result.body,
    )
