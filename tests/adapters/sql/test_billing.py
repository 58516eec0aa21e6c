"""Invoices and exports against sums that share no code with them, on both databases."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from penstock.adapters.sql.audit_log import page_of_entries
from penstock.adapters.sql.billing import EXPORTED, PAYERS, exported_rows, invoice
from penstock.adapters.sql.correcting import write_correction
from penstock.adapters.sql.database import open_engine, writing
from penstock.errors import InvalidRequest
from penstock.lanes.administering import AuditQuery
from penstock.lanes.billing import Correction, Invoice, Month, Status
from penstock.quota import Define, Definitions, Model, Price, Usage, reservation_id
from penstock.quota.events import Charge, EventKind
from tests.adapters.conftest import EventMaker, write_ledger
from tests.adapters.embedded.counter import ACME, DAY_MS, MINUTE_MS, Counter
from tests.counts import count

MARCH, APRIL = Month.read("2025-03"), Month.read("2025-04")
OLD = Price(prompt_picos=150_001, cached_picos=75_001, completion_picos=600_007)
NEW = Price(prompt_picos=140_003, cached_picos=70_003, completion_picos=550_001, request_picos=999)
OF_CORRECTIONS = "SUM(prompt_tokens), SUM(cached_tokens), SUM(completion_tokens), SUM(cost_nanos)"
SUMS = "SUM(requests), SUM(prompt_tokens), SUM(cached_tokens), SUM(completion_tokens), SUM(cost_nanos)"


def sums(connection: Connection, organisation: str, month: Month, more: str = "") -> tuple[int, ...]:
    """The database's own sum over every row of the month, whatever its kind."""
    statement = text(
        f"SELECT {SUMS} FROM ledger WHERE organisation = :organisation "
        f"AND occurred_at_ms >= :start AND occurred_at_ms < :end {more}"
    )
    found = connection.execute(
        statement, {"organisation": organisation, "start": month.start_ms, "end": month.end_ms}
    ).one()
    return tuple(int(each or 0) for each in found)


def added(made: Invoice) -> tuple[int, ...]:
    names = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_nanos")
    return tuple(sum(getattr(line, name) for line in made.lines) for name in names)


def cost_nanos(price: Price, usage: Usage) -> int:
    """One request's, by the definition of QUOTA: whole nano-dollars, rounded up once."""
    picos = (usage.prompt - usage.cached) * price.prompt_picos + usage.cached * price.cached_picos
    picos += usage.completion * price.completion_picos + price.request_picos
    return -(-picos // 1000)


@st.composite
def charges(draw: st.DrawFn) -> dict[str, Any]:
    """One row of a ledger; those at a month's very edge are likely."""
    prompt = draw(st.integers(0, 2**31))
    usage = Usage(prompt, draw(st.integers(0, 2**31)), draw(st.integers(0, prompt)))
    price = draw(st.sampled_from([OLD, NEW, Price()]))
    kind = draw(st.sampled_from(EventKind))
    is_charge = kind in (EventKind.POSTED, EventKind.EXPIRED, EventKind.LATE)
    edges = [edge + step for edge in (MARCH.start_ms, APRIL.start_ms, APRIL.end_ms) for step in (-1, 0, 1)]
    return {
        "kind": kind,
        "at_ms": draw(st.sampled_from(edges) | st.integers(MARCH.start_ms, APRIL.end_ms)),
        "team": draw(st.sampled_from([None, "search", "ads"])),
        "key": draw(st.sampled_from(["k1", "k2"])),
        "model": draw(st.sampled_from(["chat-small", "embed"])),
        "usage": usage if is_charge else Usage(0, 0),
        "price": price,
        "charge": Charge(0, 1, cost_nanos(price, usage)) if is_charge else Charge(),
    }


@settings(max_examples=count(500, short=25), suppress_health_check=list(HealthCheck), deadline=None)
@given(rows=st.lists(charges(), max_size=12))
def test_an_invoice_adds_up_to_what_the_database_sums_whatever_rows_there_are(
    engine: Engine, make_event: EventMaker, rows: list[dict[str, Any]]
) -> None:
    with engine.connect() as connection:  # never committed: each example finds the ledger empty
        events = [make_event(number, **row) for number, row in enumerate(rows)]
        if events:
            write_ledger(connection, events)
        for month in (MARCH, APRIL):
            for payers in PAYERS:
                made = invoice(connection, "acme", month, payers=payers, status=Status.FINAL)
                assert added(made) == sums(connection, "acme", month)
        connection.rollback()


def repriced(price: Price) -> Definitions:
    models = {"m": Model(name="m", context=8192, price=price)}
    return Definitions(limits=ACME.limits, keys=ACME.keys, models=models)


async def two_months(counter: Counter) -> dict[str, Usage]:
    """A ledger written by the service's own store, on a clock that we turn; what each request used."""
    used: dict[str, Usage] = {}
    ids = iter(range(1000))

    async def request(began_ms: int, ended_ms: int, usage: Usage) -> None:
        counter.now_ms = began_ms
        reservation = reservation_id(began_ms, next(ids))
        assert type(await counter.reserve(reservation)).__name__ == "Reserved"
        for touched_ms in range(began_ms, ended_ms, MINUTE_MS // 2):
            counter.now_ms = touched_ms
            await counter.touch(reservation, usage.prompt, 1)
        counter.now_ms = ended_ms
        await counter.settle(reservation, usage)
        used[reservation] = usage

    midnight, month_end = MARCH.start_ms + 20 * DAY_MS, MARCH.end_ms
    async with counter.opened(repriced(OLD)):
        await request(MARCH.start_ms + 3 * DAY_MS, MARCH.start_ms + 3 * DAY_MS + 10, Usage(101, 50))
        change_ms = MARCH.start_ms + 15 * DAY_MS
        counter.now_ms = change_ms - 100
        straddling = reservation_id(change_ms - 100, 999)  # priced when it was reserved
        await counter.reserve(straddling)
        counter.now_ms = change_ms
        call = Define(organisation="acme", caller_now_ms=change_ms, version=2, definitions=repriced(NEW))
        await counter.store.apply(call)
        await counter.settle(straddling, Usage(77, 7, 70))
        used[straddling] = Usage(77, 7, 70)
        await request(change_ms + 10, change_ms + 20, Usage(103, 51, 99))
        await request(midnight - MINUTE_MS, midnight + MINUTE_MS, Usage(111, 23, 11))
        late = reservation_id(month_end - 3 * MINUTE_MS, 998)
        counter.now_ms = month_end - 3 * MINUTE_MS
        await counter.reserve(late)
        await counter.touch(late, 60, 9)
        counter.now_ms = month_end - MINUTE_MS
        await counter.sweep()  # charged in March, as far as it was known
        await request(month_end - MINUTE_MS, month_end + 5, Usage(113, 29, 13))
        counter.now_ms = month_end + MINUTE_MS
        await counter.settle(late, Usage(200, 100))
        used[late] = Usage(200, 100)
        await request(month_end + DAY_MS, month_end + DAY_MS + 1, Usage(1, 1))
    return used


def test_months_of_the_real_store_add_up_through_a_price_change_midnight_and_a_late_settle(path: Path) -> None:
    counter = Counter(path)
    counter.now_ms = MARCH.start_ms
    used = asyncio.run(two_months(counter))
    engine = open_engine(path)
    with writing(engine) as connection:
        march = invoice(connection, "acme", MARCH, payers="team", status=Status.FINAL)
        april = invoice(connection, "acme", APRIL, payers="key", status=Status.FINAL)
        assert added(march) == sums(connection, "acme", MARCH)
        assert added(april) == sums(connection, "acme", APRIL)
        assert sorted({line.price.prompt_picos for line in march.lines}) == [NEW.prompt_picos, OLD.prompt_picos]
        (adjustment,) = [line for line in april.lines if line.is_adjustment]
        assert adjustment.cost_nanos == sums(connection, "acme", APRIL, "AND kind = 'late'")[4]
        assert (adjustment.prompt_tokens, adjustment.completion_tokens, adjustment.requests) == (140, 91, 0)
        assert not any(line.is_adjustment for line in march.lines)
        prompts, completions = added(march)[1] + added(april)[1], added(march)[3] + added(april)[3]
        assert prompts == sum(usage.prompt for usage in used.values())
        assert completions == sum(usage.completion for usage in used.values())
    engine.dispose()


def test_a_late_settle_in_the_month_of_its_expiry_is_no_adjustment(engine: Engine, make_event: EventMaker) -> None:
    with engine.connect() as connection:
        rows = [
            make_event(1, MARCH.end_ms - 10, kind=EventKind.EXPIRED, reservation=reservation_id(MARCH.start_ms, 1)),
            make_event(1, MARCH.end_ms - 1, kind=EventKind.LATE, reservation=reservation_id(MARCH.start_ms, 1)),
            make_event(2, MARCH.end_ms - 1, kind=EventKind.EXPIRED),
            make_event(2, MARCH.end_ms, kind=EventKind.LATE, reservation=reservation_id(MARCH.end_ms - 1, 2)),
        ]
        write_ledger(connection, rows)
        for month, adjustments in ((MARCH, [False]), (APRIL, [True])):
            made = invoice(connection, "acme", month, payers="team", status=Status.FINAL)
            assert [line.is_adjustment for line in made.lines] == adjustments
        connection.rollback()


def test_exported_rows_are_those_of_the_range_once_each_in_order(engine: Engine, make_event: EventMaker) -> None:
    with engine.connect() as connection:
        times = [MARCH.start_ms - 1, MARCH.start_ms, MARCH.start_ms, MARCH.end_ms - 1, MARCH.end_ms]
        for first, organisation in ((0, "acme"), (10, "globex")):
            write_ledger(
                connection,
                [make_event(first + number, at_ms, organisation=organisation, key=organisation[:2] + str(number))
                 for number, at_ms in enumerate(times)],
            )  # fmt: skip
        asked = ("acme", "globex")
        range_ms = {"start_ms": MARCH.start_ms, "end_ms": MARCH.end_ms}
        for rows_at_once in (1, 2, 5000):
            pages = list(exported_rows(connection, asked, rows_at_once=rows_at_once, **range_ms))
            assert all(len(page) <= rows_at_once for page in pages)
            found = [(row["organisation"], row["key"]) for page in pages for row in page]
            assert found == [(name, name[:2] + str(number)) for name in asked for number in (1, 2, 3)]
            assert tuple(pages[0][0]) == EXPORTED
        connection.rollback()


@st.composite
def written(draw: st.DrawFn) -> dict[str, Any]:
    """One correction of anything, in either month or at an edge of one."""
    edges = [edge + step for edge in (MARCH.start_ms, APRIL.start_ms, APRIL.end_ms) for step in (-1, 0)]
    amounts = st.integers(-(2**40), 2**40)
    return {
        "occurred_at_ms": draw(st.sampled_from(edges) | st.integers(MARCH.start_ms, APRIL.end_ms)),
        "team": draw(st.sampled_from([None, "search"])),
        "model": draw(st.sampled_from(["chat-small", "embed"])),
        "prompt_tokens": draw(amounts),
        "cached_tokens": draw(amounts),
        "completion_tokens": draw(amounts),
        "cost_nanos": draw(amounts),
    }


def correction(reference: str, **fields: Any) -> Correction:
    """Of an invoice's line, of nothing; any field may be given."""
    made: dict[str, Any] = {
        "organisation": "acme", "reference": reference, "occurred_at_ms": MARCH.start_ms, "author": "test",
        "reason": "wrong", "corrects": "2025-02 chat-small", "team": None, "key": "", "model": "chat-small", "lane": "",
        "prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0, "cost_nanos": -1,
    }  # fmt: skip
    return Correction(**{**made, **fields})


@settings(max_examples=count(200, short=10), suppress_health_check=list(HealthCheck), deadline=None)
@given(rows=st.lists(charges(), max_size=5), more=st.lists(written(), max_size=5))
def test_corrections_are_in_total_and_export_as_the_database_sums_them(
    engine: Engine, make_event: EventMaker, rows: list[dict[str, Any]], more: list[dict[str, Any]]
) -> None:
    with engine.connect() as connection:  # never committed: each example finds no correction
        if rows:
            write_ledger(connection, [make_event(number, **row) for number, row in enumerate(rows)])
        for number, fields in enumerate(more):
            assert write_correction(connection, correction(f"T-{number}", **fields))
        for month in (MARCH, APRIL):
            asked = {"start": month.start_ms, "end": month.end_ms}
            within = "WHERE organisation = 'acme' AND occurred_at_ms >= :start AND occurred_at_ms < :end"
            found = connection.execute(text(f"SELECT {OF_CORRECTIONS} FROM corrections {within}"), asked).one()
            by_hand = tuple(int(each or 0) for each in found)
            made = invoice(connection, "acme", month, payers="team", status=Status.OPEN)
            names = ("prompt_tokens", "cached_tokens", "completion_tokens", "cost_nanos")
            assert tuple(sum(getattr(each, name) for each in made.corrections) for name in names) == by_hand
            assert made.total_nanos == sums(connection, "acme", month)[4] + by_hand[3]
            exported = exported_rows(connection, ["acme"], start_ms=month.start_ms, end_ms=month.end_ms)
            assert sum(row["cost_nanos"] for page in exported for row in page) == made.total_nanos
        connection.rollback()


def test_a_correction_is_written_once_for_each_reference_and_never_changed(engine: Engine) -> None:
    with writing(engine) as connection:
        assert write_correction(connection, correction("T-1"))
        assert not write_correction(connection, correction("T-1", author="another", occurred_at_ms=APRIL.start_ms))
        with pytest.raises(InvalidRequest, match=r"says otherwise .-1 nano-dollars on 2025-02"):
            write_correction(connection, correction("T-1", cost_nanos=-2))
    with writing(engine) as connection:
        (entry,) = page_of_entries(connection, AuditQuery(count_max=9))
        assert (entry.action, entry.subject, entry.actor) == ("ledger.correct", "T-1", "test")
        assert entry.after["cost_nanos"] == -1
    for change in ("UPDATE corrections SET cost_nanos = 0", "DELETE FROM corrections"):
        with pytest.raises(DBAPIError, match="corrections is written once"), writing(engine) as connection:
            connection.execute(text(change))


def test_no_more_is_taken_away_from_a_reservation_than_it_was_charged(engine: Engine, make_event: EventMaker) -> None:
    event = make_event(1, charge=Charge(120, 1, 500))
    mine = {"corrects": event.reservation, "key": "k1"}
    with writing(engine) as connection:
        write_ledger(connection, [event])
        assert write_correction(connection, correction("T-1", cost_nanos=-300, completion_tokens=-20, **mine))
    for fields in ({"cost_nanos": -201}, {"cost_nanos": 0, "completion_tokens": -1}):
        with pytest.raises(InvalidRequest, match="would be left with -1"), writing(engine) as connection:
            write_correction(connection, correction("T-2", **mine, **fields))
    with writing(engine) as connection:
        assert write_correction(connection, correction("T-2", cost_nanos=-200, **mine))
        made = invoice(connection, "acme", MARCH, payers="team", status=Status.OPEN)
        assert made.total_nanos == 0
