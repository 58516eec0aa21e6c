"""The ledger gives back what was written, adds it up by group and window, and refuses to be changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from penstock.adapters.sql.ledger import LedgerReads
from penstock.adapters.sql.rows import INSERT_EVENT, month_of
from penstock.errors import InvalidRequest
from penstock.ports import UsageQuery, UsageRow
from penstock.quota.events import Amount, Charge, Event, EventKind, Usage, UsageSource
from penstock.quota.identity import reservation_id

Make = Callable[..., Event]
Write = Callable[[Sequence[Event]], None]
DAY_MS = 86_400_000
NOW_MS = 1_741_000_000_000


def _query(*group_by: str, start_ms: int = 0, end_ms: int = 2**60) -> UsageQuery:
    return UsageQuery(organisation="acme", start_ms=start_ms, end_ms=end_ms, group_by=group_by)


def test_an_event_read_back_equals_the_event_written(engine: Engine, make_event: Make, write: Write) -> None:
    event = make_event(
        team=None,
        kind=EventKind.LATE,
        usage=Usage(2**52, 2**52, 2**52, UsageSource.LOCAL),
        amounts=(Amount("acme/tokens/day", 2**52 - 1, -(2**52) + 1),),
        reason='it\'s "late" ✓',
    )
    write([event])
    with engine.connect() as connection:
        assert list(LedgerReads(connection).events()) == [event]


def test_a_row_written_again_is_kept_once(engine: Engine, make_event: Make, write: Write) -> None:
    write([make_event(1)])
    write([make_event(1), make_event(2), make_event(1, kind=EventKind.LATE)])
    with engine.connect() as connection:
        found = [(event.reservation[-1], event.kind.value) for event in LedgerReads(connection).events()]
    assert found == [("1", "late"), ("1", "posted"), ("2", "posted")]


@pytest.mark.parametrize("statement", ["UPDATE ledger SET cost_nanos = 0", "DELETE FROM ledger"])
def test_the_ledger_refuses_to_be_changed(engine: Engine, make_event: Make, write: Write, statement: str) -> None:
    write([make_event()])
    with engine.connect() as connection, pytest.raises(IntegrityError, match="ledger is written once"):
        connection.execute(text(statement))


def test_usage_groups_by_day_model_and_team(engine: Engine, make_event: Make, write: Write) -> None:
    midnight_ms = NOW_MS - NOW_MS % DAY_MS
    write(
        [
            make_event(1, midnight_ms - 1),
            make_event(2, midnight_ms),
            make_event(3, midnight_ms, team=None),
            make_event(4, midnight_ms, organisation="other"),
        ]
    )
    with engine.connect() as connection:
        rows = LedgerReads(connection).usage(_query("day", "model", "team"))
    sums = (1, 100, 7, 20, 2**52)
    assert rows == [
        UsageRow(("2025-03-02", "chat-small", "search"), *sums),
        UsageRow(("2025-03-03", "chat-small", None), *sums),
        UsageRow(("2025-03-03", "chat-small", "search"), *sums),
    ]


def test_usage_counts_from_the_start_up_to_but_not_with_the_end(engine: Engine, make_event: Make, write: Write) -> None:
    write([make_event(at - NOW_MS, at) for at in range(NOW_MS, NOW_MS + 4)])
    with engine.connect() as connection:
        (row,) = LedgerReads(connection).usage(_query(start_ms=NOW_MS + 1, end_ms=NOW_MS + 3))
    assert row.requests == 2


def test_usage_of_nothing_is_one_row_of_zeros_or_no_group(engine: Engine) -> None:
    with engine.connect() as connection:
        reads = LedgerReads(connection)
        assert reads.usage(_query()) == [UsageRow((), 0, 0, 0, 0, 0)]
        assert reads.usage(_query("model")) == []


def test_usage_refuses_an_unknown_group_by_name(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(InvalidRequest, match="colour is not a group; use day, model"):
        LedgerReads(connection).usage(_query("colour"))


def test_window_sums_add_per_limit_and_window(engine: Engine, make_event: Make, write: Write) -> None:
    def posted(number: int, *amounts: tuple[str, int, int], **fields: Any) -> Event:
        return make_event(number, amounts=tuple(Amount(*amount) for amount in amounts), **fields)

    write(
        [
            posted(1, ("a", 1, 2**52), ("b", 1, 5)),
            posted(2, ("a", 1, 1), ("a", 2, 3)),
            posted(3, kind=EventKind.VOIDED),
            posted(4, ("a", 1, 1000), organisation="other"),
        ]
    )
    with engine.connect() as connection:
        sums = LedgerReads(connection).window_sums("acme")
    assert sums == {("a", 1): 2**52 + 1, ("b", 1): 5, ("a", 2): 3}


def test_window_sums_since_leave_out_what_was_before(engine: Engine, make_event: Make, write: Write) -> None:
    write([make_event(1, NOW_MS), make_event(2, NOW_MS + 1)])
    with engine.connect() as connection:
        assert LedgerReads(connection).window_sums("acme", since_ms=NOW_MS + 1)["acme/tokens/month", 662] == 120


def test_events_come_in_order_of_time_across_portions(engine: Engine, make_event: Make, write: Write) -> None:
    write([make_event(number, NOW_MS + number % 3) for number in range(4_500)])
    with engine.connect() as connection:
        found = [(event.occurred_at_ms, event.reservation) for event in LedgerReads(connection).events()]
    assert len(set(found)) == 4_500
    assert found == sorted(found)


def test_events_of_reservations_are_the_organisations_own(engine: Engine, make_event: Make, write: Write) -> None:
    january_ms = NOW_MS - 60 * DAY_MS
    mine = [make_event(1, january_ms), make_event(2), make_event(2, kind=EventKind.LATE, occurred_at_ms=NOW_MS + 9)]
    foreign = make_event(3, organisation="other")
    write([*mine, foreign, make_event(4)])
    with engine.connect() as connection:
        ids = [mine[0].reservation, mine[1].reservation, foreign.reservation, reservation_id(NOW_MS, 99)]
        assert LedgerReads(connection).of_reservations("acme", ids) == mine


def test_the_newest_time_is_that_of_the_last_event(engine: Engine, make_event: Make, write: Write) -> None:
    with engine.connect() as connection:
        assert LedgerReads(connection).newest_ms() == 0
    write([make_event(1, NOW_MS), make_event(2, NOW_MS - 5, organisation="other")])
    with engine.connect() as connection:
        reads = LedgerReads(connection)
        assert (reads.newest_ms(), reads.newest_ms("other")) == (NOW_MS, NOW_MS - 5)


def test_a_month_is_that_of_the_reservation_in_utc() -> None:
    february_ends_ms = 1_740_787_200_000
    assert [month_of(reservation_id(at, 0)) for at in (february_ends_ms - 1, february_ends_ms)] == [202502, 202503]


def test_the_insert_names_every_column_in_order() -> None:
    assert INSERT_EVENT.count("?") == 24


def test_what_a_model_served_is_told_by_when_it_arrived(engine: Engine, make_event: Make, write: Write) -> None:
    """By the id of a request, by the first event of a job that its client named; what was voided was not served."""
    named = "0" * 12 + "a" * 20
    write(
        [
            make_event(1, NOW_MS, occurred_at_ms=NOW_MS + 900),
            make_event(2, NOW_MS, model="other"),
            make_event(3, NOW_MS, lane="queue"),
            make_event(4, NOW_MS, kind=EventKind.VOIDED, usage=Usage(0, 0), charge=Charge()),
            make_event(5, NOW_MS + 5_000, occurred_at_ms=NOW_MS + 10_000),
            make_event(
                reservation=named,
                kind=EventKind.RESERVED,
                usage=Usage(0, 0),
                charge=Charge(),
                occurred_at_ms=NOW_MS + 70,
            ),
            make_event(reservation=named, occurred_at_ms=NOW_MS + 950),
        ]
    )
    with engine.connect() as connection:
        served = partial(LedgerReads(connection).served, model="chat-small", lane="realtime")
        assert served(start_ms=0, end_ms=NOW_MS + 10_000) == [(NOW_MS, 100, 20), (NOW_MS + 70, 100, 20)]
        assert served(start_ms=NOW_MS + 10_000, end_ms=2**60) == [(NOW_MS + 5_000, 100, 20)]
