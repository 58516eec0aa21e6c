"""The audit agrees with an honest ledger, and names what somebody did to a dishonest one."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import msgspec
import pytest

from penstock.adapters.sql.database import open_engine, writing
from penstock.adapters.sql.ledger import LedgerReads
from penstock.adapters.sql.rows import INSERT_EVENT, to_row
from penstock.errors import StoreUnavailable
from penstock.lanes.audit_report import AuditReport
from penstock.quota.events import EventKind
from penstock.wiring.auditing import audit_database, audit_service
from penstock.wiring.places import Places
from tests.wiring.conftest import DEFINITIONS, MONTH, Served, While, now_ms, serve, tamper

GOVERNED = {"acme": DEFINITIONS}


async def live(served: Served) -> AuditReport:
    engine = open_engine(served.places.database)
    try:
        return await audit_service(served.store, engine, now_ms=now_ms())
    finally:
        engine.dispose()


def test_a_running_service_agrees_with_its_ledger(while_serving: While) -> None:
    async def check(served: Served) -> None:
        report = await live(served)
        (acme,) = report.organisations
        assert (report.source, report.differences) == ("service", 0)
        month = next(each for each in acme.limits if each.limit == MONTH)
        assert month.used == 30
        assert month.held == acme.tokens_held > 0
        assert acme.holds == 1

    while_serving(check)


def test_a_charge_that_somebody_changed_is_found_while_the_service_runs(while_serving: While) -> None:
    async def check(served: Served) -> None:
        tamper(served.places, "UPDATE ledger SET amounts = replace(amounts, ',30]', ',29]')")
        (acme,) = (await live(served)).organisations
        (difference,) = acme.differences
        assert (difference.limit, difference.what) == (MONTH, "used")
        assert (difference.counter, difference.expected) == (30, 29)
        assert difference.reservations == (served.charged,)

    while_serving(check)


def test_requests_that_are_served_meanwhile_are_no_difference(while_serving: While) -> None:
    async def check(served: Served) -> None:
        others = [asyncio.create_task(serve(served.store, served.places, first=10 * each)) for each in range(1, 15)]
        reports = [await live(served) for _ in range(10)]
        await asyncio.gather(*others)
        assert [report.differences for report in [*reports, await live(served)]] == [0] * 11

    while_serving(check)


def test_a_charge_that_is_committed_while_sums_are_made_is_no_difference(while_serving: While) -> None:
    async def check(served: Served) -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(max_workers=1))
        let_sums_begin = Event()
        blocked = loop.run_in_executor(None, let_sums_begin.wait)
        audited = asyncio.create_task(live(served))
        await asyncio.sleep(0)  # the counters are read, and the sums wait for the thread
        await serve(served.store, served.places, first=100)
        let_sums_begin.set()
        await blocked
        assert (await audited).differences == 0

    while_serving(check)


def test_a_stopped_services_database_agrees(while_serving: While, places: Places) -> None:
    async def nothing(served: Served) -> None:
        pass

    while_serving(nothing)
    before = places.database.read_bytes()
    report = audit_database(places, GOVERNED, now_ms=now_ms())
    (acme,) = report.organisations
    assert (report.source, report.differences, acme.holds) == ("database", 0, 1)
    assert next(each.used for each in acme.limits if each.limit == MONTH) == 30
    assert places.database.read_bytes() == before


def test_a_second_end_of_one_reservation_is_found_in_the_database(while_serving: While, places: Places) -> None:
    seen: list[Served] = []

    async def remember(served: Served) -> None:
        seen.append(served)

    while_serving(remember)
    engine = open_engine(places.database)
    with writing(engine) as connection:
        (posted,) = LedgerReads(connection).events()
        connection.exec_driver_sql(INSERT_EVENT, [to_row(replace(posted, kind=EventKind.EXPIRED))])
    engine.dispose()
    (acme,) = audit_database(places, GOVERNED, now_ms=now_ms()).organisations
    assert {each.reservations for each in acme.differences} == {(seen[0].charged,)}


def test_a_directory_without_a_database_cannot_be_audited(places: Places) -> None:
    with pytest.raises(StoreUnavailable, match="there is no database"):
        audit_database(places, GOVERNED, now_ms=now_ms())
    assert not places.database.exists()


def test_a_report_survives_the_way_from_the_service(while_serving: While) -> None:
    async def check(served: Served) -> None:
        report = await live(served)
        assert AuditReport.decode(msgspec.json.encode(report)) == report
        assert report.only("acme") == report
        assert report.only("globex").organisations == ()

    while_serving(check)


def test_an_answer_that_is_no_report_is_refused() -> None:
    with pytest.raises(StoreUnavailable, match="no audit report"):
        AuditReport.decode(b'{"source": 1}')
