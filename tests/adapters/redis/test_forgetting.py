"""A charge is told again until the keeper has drained it, however long that takes, and is forgotten then."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from penstock.adapters.redis import Outbox, open_store
from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.client import RedisClient
from penstock.adapters.redis.positions import Position, find_positions
from penstock.adapters.redis.replaying import KEPT_MS, Acknowledged
from penstock.adapters.redis.retelling import Retelling
from penstock.errors import StoreUnavailable
from penstock.quota import Call, Reserved, Settled, State, reservation_id
from tests.adapters.redis.desks import define, now_ms, ready, reserve, settle
from tests.adapters.redis.fleets import told
from tests.adapters.redis.test_failovers import prepare, until_true
from tests.adapters.redis.test_retelling import nothing_drained
from tests.system.services import Redis

pytestmark = pytest.mark.slow  # real services: left out of the quick check

BOUND_S = 5.0
EARLIER, LATER = range(5), range(5, 10)
OF_EACH = 2  # its hold, and its end


class Process:
    """One that is answered by Redis, with a clock of its own, and a keeper that drains when it is told to."""

    def __init__(self, service: Redis, apply: Callable[[Call[Any]], Awaitable[Any]], asked: RedisClient) -> None:
        self.service = service
        self._sent = apply
        self.ahead_ms = 0
        self.sent: Counter[str] = Counter()
        self.drained: Counter[str] = Counter()
        self._asked = asked
        self._outbox = Outbox(read_address(service.url), bound_s=BOUND_S)
        self.retelling = Retelling(self.apply, lambda: now_ms() + self.ahead_ms, self.look)

    async def apply(self, call: Call[Any]) -> Any:
        answer = await self._sent(call)
        self.sent[type(call).__name__] += 1
        self.retelling.note(call, answer)
        return answer

    async def look(self, organisations: Collection[str]) -> dict[str, Position]:
        return await find_positions(self._asked, organisations)

    async def charge(self, numbers: range) -> None:
        for number in numbers:
            assert isinstance(await self.apply(reserve(number)), Reserved)
            assert isinstance(await self.apply(settle(number)), Settled)

    async def forget_later(self) -> int:
        """What is remembered once all that was charged until now is older than the time kept."""
        self.ahead_ms += KEPT_MS + 1_000  # Redis refuses a caller whose clock is 30 s ahead
        await self.retelling.forget()
        return self.retelling.remembered

    async def drain(self) -> None:
        for partition, entries in (await self._outbox.read()).items():
            self.drained.update(entry.event.reservation for entry in entries if entry.event.kind == "posted")
            await self._outbox.trim({partition: entries[-1].id})

    async def lose(self) -> None:
        told(self.service, "FLUSHALL")

    async def put_back(self) -> None:
        async with open_store(self.service.url, bound_s=BOUND_S, tells_again=False) as keeper:
            for call in (define(), replace(ready(), epoch=0), replace(ready(), epoch=2)):
                await keeper.apply(call)

    async def close(self) -> None:
        await self.retelling.close()
        await self._outbox.close()


@asynccontextmanager
async def process(service: Redis) -> AsyncIterator[Process]:
    await prepare(service.url, ("acme",))
    asked = RedisClient(read_address(service.url), bound_s=BOUND_S)
    async with open_store(service.url, bound_s=BOUND_S, tells_again=False) as store:
        one = Process(service, store.apply, asked)
        yield one
        await one.close()
    await asked.close()


async def _charged_once(one: Process, numbers: range) -> None:
    wanted = {reservation_id(0, number): 1 for number in numbers}

    async def all_are() -> None:
        while one.drained.keys() < wanted.keys():
            await one.drain()

    await asyncio.wait_for(all_are(), 60)
    assert one.drained == wanted


def test_what_no_keeper_had_drained_when_redis_was_flushed_is_charged_once_however_old_it_is(service: Redis) -> None:
    async def run() -> None:
        async with process(service) as one:
            await one.charge(EARLIER)
            assert await one.forget_later() == OF_EACH * len(EARLIER)
            assert await one.forget_later() == OF_EACH * len(EARLIER)
            await one.lose()
            await one.forget_later()  # by this it notices
            await one.put_back()
            await _charged_once(one, EARLIER)

    asyncio.run(run())


def test_what_is_drained_is_forgotten_and_what_came_later_is_not(service: Redis) -> None:
    async def run() -> None:
        async with process(service) as one:
            await one.charge(EARLIER)
            await one.retelling.forget()
            await one.drain()
            await one.charge(LATER)
            assert await one.forget_later() == OF_EACH * len(LATER)
            await one.drain()
            assert await one.forget_later() == 0
            sent = one.sent.total()
            await one.lose()
            await one.put_back()
            await one.forget_later()
            await one.drain()
            assert one.sent.total() == sent, "nothing is told again"
            assert one.drained == {reservation_id(0, number): 1 for number in range(10)}

    asyncio.run(run())


def test_what_is_drained_is_kept_for_the_time_that_redis_may_lose_of_its_log(service: Redis) -> None:
    async def run() -> None:
        async with process(service) as one:
            await one.charge(EARLIER)
            await one.drain()
            await one.retelling.forget()
            assert one.retelling.remembered == OF_EACH * len(EARLIER)

    asyncio.run(run())


@pytest.mark.parametrize("is_put_back", [False, True])
def test_an_outbox_that_is_empty_since_it_was_lost_is_not_a_drained_one(service: Redis, is_put_back: bool) -> None:
    async def run() -> None:
        async with process(service) as one:
            await one.charge(EARLIER)
            await one.retelling.forget()
            await one.lose()
            if is_put_back:
                await one.put_back()
            assert await one.forget_later() == OF_EACH * len(EARLIER)
            if not is_put_back:
                await one.put_back()
            await _charged_once(one, EARLIER)
            await until_true(lambda: one.sent["Settle"] == 2 * len(EARLIER))

    asyncio.run(run())


def test_a_redis_that_cannot_be_asked_lets_nothing_be_forgotten(service: Redis) -> None:
    async def run() -> None:
        async with process(service) as one:
            await one.charge(EARLIER)
            await one.drain()
            service.kill()
            with pytest.raises(StoreUnavailable):
                await one.forget_later()
            assert one.retelling.remembered == OF_EACH * len(EARLIER)

    asyncio.run(run())


def test_a_store_forgets_by_itself_what_is_drained(service: Redis) -> None:
    async def run() -> None:
        await prepare(service.url, ("acme",))
        async with open_store(service.url, bound_s=BOUND_S) as store:
            earlier_ms = now_ms() - 2 * KEPT_MS
            await store.apply(replace(reserve(1), caller_now_ms=earlier_ms))
            await store.apply(replace(settle(1), caller_now_ms=earlier_ms))
            assert store.remembered == OF_EACH
            outbox = Outbox(read_address(service.url), bound_s=BOUND_S)
            for partition, entries in (await outbox.read()).items():
                await outbox.trim({partition: entries[-1].id})
            await outbox.close()
            await until_true(lambda: store.remembered == 0)

    asyncio.run(run())


def test_more_than_the_most_is_not_kept_and_the_oldest_goes_first() -> None:
    acknowledged = Acknowledged(kept_most=6)
    for number in range(5):
        acknowledged.note(reserve(number), Reserved(deadline_ms=0, tokens_held=0, epoch=1, readings=()))
        acknowledged.note(settle(number), Settled(State.POSTED, 0))
    assert len(acknowledged.recent) == 6
    assert acknowledged.dropped == 4
    kept = {each.call.reservation for each in acknowledged.recent}
    assert kept == {reservation_id(0, number) for number in (2, 3, 4)}
    acknowledged.forget(now_ms() + 2 * KEPT_MS, through={"acme": acknowledged.number}, lost=())
    assert (len(acknowledged.recent), acknowledged.charges) == (0, {})


def test_that_charges_are_forgotten_too_early_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def nobody(_: Call[Any]) -> Any:
        raise StoreUnavailable("nobody is there")

    async def run() -> None:
        retelling = Retelling(nobody, now_ms, nothing_drained, kept_most=2)
        for number in range(9):
            retelling.note(reserve(number), Reserved(deadline_ms=0, tokens_held=0, epoch=1, readings=()))
            retelling.note(settle(number), Settled(State.POSTED, 0))
            await retelling.forget()
        await retelling.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert [record.message for record in caplog.records] == [
        "the oldest charges are forgotten before a keeper drained them: see that one runs"
    ]
