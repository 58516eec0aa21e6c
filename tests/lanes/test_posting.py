"""What the store has forgotten is charged once: unless the ledger has it, or may have it in a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from penstock.lanes.posting import Posting
from penstock.quota.events import Event, EventKind, Usage
from penstock.quota.operations import Done, Duplicate, Lane, Reserve, Reserved, Settle, Settled, State
from tests.lanes.stage import NOW_MS, ModelStore, ready_store

USAGE = Usage(100, 20)


def a_reserve() -> Reserve:
    return Reserve(
        organisation="acme", caller_now_ms=NOW_MS, reservation="018bcfe56800000000000000000000ff", nonce="n",
        fingerprint="f", key="k1", key_mac="", route="chat.completions", model="chat", body_bytes=200,
        outputs_bound=100, lane=Lane.REALTIME, job_deadline_ms=NOW_MS + 600_000,
    )  # fmt: skip


class Books:
    """A ledger and an outbox, as the test fills them."""

    def __init__(self, *rows: Event, on_its_way: bool = False) -> None:
        self.rows = rows
        self.on_its_way = on_its_way
        self.asked: list[str] = []

    async def events(self, organisation: str, reservation: str) -> Sequence[Event]:
        self.asked.append("ledger")
        return [row for row in self.rows if (row.organisation, row.reservation) == (organisation, reservation)]

    async def may_have(self, _organisation: str, _reservation: str) -> bool:
        self.asked.append("outbox")
        return self.on_its_way


def posted(store: ModelStore, books: Books) -> Any:
    posting = Posting(store, store.clock, books.events, books.may_have)
    return asyncio.run(posting.post(a_reserve(), USAGE))


def an_event(kind: EventKind) -> Event:
    """As the ledger has it of a store that knew the reservation."""
    store = ready_store()
    assert isinstance(store.now(a_reserve()), Reserved)
    store.now(Settle(organisation="acme", caller_now_ms=NOW_MS, reservation=a_reserve().reservation, usage=USAGE))
    (event,) = store.ends()
    return replace(event, kind=kind)


def test_what_nobody_knows_is_charged_once_however_often_it_is_posted() -> None:
    store, books = ready_store(), Books()
    assert isinstance(posted(store, books), Settled)
    assert posted(store, books) == Duplicate(State.POSTED)
    (event,) = store.ends()
    assert (event.kind, event.usage) == (EventKind.POSTED, USAGE)
    assert books.asked[:2] == ["outbox", "ledger"], "an event leaves the outbox after the ledger has it"


@pytest.mark.parametrize("kind", [EventKind.POSTED, EventKind.LATE, EventKind.VOIDED])
def test_what_the_ledger_has_charged_or_voided_is_not_charged_again(kind: EventKind) -> None:
    store = ready_store()
    assert posted(store, Books(an_event(kind))) == Done()
    assert store.ends() == []


def test_what_expired_is_charged_the_rest() -> None:
    store = ready_store()
    expired = replace(an_event(EventKind.EXPIRED), usage=Usage(90, 0))
    assert isinstance(posted(store, Books(expired)), Settled)
    (event,) = store.ends()
    assert (event.kind, event.charge.requests) == (EventKind.LATE, 0)


def test_what_may_be_on_its_way_to_the_ledger_waits() -> None:
    store = ready_store()
    assert posted(store, Books(on_its_way=True)) is None
    assert store.ends() == []
