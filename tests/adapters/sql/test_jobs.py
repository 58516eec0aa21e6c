"""Jobs are a projection of events; the first result wins; a page of jobs is what the ledger and results say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from penstock.adapters.sql.database import writing
from penstock.adapters.sql.forgetting import forget_jobs
from penstock.adapters.sql.job_tables import jobs, results
from penstock.adapters.sql.jobs import (
    get_job,
    last_attempt,
    list_jobs,
    mark_settled,
    project,
    store_result,
)
from penstock.ports import JobQuery, JobState, Kept, StoredJob, StoredResult
from penstock.quota.events import Event, EventKind, Usage, UsageSource
from penstock.quota.identity import reservation_id
from tests.adapters.conftest import EventMaker, write_ledger
from tests.adapters.databases import MARCH_MS


class Projected:
    """Events and results, written as a store would."""

    def __init__(self, engine: Engine, make_event: EventMaker) -> None:
        self.engine = engine
        self._make = make_event

    def event(self, kind: EventKind, number: int = 1, *, at_ms: int = 0, **fields: Any) -> Event:
        fields.setdefault("reservation", reservation_id(MARCH_MS, number))
        return self._make(number, kind=kind, lane="queue", occurred_at_ms=MARCH_MS + at_ms, **fields)

    def write(self, *events: Event) -> list[str]:
        with writing(self.engine) as connection:
            write_ledger(connection, events)
            return project(connection, events)

    def store(self, result: StoredResult) -> bool:
        with writing(self.engine) as connection:
            return store_result(connection, result)

    def get(self, number: int = 1, organisation: str = "acme") -> StoredJob | None:
        with self.engine.connect() as connection:
            return get_job(connection, organisation, reservation_id(MARCH_MS, number))

    def states(self, **query: Any) -> list[JobState]:
        return [job.state for job in self.list(**query)]

    def list(self, **query: Any) -> list[StoredJob]:
        with self.engine.connect() as connection:
            return list_jobs(connection, JobQuery(organisation="acme", **query))


@pytest.fixture
def projected(engine: Engine, make_event: EventMaker) -> Projected:
    """An empty database."""
    return Projected(engine, make_event)


def result(number: int = 1, **fields: Any) -> StoredResult:
    made = StoredResult(
        job=reservation_id(MARCH_MS, number),
        organisation="acme",
        model="chat-small",
        route="chat.completions",
        state=JobState.SUCCEEDED,
        http_status=200,
        body='{"id":"1"}',
        reason="",
        usage=Usage(100, 20, 7),
        attempts=1,
        started_at_ms=MARCH_MS + 5,
        finished_at_ms=MARCH_MS + 90,
        arguments={"key": "k1"},
    )
    return replace(made, **fields)


def test_a_job_follows_its_events(projected: Projected) -> None:
    for kind, at_ms, state in [
        (EventKind.RESERVED, 1, JobState.QUEUED),
        (EventKind.ACQUIRED, 10, JobState.RUNNING),
        (EventKind.POSTED, 70, JobState.SUCCEEDED),
    ]:
        projected.write(projected.event(kind, at_ms=at_ms))
        job = projected.get()
        assert job is not None
        assert job.state is state
    assert job is not None
    assert (job.created_at_ms, job.started_at_ms, job.finished_at_ms) == (MARCH_MS + 1, MARCH_MS + 10, MARCH_MS + 70)
    assert (job.usage, job.cost_nanos) == (Usage(100, 20, 7), 2**52)


def test_a_whole_life_in_one_drain_is_the_same_as_one_event_at_a_time(projected: Projected) -> None:
    kinds = (EventKind.RESERVED, EventKind.ACQUIRED, EventKind.VOIDED)
    projected.write(*(projected.event(kind, 1, at_ms=at, reason="x") for at, kind in enumerate(kinds, 1)))
    for at, kind in enumerate(kinds, 1):
        projected.write(projected.event(kind, 2, at_ms=at, reason="x"))
    one, other = projected.get(1), projected.get(2)
    assert one is not None
    assert other is not None
    assert replace(one, id="") == replace(other, id="")


def test_events_written_twice_change_nothing(projected: Projected) -> None:
    events = [
        projected.event(EventKind.RESERVED, at_ms=1),
        projected.event(EventKind.ACQUIRED, at_ms=2),
        projected.event(EventKind.EXPIRED, at_ms=3, reason="deadline"),
    ]
    projected.write(*events)
    before = projected.get()
    with writing(projected.engine) as connection:
        project(connection, events[:2])
        project(connection, [replace(events[2], occurred_at_ms=MARCH_MS + 50)])
    assert projected.get() == before


@pytest.mark.parametrize(
    ("kind", "reason", "state"),
    [
        (EventKind.VOIDED, "cancelled", JobState.CANCELLED),
        (EventKind.VOIDED, "its cap was lowered: x", JobState.FAILED),
        (EventKind.EXPIRED, "deadline", JobState.EXPIRED),
        (EventKind.EXPIRED, "cancelled", JobState.CANCELLED),
    ],
)
def test_an_end_without_a_result_has_the_state_of_its_event(
    projected: Projected, kind: EventKind, reason: str, state: JobState
) -> None:
    projected.write(projected.event(EventKind.RESERVED), projected.event(kind, reason=reason))
    job = projected.get()
    assert job is not None
    assert (job.state, job.reason) == (state, reason)


def test_the_result_decides_the_state_before_it_is_settled_and_after(projected: Projected) -> None:
    projected.write(projected.event(EventKind.RESERVED), projected.event(EventKind.ACQUIRED))
    projected.store(result(state=JobState.FAILED, http_status=502, body=None, reason="broke off"))
    before = projected.get()
    projected.write(projected.event(EventKind.POSTED))
    after = projected.get()
    assert before is not None
    assert after is not None
    assert (before.state, before.usage, before.cost_nanos) == (JobState.FAILED, Usage(100, 20, 7), None)
    assert (after.state, after.reason, after.cost_nanos) == (JobState.FAILED, "broke off", 2**52)
    assert projected.states(state=JobState.FAILED) == [JobState.FAILED]
    assert projected.states(state=JobState.SUCCEEDED) == []


def test_the_first_result_wins(projected: Projected) -> None:
    projected.write(projected.event(EventKind.RESERVED))
    assert projected.store(result(body='{"first":1}'))
    assert not projected.store(result(body='{"second":2}', state=JobState.FAILED))
    job = projected.get()
    assert job is not None
    assert (job.state, job.body) == (JobState.SUCCEEDED, '{"first":1}')


def test_what_came_late_adds_to_what_its_expiry_charged(projected: Projected) -> None:
    projected.write(
        projected.event(EventKind.RESERVED),
        projected.event(EventKind.EXPIRED, usage=Usage(100, 5, 0, UsageSource.LOCAL)),
        projected.event(EventKind.LATE, usage=Usage(0, 15)),
    )
    job = projected.get()
    assert job is not None
    assert job.usage is not None
    assert (job.usage.prompt, job.usage.completion) == (100, 20)


def test_another_organisations_job_is_not_there(projected: Projected) -> None:
    projected.write(projected.event(EventKind.RESERVED))
    assert projected.get(organisation="other") is None


def test_a_realtime_request_is_no_job(projected: Projected, make_event: EventMaker) -> None:
    assert projected.write(make_event()) == []
    assert projected.list() == []


def test_pages_follow_each_other_without_gap_or_repetition(projected: Projected) -> None:
    for number in range(7):
        projected.write(projected.event(EventKind.RESERVED, number, at_ms=number // 3))
    seen: list[str] = []
    after = None
    while page := projected.list(count_max=2, after=after):
        seen += [job.id for job in page]
        after = (page[-1].created_at_ms, page[-1].id)
    assert seen == [reservation_id(MARCH_MS, number) for number in reversed(range(7))]


def test_a_list_is_narrowed_by_model_and_time(projected: Projected) -> None:
    projected.write(projected.event(EventKind.RESERVED, 1, at_ms=10, model="a"))
    projected.write(projected.event(EventKind.RESERVED, 2, at_ms=20, model="b"))
    assert [job.model for job in projected.list(models=("a",))] == ["a"]
    assert [job.model for job in projected.list(created_from_ms=MARCH_MS + 20)] == ["b"]
    assert [job.model for job in projected.list(created_before_ms=MARCH_MS + 20)] == ["a"]


@pytest.mark.parametrize(
    ("kinds", "ended"),
    [
        ([EventKind.RESERVED], None),
        ([EventKind.RESERVED, EventKind.VOIDED], EventKind.VOIDED),
        ([EventKind.RESERVED, EventKind.ACQUIRED, EventKind.POSTED], EventKind.POSTED),
        ([EventKind.RESERVED, EventKind.EXPIRED, EventKind.LATE], EventKind.LATE),
    ],
)
def test_the_last_attempt_of_a_key_is_the_one_with_the_highest_number(
    projected: Projected, kinds: list[EventKind], ended: EventKind | None
) -> None:
    prefix = "0" * 12 + "ab" * 10
    for number in (2, 10):
        projected.write(*(projected.event(kind, reservation=f"{prefix}-{number}") for kind in kinds))
    projected.store(result(job=f"{prefix}-10", arguments={"fingerprint": "f"}))
    with projected.engine.connect() as connection:
        found = last_attempt(connection, "acme", prefix)
        assert last_attempt(connection, "other", prefix) is None
    assert found is not None
    assert (found.number, found.ended, found.fingerprint) == (10, ended, "f")
    assert found.job is not None


def test_old_jobs_are_forgotten_unless_a_charge_is_on_its_way(projected: Projected) -> None:
    for number in (1, 2, 3):
        projected.write(projected.event(EventKind.RESERVED, number), projected.event(EventKind.POSTED, number))
        projected.store(result(number))
    projected.write(projected.event(EventKind.RESERVED, 4))
    with writing(projected.engine) as connection:
        for number in (1, 3):
            mark_settled(connection, reservation_id(MARCH_MS, number))
        connection.execute(jobs.update().where(jobs.c.id == reservation_id(MARCH_MS, 3)).values(finished_at_ms=2**50))
        connection.execute(
            results.update().where(results.c.job == reservation_id(MARCH_MS, 3)).values(finished_at_ms=2**50)
        )
        assert forget_jobs(connection, now_ms=MARCH_MS + 3_600_001, kept=Kept(1, 1)) == 1
        assert connection.execute(select(func.count()).select_from(results)).scalar() == 2
    assert [projected.get(number) is not None for number in (1, 2, 3, 4)] == [False, True, True, True]
