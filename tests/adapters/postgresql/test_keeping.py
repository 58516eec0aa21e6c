"""The active keeper writes each event once, rolls up what was new, and writes nothing once another has taken over."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import OperationalError

from penstock.adapters.postgresql.database import open_engine
from penstock.adapters.postgresql.keeping import KeeperStore, Unsettled
from penstock.adapters.postgresql.leading import Leadership, fenced, session_options
from penstock.adapters.sql.job_tables import jobs
from penstock.adapters.sql.jobs import store_result
from penstock.adapters.sql.keeping_tables import keeper, outbox_positions, usage_daily, usage_hourly
from penstock.adapters.sql.ledger import LedgerReads
from penstock.errors import Deposed
from penstock.ports import JobState, StoredResult
from penstock.quota.events import Charge, Event, EventKind, Usage, UsageSource
from penstock.quota.identity import reservation_id
from tests.adapters.conftest import EventMaker
from tests.adapters.databases import ACCOUNTS, MARCH_MS

pytestmark = pytest.mark.slow  # real services: left out of the quick check

HOUR_MS, DAY_MS = 3_600_000, 86_400_000


@dataclass(frozen=True)
class Entry:
    """What an outbox holds."""

    id: str
    event: Event


class Keepers:
    """Several keepers on one database, each with its user's rights and sessions."""

    def __init__(self, administrator: Engine) -> None:
        self.administrator = administrator
        self._engines: list[Engine] = []

    def open(self, name: str, *, lease_s: float = 10) -> KeeperStore:
        url = self.administrator.url.set(username="penstock_keeper", password=ACCOUNTS["keeper"])
        shown = url.render_as_string(hide_password=False)
        lock, writes = (
            open_engine(shown, application=name, options=session_options(lease_s), connections_max=1) for _ in range(2)
        )
        self._engines += [lock, writes]
        leadership = Leadership(lock, process=name, now_ms=lambda: MARCH_MS)
        return KeeperStore(writes, leadership, now_ms=lambda: MARCH_MS)

    def rows(self, statement: Any) -> list[tuple[Any, ...]]:
        with self.administrator.connect() as connection:
            return [tuple(row) for row in connection.execute(statement)]

    def events(self) -> list[Event]:
        with self.administrator.connect() as connection:
            return list(LedgerReads(connection).events())

    def close(self) -> None:
        for engine in self._engines:
            engine.dispose()


@pytest.fixture
def keepers(engine: Engine) -> Iterator[Keepers]:
    with engine.begin() as connection:
        connection.execute(text(f"GRANT CONNECT, TEMPORARY ON DATABASE {engine.url.database} TO penstock_keeper"))
    keepers = Keepers(engine)
    yield keepers
    keepers.close()


def test_an_event_drained_twice_is_in_the_ledger_and_in_the_sums_once(keepers: Keepers, make_event: EventMaker) -> None:
    async def main() -> None:
        store = keepers.open("one")
        assert await store.take()
        first, second = (Entry(f"{number}-0", make_event(number)) for number in (1, 2))
        assert await store.drain({3: [first]}) == 1
        assert await store.drain({3: [first, second, second], 5: [Entry("9-0", make_event(1))]}) == 1
        await store.leave()

    asyncio.run(main())
    assert len(keepers.events()) == 2
    assert keepers.rows(select(usage_daily.c.requests, usage_daily.c.tokens)) == [(2, 240)]
    positions = select(outbox_positions.c.partition, outbox_positions.c.entry).order_by(outbox_positions.c.partition)
    assert keepers.rows(positions) == [(3, "2-0"), (5, "9-0")]


def test_an_event_that_is_not_to_be_written_is_drained_all_the_same(keepers: Keepers, make_event: EventMaker) -> None:
    async def main() -> None:
        store = keepers.open("one")
        await store.take()
        first, second, dated = make_event(1), make_event(2), make_event(reservation="no time at all")
        expired = make_event(1, kind=EventKind.EXPIRED)
        await store.drain({3: [Entry("1-0", first), Entry("2-0", second), Entry("3-0", dated)]})
        assert await store.of_the_same([expired]) == [first]
        assert await store.of_the_same([dated]) == [dated]
        assert await store.of_the_same([replace(expired, organisation="other")]) == []
        assert set(await store.of_the_same([make_event(number) for number in range(1_500)])) == {first, second}
        assert await store.drain({3: [Entry("4-0", make_event(3)), Entry("5-0", expired)]}, without={expired}) == 1
        await store.leave()

    asyncio.run(main())
    assert EventKind.EXPIRED not in {event.kind for event in keepers.events()}
    assert keepers.rows(select(usage_daily.c.requests)) == [(4,)]
    assert keepers.rows(select(outbox_positions.c.partition, outbox_positions.c.entry)) == [(3, "5-0")]


def test_usage_rolls_up_by_hour_and_day_without_what_cost_nothing(keepers: Keepers, make_event: EventMaker) -> None:
    day_ms = MARCH_MS - MARCH_MS % DAY_MS
    events = [
        make_event(1, day_ms - 1),
        make_event(2, day_ms, team=None),
        make_event(3, day_ms + HOUR_MS - 1, team=None),
        make_event(4, day_ms + HOUR_MS),
        make_event(5, day_ms, kind=EventKind.VOIDED, charge=Charge(), usage=Usage(0, 0)),
    ]

    async def main() -> None:
        store = keepers.open("one")
        await store.take()
        await store.drain({0: [Entry(f"{number}-0", event) for number, event in enumerate(events, start=1)]})
        await store.leave()

    asyncio.run(main())
    hourly = usage_hourly.c
    by_hour = select(hourly.hour_ms - day_ms, hourly.team, hourly.requests, hourly.prompt_tokens)
    assert sorted(keepers.rows(by_hour)) == [(-HOUR_MS, "search", 1, 100), (0, "", 2, 200), (HOUR_MS, "search", 1, 100)]
    daily = usage_daily.c
    by_day = select(daily.day_ms - day_ms, daily.team, daily.completion_tokens, daily.cached_tokens)
    assert sorted(keepers.rows(by_day)) == [(-DAY_MS, "search", 20, 7), (0, "", 40, 14), (0, "search", 20, 7)]


def test_a_sum_beyond_all_money_stops_growing_and_not_the_drain(keepers: Keepers, make_event: EventMaker) -> None:
    async def main() -> None:
        store = keepers.open("one")
        await store.take()
        for start in (0, 3000):
            await store.drain({0: [Entry(f"{n}-0", make_event(n)) for n in range(start, start + 3000)]})
        await store.leave()

    asyncio.run(main())
    assert keepers.rows(select(usage_hourly.c.cost_nanos, usage_hourly.c.requests)) == [(2**63 - 1, 6000)]


def test_an_id_without_a_time_goes_where_undated_ids_go(keepers: Keepers, make_event: EventMaker) -> None:
    async def main() -> None:
        store = keepers.open("one")
        await store.take()
        assert await store.drain({0: [Entry("1-0", make_event(reservation="no time at all"))]}) == 1
        await store.leave()

    asyncio.run(main())
    assert keepers.rows(text("SELECT month, tableoid::regclass::text FROM ledger")) == [(197001, "ledger_default")]


def test_the_ledger_keeps_the_first_of_a_kind(keepers: Keepers, make_event: EventMaker) -> None:
    first, again = (make_event(1, kind=EventKind.ACQUIRED, occurred_at_ms=MARCH_MS + at) for at in (1, 2))

    async def main() -> None:
        store = keepers.open("one")
        await store.take()
        assert await store.drain({0: [Entry("1-0", first), Entry("2-0", again)]}) == 1
        await store.leave()

    asyncio.run(main())
    assert keepers.events() == [first]


def test_jobs_follow_the_events_and_whoever_waits_is_told(keepers: Keepers, make_event: EventMaker) -> None:
    job = make_event(1, kind=EventKind.RESERVED, lane="queue")

    async def main() -> None:
        store = keepers.open("one")
        await store.take()
        with keepers.administrator.connect() as listener:
            listener.execute(text("LISTEN penstock_jobs"))
            listener.commit()
            await store.drain({0: [Entry("1-0", job), Entry("2-0", make_event(2))]})
            driver = listener.connection.driver_connection
            assert driver is not None
            assert [told.payload for told in driver.notifies(timeout=5, stop_after=1)] == [job.reservation]
        await store.leave()

    asyncio.run(main())
    assert keepers.rows(select(jobs.c.id, jobs.c.state)) == [(job.reservation, "queued")]


def test_one_keeper_is_active_and_the_next_takes_over_when_it_leaves(keepers: Keepers) -> None:
    async def main() -> None:
        one, two = keepers.open("one"), keepers.open("two")
        assert await one.take()
        assert not await two.take()
        assert (one.fence, two.fence) == (1, 0)
        await one.leave()
        assert await two.take()
        assert (one.fence, two.fence) == (0, 2)
        assert keepers.rows(select(keeper.c.fence, keeper.c.process)) == [(2, "two")]
        await two.leave()

    asyncio.run(main())


def test_one_that_lost_its_lock_without_knowing_writes_nothing(keepers: Keepers, make_event: EventMaker) -> None:
    async def main() -> None:
        one, two = keepers.open("one"), keepers.open("two")
        await one.take()
        entries = {0: [Entry("1-0", make_event(1))]}
        locks = text("SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory'")
        assert keepers.rows(locks) == [(True,)]
        assert await two.take()
        assert one.fence == 1  # it still believes
        with pytest.raises(Deposed, match="keeper 2 took over from keeper 1; nothing was written"):
            await one.drain(entries)
        assert keepers.events() == []
        with pytest.raises(Deposed, match="connection with the keeper's lock was lost"):
            await one.renew()
        assert one.fence == 0
        await two.renew()
        assert await two.drain(entries) == 1
        await two.leave()

    asyncio.run(main())


def test_nobody_raises_the_fence_in_the_middle_of_a_transaction(keepers: Keepers) -> None:
    raising = text("UPDATE keeper SET fence = fence + 1")
    with fenced(keepers.administrator, 0), keepers.administrator.connect() as other:
        other.execute(text("SET lock_timeout = '20ms'"))
        with pytest.raises(OperationalError, match="lock timeout"):
            other.execute(raising)
    with keepers.administrator.begin() as other:
        other.execute(raising)


def test_the_server_ends_a_keeper_that_fell_silent(keepers: Keepers) -> None:
    async def main() -> None:
        one, two = keepers.open("one", lease_s=0.2), keepers.open("two")
        await one.take()
        while not await two.take():
            pass
        with pytest.raises(Deposed):
            await one.renew()
        await two.leave()

    asyncio.run(main())


def test_an_epoch_is_never_lowered(keepers: Keepers) -> None:
    async def main() -> None:
        store = keepers.open("one")
        await store.take()
        assert await store.epoch("acme") == 0
        for epoch in (2, 1):
            await store.keep_epoch("acme", epoch)
        assert await store.epoch("acme") == 2
        await store.leave()

    asyncio.run(main())


def a_result(job: str, usage: Usage | None) -> StoredResult:
    return StoredResult(
        job=job,
        organisation="acme",
        model="m",
        route="chat.completions",
        state=JobState.SUCCEEDED,
        http_status=200,
        body="{}",
        reason="",
        usage=usage,
        attempts=1,
        started_at_ms=1,
        finished_at_ms=MARCH_MS,
        arguments={"reservation": job},
    )


def test_results_that_nobody_acknowledged_are_found_until_they_are_marked(keepers: Keepers) -> None:
    job, usage = reservation_id(MARCH_MS, 1), Usage(7, 3, 1, UsageSource.LOCAL)
    result = a_result(job, usage)

    async def main() -> None:
        store = keepers.open("one")
        await store.take()
        with keepers.administrator.begin() as connection:
            store_result(connection, result)
        assert await store.unsettled(finished_before_ms=MARCH_MS, count_max=9) == []
        (found,) = await store.unsettled(finished_before_ms=MARCH_MS + 1, count_max=9)
        assert found == Unsettled(job, "acme", result.usage, result.arguments)
        await store.mark_settled(job)
        assert await store.unsettled(finished_before_ms=MARCH_MS + 1, count_max=9) == []
        await store.leave()

    asyncio.run(main())


def test_a_result_whose_reservation_expired_is_to_be_settled_again_and_no_other(
    keepers: Keepers, make_event: EventMaker
) -> None:
    expired, voided, posted = (
        make_event(number, kind=kind)
        for number, kind in enumerate((EventKind.EXPIRED, EventKind.EXPIRED, EventKind.POSTED), 1)
    )
    usages = {expired: Usage(10, 5), voided: None, posted: Usage(10, 5)}

    async def main() -> None:
        store = keepers.open("one")
        await store.take()
        for event, usage in usages.items():
            with keepers.administrator.begin() as connection:
                store_result(connection, a_result(event.reservation, usage))
            await store.mark_settled(event.reservation)
        entries = [Entry(f"{number}-0", event) for number, event in enumerate(usages, 1)]
        await store.drain({0: entries}, without={expired})
        assert await store.unsettled(finished_before_ms=MARCH_MS + 1, count_max=9) == []
        await store.drain({0: entries})
        (found,) = await store.unsettled(finished_before_ms=MARCH_MS + 1, count_max=9)
        assert found.job == expired.reservation
        await store.leave()

    asyncio.run(main())
