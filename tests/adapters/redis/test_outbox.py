"""The outbox in Redis is read in order from any position and trimmed just up to one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from penstock.adapters.redis import Entry, Outbox, RedisStore, load_library, open_store
from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.client import RedisClient
from penstock.adapters.redis.translating import partition_of
from penstock.quota import Call, EventKind, Settled
from tests.adapters.redis.desks import define, ready, reserve, settle
from tests.system.services import Redis

A = TypeVar("A")
ACME = partition_of("acme")
COUNT = 5


def drained(service: Redis, use: Callable[[RedisStore, Outbox], Awaitable[A]]) -> A:
    """With five settled requests of acme."""

    async def run() -> A:
        client, outbox = RedisClient(read_address(service.url)), Outbox(read_address(service.url))
        try:
            await load_library(client)
            await outbox.start()
            async with open_store(service.url) as store:
                calls: list[Call[Any]] = [define(), ready(), *(reserve(each) for each in range(COUNT))]
                for call in (*calls, *(settle(each) for each in range(COUNT))):
                    answer = await store.apply(call)
                assert type(answer) is Settled
                return await use(store, outbox)
        finally:
            await outbox.close()
            await client.close()

    return asyncio.run(run())


def test_every_event_is_read_once_by_who_goes_on_from_its_position(service: Redis) -> None:
    async def read(_: RedisStore, outbox: Outbox) -> list[Entry]:
        found: list[Entry] = []
        while entries := await outbox.read({ACME: found[-1].id} if found else None, count_max=2):
            assert set(entries) == {ACME}
            found += entries[ACME]
        return found

    found = drained(service, read)
    assert [entry.event.reservation for entry in found] == [reserve(each).reservation for each in range(COUNT)]
    assert {entry.event.kind for entry in found} == {EventKind.POSTED}


def test_trimming_takes_what_was_read_and_nothing_after_it(service: Redis) -> None:
    async def trim(_: RedisStore, outbox: Outbox) -> tuple[int, int, list[Entry], dict[int, int]]:
        entries = (await outbox.read())[ACME]
        removed = [await outbox.trim({ACME: entries[2].id}) for _ in range(2)]
        return removed[0], removed[1], (await outbox.read())[ACME], await outbox.lengths()

    first, again, left, lengths = drained(service, trim)
    assert (first, again) == (3, 0)
    assert [entry.event.reservation for entry in left] == [reserve(each).reservation for each in (3, 4)]
    assert lengths == {ACME: 2}


def test_organisations_of_one_partition_share_a_stream_and_others_do_not(service: Redis) -> None:
    same = next(name for name in (f"o{each}" for each in range(10_000)) if partition_of(name) == ACME)
    other = next(name for name in (f"o{each}" for each in range(10_000)) if partition_of(name) != ACME)

    async def read(store: RedisStore, outbox: Outbox) -> dict[int, set[str]]:
        for name in (same, other):
            definitions = replace(define().definitions, limits=())
            await store.apply(replace(define(), organisation=name, definitions=definitions))
            await store.apply(replace(ready(), organisation=name))
            await store.apply(replace(reserve(1), organisation=name))
            await store.apply(replace(settle(1), organisation=name))
        found = await outbox.read()
        return {each: {entry.event.organisation for entry in entries} for each, entries in found.items()}

    assert drained(service, read) == {ACME: {"acme", same}, partition_of(other): {other}}


def test_an_event_brings_the_trace_of_a_request_whose_nonce_is_one(service: Redis) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    nonces = (trace, trace.upper(), f"{trace}0", f"{trace[:-1]}", "x" * len(trace))

    async def traced(store: RedisStore, outbox: Outbox) -> list[str | None]:
        last = (await outbox.read())[ACME][-1].id
        for index, nonce in enumerate(nonces, COUNT):
            await store.apply(replace(reserve(index), nonce=nonce))
            await store.apply(settle(index))
        return [entry.traceparent for entry in (await outbox.read({ACME: last}))[ACME]]

    assert drained(service, traced) == [trace, None, None, None, None]
