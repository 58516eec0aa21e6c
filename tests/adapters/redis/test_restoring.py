"""What the ledger knows comes back into a Redis that lost it as it comes back into the model."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.client import RedisClient
from penstock.adapters.redis.library import load_library
from penstock.adapters.redis.restoring import TOMBSTONES_PER_CALL, Restorer
from penstock.adapters.redis.store import RedisStore, open_store
from penstock.adapters.redis.translating import keys_of, read_answer, write_call
from penstock.adapters.redis.wire import pack
from penstock.lanes.rebuilding import Rebuilder
from penstock.quota import (
    Call,
    Define,
    Definitions,
    Done,
    Event,
    Inspect,
    Inspected,
    Key,
    Lane,
    Look,
    Organisation,
    Ready,
    Refused,
    Reserve,
    Reserved,
    Settle,
    Touch,
    Unknown,
    Usage,
    parse_limit_id,
    restore,
)
from tests.adapters.redis.clocked import CLOCKED, set_time
from tests.adapters.redis.crowd.line import Line
from tests.lanes.test_rebuilding import DEFINITIONS as LEDGER_DEFINITIONS
from tests.lanes.test_rebuilding import T0_MS as LEDGER_MS
from tests.lanes.test_rebuilding import Stage
from tests.quota.histories import MAC, MODELS, ORGANISATIONS, T0_MS, history
from tests.system.services import Redis

pytestmark = pytest.mark.slow  # real services: left out of the quick check

CALLS = 1_500
NAME = ORGANISATIONS[0]


def lived(seed: int) -> tuple[Organisation, list[Event], int]:
    """An organisation after a history, with its ledger, and the time."""
    organisation, events, now_ms = Organisation(NAME), [], 0
    for call, time_ms in history(seed, CALLS):
        if call.organisation == NAME:
            organisation.apply(call, time_ms=time_ms)
            events += organisation.outbox
            organisation.outbox.clear()
            now_ms = max(now_ms, time_ms, organisation.clock_ms)
    first = {(event.reservation, event.kind): event for event in reversed(events)}
    return organisation, sorted(first.values(), key=in_order_of_the_ledger), now_ms


def in_order_of_the_ledger(event: Event) -> tuple[int, str, str]:
    """What expires and is settled in the same millisecond expired first: see ``LedgerReads.to_be_remembered``."""
    return event.occurred_at_ms, event.reservation, event.kind


def summed(events: list[Event]) -> dict[tuple[str, int], int]:
    sums: dict[tuple[str, int], int] = defaultdict(int)
    for event in events:
        for posted in event.amounts:
            sums[posted.limit, posted.window] += posted.amount
    return dict(sums)


def questions(events: list[Event], now_ms: int) -> list[Call[Any]]:
    """What a restored store is asked: every id that it must remember, then everything."""
    asked: list[Call[Any]] = []
    for event in events[-60:]:
        here: dict[str, Any] = {"organisation": NAME, "caller_now_ms": now_ms, "reservation": event.reservation}
        asked += [Touch(**here, prompt=1, completion=1), Settle(**here, usage=Usage(3_000, 2_000, 10))]
    return [*asked, Inspect(organisation=NAME, caller_now_ms=now_ms)]


async def _compare(url: str, seed: int) -> None:
    lost, events, now_ms = lived(seed)
    sums = summed(events)
    client, restorer = RedisClient(read_address(url)), Restorer(read_address(url))
    await load_library(client, source=CLOCKED)
    await client.ask(set_time(now_ms))
    here: dict[str, Any] = {"organisation": NAME, "caller_now_ms": now_ms}
    model = restore(
        NAME, version=lost.version, definitions=lost.definitions, epoch=0, time_ms=now_ms, window_sums=sums,
        tombstones=events,
    )  # fmt: skip
    async with open_store(url) as store:
        await store.apply(Define(**here, version=lost.version, definitions=lost.definitions))
        restored = await restorer.restore(NAME, clock_ms=now_ms, window_sums=sums, tombstones=events)
        assert isinstance(restored, str)
        assert await restorer.restored(NAME) == restored
        model.restored = restored
        for epoch, named in ((0, ""), (0, "1 other"), (0, restored), (7, ""), (7, restored), (7, restored), (7, None)):
            ready = Ready(**here, epoch=epoch, restored=named)
            assert await store.apply(ready) == model.apply(ready, time_ms=now_ms)
        for question in (Inspect(**here), *questions(events, now_ms)):
            assert await store.apply(question) == model.apply(question, time_ms=now_ms), f"seed {seed}: {question}"
        await _refuses_when_not_lost(store, restorer, now_ms)
    await restorer.close()
    await client.close()


async def _refuses_when_not_lost(store: RedisStore, restorer: Restorer, now_ms: int) -> None:
    inspect = Inspect(organisation=NAME, caller_now_ms=now_ms)
    before = await store.apply(inspect)
    assert isinstance(before, Inspected)
    answer = await restorer.restore(NAME, clock_ms=now_ms, window_sums={}, tombstones=[])
    assert answer == Refused("the state is not lost: it has a marker or an epoch")
    assert await store.apply(inspect) == before


@pytest.mark.parametrize("history_seed", [1, 2, 9, 19])
def test_a_restored_redis_answers_as_the_restored_model(service: Redis, history_seed: int) -> None:
    asyncio.run(_compare(service.url, history_seed))


def test_open_jobs_are_queued_again_and_hold_what_they_held(service: Redis) -> None:
    limits = (
        "tokens/day",
        "cost/day",
        "requests/day",
        "tokens/enqueued",
        "requests/enqueued",
        "concurrency/concurrent",
    )
    keys = {each.id: each for each in (Key(id="k", macs=((MAC, 0),)), Key(id="t", team="search", macs=((MAC, 0),)))}
    definitions = Definitions(
        limits=tuple(replace(parse_limit_id(f"{NAME}/{each}"), cap=1 << 40) for each in limits),
        keys=keys,
        models=MODELS,
    )
    defined = Define(organisation=NAME, caller_now_ms=T0_MS, version=1, definitions=definitions)
    ready = Ready(organisation=NAME, caller_now_ms=T0_MS, epoch=2)
    jobs = [
        Reserve(
            organisation=NAME, caller_now_ms=T0_MS, reservation=f"j-{number}", nonce="a", fingerprint="f", key=key,
            key_mac=MAC, route="chat.completions", model="small", body_bytes=0, prompt_tokens=0, outputs_bound=20,
            lane=Lane.QUEUE, job_deadline_ms=T0_MS + left_ms,
        )
        for number, (key, left_ms) in enumerate([("k", 1), ("t", 60_000), ("k", 0)])
    ]  # fmt: skip
    model = Organisation(NAME)
    calls: list[Call[Any]] = [defined, ready, *jobs[:2]]
    for call in calls:
        assert type(model.apply(call, time_ms=T0_MS)) in (Done, Reserved)
    events = [*model.outbox, replace(model.outbox[0], reservation="j-2", job_deadline_ms=T0_MS)]

    async def main(url: str) -> None:
        client, restorer = RedisClient(read_address(url)), Restorer(read_address(url))
        await load_library(client, source=CLOCKED)
        await client.ask(set_time(T0_MS))
        async with open_store(url) as store:
            await store.apply(defined)
            for _ in range(2):  # a portion that is told again changes nothing
                await restorer.restore(NAME, clock_ms=T0_MS, window_sums={}, tombstones=[], jobs=events)
            await store.apply(ready)
            inspect = Inspect(organisation=NAME, caller_now_ms=T0_MS)
            assert await store.apply(inspect) == model.apply(inspect, time_ms=T0_MS)
            assert await store.apply(Look(organisation=NAME, caller_now_ms=T0_MS, reservation="j-2")) == Unknown()
        await restorer.close()
        await client.close()

    asyncio.run(main(service.url))


def test_the_histories_fill_more_than_one_portion() -> None:
    assert max(len(lived(seed)[1]) for seed in (1, 2, 3)) > 100
    assert TOMBSTONES_PER_CALL == 500


class Pages:
    """Single pages of restores, as ``Restorer`` sends them, on an organisation that is defined and lost."""

    def __init__(self, client: RedisClient, store: RedisStore) -> None:
        self.client, self.store = client, store
        self.here: dict[str, Any] = {"organisation": NAME, "caller_now_ms": T0_MS}
        day = replace(parse_limit_id(f"{NAME}/tokens/day"), cap=1_000)
        self.defined = Define(**self.here, version=1, definitions=Definitions(limits=(day,)))

    async def restore(self, rebuild: str | None, page: int | None, *, used: int | None = None) -> Any:
        """A page; with what was used if it is the first."""
        day = {"limit": f"{NAME}/tokens/day", "metric": "tokens", "kind": "window", "period_ms": 86_400_000}
        sums = [] if used is None else [day | {"anchor_ms": 0, "window": T0_MS // 86_400_000, "used": used}]
        argument = {**self.here, "clock_ms": T0_MS, "counters": sums, "tombstones": [], "jobs": []}
        if page is not None:
            argument |= {"rebuild": rebuild, "page": page}
        call = pack("FCALL", "penstock_restore", "5", *keys_of(NAME), json.dumps(argument))
        return read_answer(await self.client.ask(call))

    async def ready(self, restored: str | None, *, epoch: int = 0) -> Any:
        return await self.store.apply(Ready(**self.here, epoch=epoch, restored=restored))

    async def flush(self) -> None:
        """And defined again, by a service whose definitions changed."""
        await self.client.ask(pack("FLUSHALL"))
        assert await self.store.apply(self.defined) == Done()

    async def used(self) -> int:
        found = await self.store.apply(Inspect(**self.here))
        assert isinstance(found, Inspected)
        return found.limits[0].used


def with_pages(service: Redis, test: Callable[[Pages], Awaitable[None]]) -> None:
    async def main(url: str) -> None:
        client = RedisClient(read_address(url))
        await load_library(client, source=CLOCKED)
        await client.ask(set_time(T0_MS))
        async with open_store(url, tells_again=False) as store:
            pages = Pages(client, store)
            await pages.flush()
            await test(pages)
        await client.close()

    asyncio.run(main(service.url))


def test_a_state_that_was_lost_between_two_pages_or_before_its_marker_is_never_ready(service: Redis) -> None:
    async def test(pages: Pages) -> None:
        assert isinstance(await pages.restore("a", 1), Refused), "there is no page 0"
        assert await pages.restore("a", 0, used=450) == Done()
        assert isinstance(await pages.restore("a", 2), Refused)
        assert isinstance(await pages.ready("2 a"), Refused), "a page is missing"
        assert await pages.restore("a", 1) == Done()
        await pages.flush()
        assert isinstance(await pages.restore("a", 2), Refused), "lost between two pages"
        for epoch in (0, 1):
            assert isinstance(await pages.ready("2 a", epoch=epoch), Refused), "lost before the marker"
        assert await pages.restore("b", 0, used=450) == Done()
        assert await pages.ready("1 b") == Done()
        await pages.flush()
        assert isinstance(await pages.ready("1 b", epoch=1), Refused), "lost in the lease"
        assert await pages.ready("", epoch=1) == Done(), "of one that begins"

    with_pages(service, test)


def test_pages_that_come_again_change_nothing_and_a_first_page_begins_anew(service: Redis) -> None:
    async def test(pages: Pages) -> None:
        for page in (0, 1, 2, 1, 2):  # after a connection that broke, from the first that was not answered
            assert await pages.restore("a", page, used=None if page else 450) == Done()
        assert await pages.restore("a", 0, used=450) == Done()
        assert isinstance(await pages.ready("3 a"), Refused)
        for page in (1, 2):
            assert await pages.restore("a", page) == Done()
        for _ in range(2):
            assert await pages.ready("3 a") == Done()
        assert isinstance(await pages.restore("a", 0, used=0), Refused)
        for _ in range(2):
            assert await pages.ready("3 a", epoch=1) == Done()
        assert await pages.used() == 450

    with_pages(service, test)


def test_pages_of_two_keepers_make_no_state_together(service: Redis) -> None:
    """One was deposed, and goes on for a moment with what it had read."""

    async def test(pages: Pages) -> None:
        assert await pages.restore("new", 0, used=450) == Done()
        assert await pages.restore("new", 1) == Done()
        assert await pages.restore("old", 0, used=7) == Done()
        assert isinstance(await pages.restore("new", 2), Refused)
        assert await pages.restore("old", 1) == Done()
        assert isinstance(await pages.ready("2 new"), Refused)

    with_pages(service, test)


def test_a_keeper_of_the_version_before_restores_as_it_did(service: Redis) -> None:
    """It names neither page nor restore."""

    async def test(pages: Pages) -> None:
        assert await pages.restore("new", 0, used=7) == Done()
        assert await pages.restore(None, None, used=450) == Done()
        for epoch in (0, 1):
            call = pack("FCALL", "penstock_ready", "5", *keys_of(NAME), json.dumps(pages.here | {"epoch": epoch}))
            assert read_answer(await pages.client.ask(call)) == Done()
        assert await pages.used() == 450

    with_pages(service, test)


@pytest.mark.parametrize("is_before_epoch", [False, True])
def test_a_keeper_whose_redis_is_flushed_before_it_is_ready_rebuilds_it_from_the_ledger(
    service: Redis, is_before_epoch: bool
) -> None:
    """Flushed, and defined again by a service, between the restore and the marker, or before the epoch."""

    async def main(url: str) -> None:
        stage, restorer, client = Stage(epoch=4, newest_ms=LEDGER_MS), Restorer(read_address(url)), Line(service.port)
        client.ask([pack("FUNCTION", "LOAD", "REPLACE", CLOCKED)])
        async with open_store(url, tells_again=False) as store:
            rebuilder = Rebuilder(stage, store, restorer, stage, lease_ms=1_000)

            def flush() -> None:
                define = Define(
                    organisation="acme", caller_now_ms=stage.now_ms(), version=1, definitions=LEDGER_DEFINITIONS
                )
                client.ask([pack("FLUSHALL"), set_time(stage.now_ms()), write_call(define)])

            async def tend(*, is_lost: bool) -> None:
                await rebuilder.tend("acme", 1, LEDGER_DEFINITIONS, is_lost=is_lost, drain=stage.drain)

            flush()
            stage.meanwhile = [lambda: None, flush] if is_before_epoch else [flush]
            await tend(is_lost=True)
            while rebuilder.under_way:
                stage.now_s += 1
                await tend(is_lost=False)
            found = await store.apply(Inspect(organisation="acme", caller_now_ms=stage.now_ms()))
            assert isinstance(found, Inspected)
            assert found.epoch == stage.epochs["acme"]
            assert {each.limit: each.used for each in found.limits}["acme/tokens/day"] == 450
            assert stage.now_s == (2 if is_before_epoch else 1), "a lease after each restore"
        client.close()
        await restorer.close()

    asyncio.run(main(service.url))
