"""A reservation that a quota store ended a second time, having lost the first end, is in the ledger as it ended first.

The store is the quota model; it loses the end of its log by being put back to what it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import pytest

from penstock.errors import Deposed, StoreUnavailable
from penstock.lanes.draining import Draining
from penstock.quota import (
    Define,
    Definitions,
    Event,
    EventKind,
    Kind,
    Lane,
    Limit,
    Metric,
    Ready,
    Reserve,
    Reserved,
    Settle,
    State,
    Sweep,
    Touch,
    Usage,
    Void,
)
from tests.lanes.stage import NOW_MS, ManualClock, ModelStore, definitions

LEASE_MS = 60_000
NAME = "018bcfe56800000000000000000000ff"
USED = Usage(30, 18, 5)


@dataclass(frozen=True, slots=True)
class Entry:
    id: str
    event: Event
    traceparent: str | None = None


class Ledger:
    """One row of a kind for each reservation. ``asked``: about how many events, each time."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, EventKind], Event] = {}
        self.asked: list[int] = []
        self.is_deposed = False

    async def drain(self, batches: Mapping[int, Sequence[Any]], *, without: Collection[Event] = ()) -> int:
        if self.is_deposed:
            raise Deposed("another keeper took over")
        before = len(self.rows)
        for entries in batches.values():
            for event in (entry.event for entry in entries if entry.event not in without):
                self.rows.setdefault((event.organisation, event.reservation, event.kind), event)
        return len(self.rows) - before

    async def of_the_same(self, events: Sequence[Event]) -> list[Event]:
        self.asked.append(len(events))
        wanted = {(event.organisation, event.reservation) for event in events}
        return [row for row in self.rows.values() if (row.organisation, row.reservation) in wanted]

    def kinds(self) -> list[str]:
        return [kind.value for _, _, kind in self.rows]

    def charged(self) -> int:
        return sum(row.charge.tokens for row in self.rows.values())


def budgets() -> Definitions:
    """Of tokens, requests and money, a day each."""
    metrics = (Metric.TOKENS, Metric.REQUESTS, Metric.COST)
    limits = (Limit(owner="acme", metric=each, kind=Kind.WINDOW, period_ms=86_400_000, cap=1 << 40) for each in metrics)
    return definitions(limits=tuple(limits))


class World:
    """A store, a ledger, and what writes the one into the other."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = ModelStore(self.clock)
        self.ledger = Ledger()
        self.draining = Draining(self.ledger, self.store, self.clock)
        self._by: dict[str, Any] = {"organisation": "acme", "caller_now_ms": NOW_MS}
        self.store.now(Define(**self._by, version=1, definitions=budgets()))
        self.store.now(Ready(**self._by, epoch=1))

    def begin(self, name: str = NAME, **changes: Any) -> None:
        reserve = Reserve(
            organisation="acme", caller_now_ms=NOW_MS, reservation=name, nonce="n", fingerprint="f", key="k1",
            key_mac="", route="chat.completions", model="chat", body_bytes=200, outputs_bound=100, lane=Lane.REALTIME,
            job_deadline_ms=NOW_MS + 600_000,
        )  # fmt: skip
        assert isinstance(self.store.now(replace(reserve, **changes)), Reserved)

    def touch(self) -> None:
        self.store.now(Touch(**self._by, reservation=NAME, prompt=1, completion=1))

    def settle(self, name: str = NAME) -> Any:
        return self.store.now(Settle(**self._by, reservation=name, usage=USED))

    def void(self) -> None:
        self.store.now(Void(**self._by, reservation=NAME))

    def expire(self, after_ms: int = LEASE_MS) -> None:
        self.clock.ms += after_ms
        self.store.now(Sweep(organisation="acme", caller_now_ms=self.clock.ms, count_max=10_000))

    def entries(self) -> list[Entry]:
        return [Entry(f"{number}-0", event) for number, event in enumerate(self.store.organisation.outbox, 1)]

    def drain(self) -> tuple[int, list[str]]:
        """How many events were new, and which kinds the ledger has of what was read."""
        entries = self.entries()
        added, written = asyncio.run(self.draining.drain({7: entries}))
        del self.store.organisation.outbox[: len(entries)]
        return added, [entry.event.kind.value for entry in written]

    def used(self) -> dict[str, int]:
        return {each.metric: each.used for each in self.store.inspect().limits}

    def assert_counters_are_what_the_ledger_says(self) -> None:
        rows = self.ledger.rows.values()
        charges = [row.charge for row in rows]
        assert self.used() == {
            "tokens": sum(each.tokens for each in charges),
            "requests": sum(each.requests for each in charges),
            "cost": sum(each.cost_nanos for each in charges),
        }


@pytest.fixture
def world() -> World:
    return World()


def end_twice(world: World) -> None:
    """Posted and drained; then the end of the log is lost, and nobody tells it again."""
    world.begin()
    world.touch()
    kept = deepcopy(world.store.organisation)
    assert world.settle().state is State.POSTED
    assert world.drain() == (1, ["posted"])
    world.store.organisation = kept
    world.expire()


def test_what_expires_after_the_ledger_has_its_charge_is_charged_that_and_no_more(world: World) -> None:
    end_twice(world)
    assert world.used()["tokens"] == 2
    assert world.drain() == (0, []), "expired is not written"
    assert world.used()["tokens"] == 48
    assert [event.kind.value for event in world.store.organisation.outbox] == ["late"]
    assert world.drain() == (0, []), "nor is what the store says of the difference"
    assert world.ledger.kinds() == ["posted"]
    world.assert_counters_are_what_the_ledger_says()


def test_what_expires_and_is_settled_late_is_written_as_it_comes(world: World) -> None:
    world.begin()
    world.touch()
    world.expire()
    assert world.drain() == (1, ["expired"])
    world.settle()
    assert world.drain() == (1, ["late"])
    assert world.ledger.charged() == 48
    world.assert_counters_are_what_the_ledger_says()


def test_expired_and_late_in_one_batch_are_both_written(world: World) -> None:
    world.begin()
    world.touch()
    world.expire()
    world.settle()
    assert world.drain() == (2, ["expired", "late"])
    assert world.ledger.charged() == 48
    world.assert_counters_are_what_the_ledger_says()


def test_a_late_charge_that_the_store_lost_is_in_its_counters_again_when_it_expires_again(world: World) -> None:
    world.begin()
    world.touch()
    kept = deepcopy(world.store.organisation)
    world.expire()
    world.settle()
    world.drain()
    world.store.organisation = kept
    world.expire()
    assert world.drain() == (0, [])
    world.drain()
    assert world.ledger.kinds() == ["expired", "late"]
    world.assert_counters_are_what_the_ledger_says()


def test_a_process_that_tells_the_store_again_after_it_expired_bills_nothing_twice(world: World) -> None:
    end_twice(world)
    assert world.settle().state is State.LATE
    assert world.drain() == (0, [])
    assert world.ledger.kinds() == ["posted"]
    world.assert_counters_are_what_the_ledger_says()


@pytest.mark.parametrize("lane", Lane)
def test_what_the_ledger_has_as_voided_stays_so_and_is_charged_no_request(world: World, lane: Lane) -> None:
    world.begin(lane=lane)
    kept = deepcopy(world.store.organisation)
    world.void()
    world.drain()
    world.store.organisation = kept
    world.expire(600_000)
    used = world.used()
    assert world.drain()[0] == 0
    assert "expired" not in world.ledger.kinds()
    assert world.ledger.charged() == 0
    assert world.used() == used, "what expired is not given back, and nothing is added"
    assert world.store.organisation.outbox == []


def test_killed_before_the_batch_leaves_the_store_the_next_keeper_does_it_again_and_charges_nothing_twice(
    world: World,
) -> None:
    end_twice(world)
    entries = world.entries()
    for _ in range(3):
        assert asyncio.run(world.draining.drain({7: entries})) == (0, [])
    assert [event.kind.value for event in world.store.organisation.outbox] == ["expired", "late"]
    world.drain()
    assert world.ledger.kinds() == ["posted"]
    world.assert_counters_are_what_the_ledger_says()


def test_while_the_store_is_away_the_batch_stays_and_is_done_once_it_is_back(world: World) -> None:
    end_twice(world)
    world.store.refusing = (Settle,)
    with pytest.raises(StoreUnavailable):
        world.drain()
    assert [event.kind.value for event in world.store.organisation.outbox] == ["expired"]
    assert world.ledger.kinds() == ["posted"]
    world.store.refusing = ()
    world.drain()
    world.drain()
    world.assert_counters_are_what_the_ledger_says()


def test_a_deposed_keeper_tells_the_store_nothing(world: World) -> None:
    end_twice(world)
    world.ledger.is_deposed = True
    world.store.seen.clear()
    with pytest.raises(Deposed):
        world.drain()
    assert world.store.seen == []


def test_a_store_that_forgot_it_or_lost_all_meanwhile_keeps_no_batch_waiting(world: World) -> None:
    end_twice(world)
    entries = world.entries()
    world.expire(16 * 60_000)  # forgotten
    assert asyncio.run(world.draining.drain({7: entries})) == (0, [])
    world.store = ModelStore(world.clock)  # not ready: the ledger has it right, and it is rebuilt from that
    world.draining = Draining(world.ledger, world.store, world.clock)
    assert asyncio.run(world.draining.drain({7: entries})) == (0, [])
    assert world.ledger.kinds() == ["posted"]


def test_the_same_id_of_another_organisation_is_another_reservation(world: World) -> None:
    end_twice(world)
    (entry,) = world.entries()
    theirs = replace(entry.event, organisation="other")
    added, written = asyncio.run(world.draining.drain({7: [entry, Entry("9-0", theirs)]}))
    assert (added, [each.event for each in written]) == (1, [theirs])


def test_ten_thousand_that_expire_at_once_are_one_question_and_what_was_settled_is_none(world: World) -> None:
    names = [f"{NAME[:12]}{number:020x}" for number in range(10_001)]
    for name in names:
        world.begin(name)
    world.settle(names[0])
    world.drain()
    assert world.ledger.asked == []
    world.expire()
    assert world.drain()[0] == 10_000
    assert world.ledger.asked == [10_000]
