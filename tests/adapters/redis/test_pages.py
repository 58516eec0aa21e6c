"""Holds are read in pages: none is missed that is open all along, and no page keeps Redis from others for long."""

from __future__ import annotations

import asyncio

import pytest

from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.client import RedisClient, pack
from penstock.adapters.redis.library import load_library
from penstock.adapters.redis.store import RedisStore, open_store
from penstock.lanes.inspecting import PAGE, Read, inspect
from penstock.quota import Inspect, Inspected, Reserved, Touch
from penstock.quota.identity import reservation_id
from tests.adapters.redis.desks import define, now_ms, ready, reserve
from tests.counts import count
from tests.system.services import Redis

PAGE_MAX = 10_000  # of the store
HOLDS = count(50_000, short=PAGE_MAX + 1)
AT_ONCE = 500
PAGE_S_MAX = 0.01

pytestmark = pytest.mark.slow


async def held(store: RedisStore) -> None:
    await store.apply(define())
    await store.apply(ready())
    for first in range(0, HOLDS, AT_ONCE):
        numbers = range(first, min(HOLDS, first + AT_ONCE))
        answers = await asyncio.gather(*(store.apply(reserve(number)) for number in numbers))
        assert {type(answer) for answer in answers} == {Reserved}


async def busy_s(client: RedisClient) -> float:
    """Seconds of processor that Redis took so far: what it has to do, however much else the machine does."""
    told = dict(line.split(b":") for line in (await client.ask(pack("INFO", "cpu"))).splitlines() if b":" in line)
    return float(told[b"used_cpu_user"]) + float(told[b"used_cpu_sys"])


async def renewed(store: RedisStore) -> None:
    """Every third lease, which moves it behind the page that is being read."""
    for number in range(0, HOLDS, 3):
        touch = Touch(
            organisation="acme", caller_now_ms=now_ms(), reservation=reservation_id(0, number), prompt=1, completion=1
        )
        await store.apply(touch)


async def read_all(store: RedisStore) -> Read:
    read = await inspect(store, "acme", now_ms=now_ms())
    assert isinstance(read, Read)
    return read


def test_all_holds_are_read_whoever_renews_them_meanwhile_and_each_page_is_short(service: Redis) -> None:
    async def main() -> None:
        client = RedisClient(read_address(service.url))
        await load_library(client)
        async with open_store(service.url, bound_s=10.0) as store:
            await held(store)
            before_s = await busy_s(client)
            read = await read_all(store)
            most = await store.apply(Inspect(organisation="acme", caller_now_ms=now_ms(), holds_max=HOLDS))
            page_s = (await busy_s(client) - before_s) / (HOLDS // PAGE + 1)
            reading, _ = await asyncio.gather(read_all(store), renewed(store))
        await client.close()
        assert isinstance(most, Inspected)
        assert len(most.holds) == PAGE_MAX
        assert page_s < PAGE_S_MAX, f"{page_s * 1000:.1f} ms of Redis for each page"
        assert (read.is_of_one_instant, read.is_still) == (False, True)
        names = sorted(reservation_id(0, number) for number in range(HOLDS))
        assert [hold.reservation for hold in read.inspected.holds] == names
        assert [hold.reservation for hold in reading.inspected.holds] == names

    asyncio.run(main())
