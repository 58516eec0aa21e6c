"""The audit finds every kind of disagreement, and names reservations where rows give them away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.lanes.audit import Difference, audit
from penstock.quota.definitions import Price
from penstock.quota.events import Amount, Charge, Event, EventKind, Usage
from penstock.quota.operations import Hold, Inspected, LimitStanding

MONTH = "acme/tokens/month"
CONCURRENT = "acme/concurrency/concurrent"
WINDOW = 24_302


def _standing(limit: str, kind: str, *, used: int = 0, held: int = 0, window: int = 0) -> LimitStanding:
    metric = limit.split("/")[1]
    return LimitStanding(limit, metric, kind, 1000, used, held, 0, window, 0)


def _hold(reservation: str, tokens: int) -> Hold:
    amounts = ((MONTH, tokens), (CONCURRENT, 1))
    return Hold(reservation, None, "k1", "m", "realtime", tokens, amounts, 99, True)


def _event(reservation: str, tokens: int, kind: EventKind = EventKind.POSTED) -> Event:
    return Event(
        kind=kind,
        reservation=reservation,
        organisation="acme",
        team=None,
        key="k1",
        model="m",
        lane="realtime",
        occurred_at_ms=0,
        usage=Usage(tokens, 0),
        charge=Charge(tokens=tokens, requests=1),
        amounts=(Amount(MONTH, WINDOW, tokens),),
        price=Price(),
        tokens_held=tokens,
        job_deadline_ms=0,
    )


def _inspected(*holds: Hold, used: int, held: int, in_flight: int) -> Inspected:
    limits = (
        _standing(CONCURRENT, "concurrency", held=in_flight),
        _standing("acme/tokens/minute", "rate", held=0),
        _standing(MONTH, "window", used=used, held=held, window=WINDOW),
    )
    return Inspected(0, 1, limits, holds)


def test_nothing_differs_when_counters_holds_and_ledger_agree() -> None:
    inspected = _inspected(_hold("r1", 10), _hold("r2", 5), used=30, held=15, in_flight=2)
    sums = {(MONTH, WINDOW): 20, (MONTH, WINDOW - 1): 7}
    rows = [_event("r3", 12), _event("r4", 8)]
    assert audit(inspected, window_sums=sums, unwritten=[_event("r5", 10)], rows=rows) == []


def test_a_charge_that_the_ledger_lacks_is_a_difference_in_used() -> None:
    inspected = _inspected(used=30, held=0, in_flight=0)
    (found,) = audit(inspected, window_sums={(MONTH, WINDOW): 20}, unwritten=[])
    assert found == Difference(MONTH, "used", WINDOW, 30, 20)
    assert found.message == f"{MONTH}: used is 30, the ledger for window {WINDOW} says 20, difference 10"


def test_a_hold_that_no_open_reservation_explains_is_a_difference_in_held() -> None:
    inspected = _inspected(_hold("r1", 10), used=0, held=25, in_flight=2)
    found = audit(inspected, window_sums={}, unwritten=[])
    assert found == [Difference(CONCURRENT, "held", 0, 2, 1), Difference(MONTH, "held", WINDOW, 25, 10)]


def test_a_hold_of_a_limit_without_a_counter_is_a_difference() -> None:
    hold = replace(_hold("r1", 10), amounts=(("acme/tokens/day", 10),))
    assert audit(_inspected(hold, used=0, held=0, in_flight=0), window_sums={}, unwritten=[]) == [
        Difference("acme/tokens/day", "held", 0, 0, 10)
    ]


@pytest.mark.parametrize("here", [("acme/tokens/day", 5), (MONTH, WINDOW + 1)])
def test_a_sum_of_a_window_that_no_counter_has_reached_is_a_difference(here: tuple[str, int]) -> None:
    found = audit(_inspected(used=0, held=0, in_flight=0), window_sums={here: 3}, unwritten=[])
    assert found == [Difference(here[0], "used", here[1], 0, 3)]


@pytest.mark.parametrize(
    "extra",
    [
        _event("r1", 10),
        _event("r1", 10, EventKind.EXPIRED),
        replace(_event("r2", 10), charge=Charge(tokens=9)),
    ],
)
def test_rows_that_contradict_each_other_name_their_reservation(extra: Event) -> None:
    rows = [_event("r1", 10), _event("r0", 1), extra]
    (found,) = audit(
        _inspected(used=11, held=0, in_flight=0), window_sums={(MONTH, WINDOW): 21}, unwritten=[], rows=rows
    )
    assert found.reservations == (extra.reservation,)
    assert found.what == "used"
    assert found.message.endswith(f"look at {extra.reservation}")


def test_a_reservation_that_is_open_and_in_the_ledger_is_named_though_the_sums_agree() -> None:
    inspected = _inspected(_hold("r1", 10), used=10, held=10, in_flight=1)
    found = audit(inspected, window_sums={(MONTH, WINDOW): 10}, unwritten=[], rows=[_event("r1", 10)])
    assert found == [Difference(MONTH, "rows", WINDOW, 10, 10, ("r1",))]
    assert found[0].message == f"{MONTH} window {WINDOW}: rows contradict each other; look at r1"


def test_a_late_charge_after_an_expiry_is_no_contradiction() -> None:
    rows = [_event("r1", 4, EventKind.EXPIRED), _event("r1", 6, EventKind.LATE)]
    inspected = _inspected(used=10, held=0, in_flight=0)
    assert audit(inspected, window_sums={(MONTH, WINDOW): 10}, unwritten=[], rows=rows) == []
