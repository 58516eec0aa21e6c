"""Redis freezes, dies, loses things or answers too late: no call hangs, and no reservation holds twice or is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from penstock.adapters.redis import Outbox, RedisStore, load_library, open_store
from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.client import RedisClient, pack
from penstock.adapters.redis.translating import keys_of
from penstock.errors import StoreUnavailable
from penstock.quota import (
    Call,
    Duplicate,
    EventKind,
    Inspect,
    Inspected,
    Look,
    NotReady,
    Reserved,
    Seen,
    Settled,
    State,
    Sweep,
    Unknown,
    reservation_id,
)
from tests.adapters.redis.desks import IN_FLIGHT, TOKENS_HELD, WINDOW, define, now_ms, ready, reserve, settle
from tests.adapters.redis.proxies import network
from tests.system.services import Redis

pytestmark = pytest.mark.slow  # real services: left out of the quick check

SLACK_S = 0.5  # of a machine that does other things too
PATIENT_S = 2.0  # where it matters what is answered, and not how soon
COUNT = 200


@pytest.fixture
def prepared(service: Redis) -> Redis:
    """With the library, and acme defined."""
    asyncio.run(_load(service.url))
    asyncio.run(_define(service.url))
    return service


async def _load(url: str) -> None:
    client = RedisClient(read_address(url))
    await load_library(client)
    await client.close()


async def _define(url: str) -> None:
    async with open_store(url) as store:
        await store.apply(define())
        await store.apply(ready())


async def bounded(store: RedisStore, call: Call[Any]) -> Any:
    """The answer, or that there is none; never later than it may be."""
    began_s = time.monotonic()
    try:
        return await store.apply(call)
    except StoreUnavailable as unavailable:
        return unavailable
    finally:
        assert time.monotonic() - began_s < 2 * store.bound_s + SLACK_S


async def usable(store: RedisStore) -> None:
    """Redis is back. Calls until then are refused, and each refusal is quick."""
    for _ in range(1_000):
        if not isinstance(await bounded(store, _look(0)), StoreUnavailable):
            return
        await asyncio.sleep(0.01)
    pytest.fail("Redis is not used again")


async def known(store: RedisStore, number: int) -> None:
    """The store has this reservation, or gets it soon."""
    for _ in range(1_000):
        if isinstance(await bounded(store, _look(number)), Seen):
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"nobody told Redis of reservation {number}")


async def consistent(url: str) -> dict[str, Any]:
    """The standing of acme once nothing is under way, with the invariants asserted."""
    async with open_store(url, bound_s=PATIENT_S) as store:
        await store.apply(Sweep(organisation="acme", caller_now_ms=now_ms(), count_max=1_000))
        standing = await store.apply(Inspect(organisation="acme", caller_now_ms=now_ms()))
        assert isinstance(standing, Inspected)
        limits = {limit.limit: limit for limit in standing.limits}
        assert len({hold.reservation for hold in standing.holds}) == len(standing.holds)
        assert limits[WINDOW].held == TOKENS_HELD * len(standing.holds)
        assert limits[IN_FLIGHT].held == len(standing.holds)
        return {"held": {hold.reservation for hold in standing.holds}, "used": limits[WINDOW].used}


def test_a_refusal_says_when_to_come_again(prepared: Redis) -> None:
    async def run() -> Any:
        async with open_store(prepared.url, bound_s=PATIENT_S) as store:
            await asyncio.to_thread(prepared.kill)
            return await bounded(store, reserve(1)), await bounded(store, reserve(1))

    first, second = asyncio.run(run())
    assert first.retry_after_ms == second.retry_after_ms == 1000


def ids(answers: dict[int, Any], kind: type) -> set[str]:
    return {reservation_id(0, number) for number, answer in answers.items() if isinstance(answer, kind)}


async def _all(store: RedisStore, make: Callable[[int], Call[Any]], numbers: range) -> dict[int, Any]:
    return dict(zip(numbers, await asyncio.gather(*(bounded(store, make(each)) for each in numbers)), strict=True))


def test_calls_of_one_tick_share_a_write(prepared: Redis) -> None:
    async def run() -> tuple[list[int], int]:
        async with network(prepared.url) as between, open_store(between.url, bound_s=PATIENT_S) as store:
            connections = between.connections
            between.writes.clear()
            await _all(store, reserve, range(50))
            return between.writes, between.connections - connections

    writes, connections = asyncio.run(run())
    assert len(writes) == 1
    assert connections == 0


def test_a_reserve_whose_reply_is_lost_is_granted_once(prepared: Redis) -> None:
    async def run() -> dict[int, Any]:
        async with network(prepared.url) as between, open_store(between.url, bound_s=PATIENT_S) as store:
            between.withhold_replies()
            return await _all(store, reserve, range(COUNT))

    answers = asyncio.run(run())
    assert {type(answer) for answer in answers.values()} == {Reserved}
    assert asyncio.run(consistent(prepared.url))["held"] == ids(answers, Reserved)


def test_a_settle_whose_reply_is_lost_is_charged_once(prepared: Redis) -> None:
    async def run() -> dict[int, Any]:
        async with network(prepared.url) as between, open_store(between.url, bound_s=PATIENT_S) as store:
            await _all(store, reserve, range(COUNT))
            between.cut_at_next_reply()
            return await _all(store, settle, range(COUNT))

    answers = asyncio.run(run())
    assert Duplicate(State.POSTED) in answers.values(), "some were carried out before their replies were cut off"
    assert {type(answer) for answer in answers.values()} <= {Settled, Duplicate}
    assert asyncio.run(consistent(prepared.url)) == {"held": set(), "used": 120 * COUNT}


def test_another_attempt_with_the_same_id_is_no_retry(prepared: Redis) -> None:
    async def run() -> list[Any]:
        async with open_store(prepared.url, bound_s=PATIENT_S) as store:
            return [await store.apply(reserve(1, nonce=nonce)) for nonce in ("a", "a", "b")]

    first, again, other = asyncio.run(run())
    assert first.deadline_ms == again.deadline_ms
    assert other == Duplicate(State.OPEN)


def test_a_frozen_redis_hangs_nobody_and_holds_nothing_twice_when_it_thaws(prepared: Redis) -> None:
    async def run() -> tuple[dict[int, Any], float, dict[int, Any]]:
        async with open_store(prepared.url) as store:
            prepared.freeze()
            first = await _all(store, reserve, range(COUNT))
            began_s = time.monotonic()
            await _all(store, reserve, range(COUNT, 2 * COUNT))
            refused_s = time.monotonic() - began_s
            prepared.thaw()
            await usable(store)
        async with open_store(prepared.url, bound_s=PATIENT_S) as store:
            return first, refused_s, await _all(store, reserve, range(COUNT))

    first, refused_s, again = asyncio.run(run())
    assert {type(answer) for answer in first.values()} == {StoreUnavailable}
    assert refused_s < PATIENT_S, "while Redis is away, calls are refused at once"
    assert {type(answer) for answer in again.values()} == {Reserved}
    assert asyncio.run(consistent(prepared.url))["held"] == ids(again, Reserved)


def test_a_killed_redis_hangs_nobody_and_keeps_what_it_acknowledged(prepared: Redis) -> None:
    async def run() -> tuple[dict[int, Any], dict[int, Any]]:
        async with open_store(prepared.url, bound_s=PATIENT_S) as store:
            reserved = await _all(store, reserve, range(COUNT))
            under_way = asyncio.create_task(_all(store, settle, range(COUNT // 2)))
            await asyncio.sleep(0)
            await asyncio.to_thread(prepared.kill)
            settled = await under_way
            assert isinstance(await bounded(store, reserve(COUNT)), StoreUnavailable)
            await asyncio.to_thread(prepared.start)
            await usable(store)
            return reserved, settled | await _all(store, settle, range(COUNT // 2))

    reserved, settled = asyncio.run(run())
    assert {type(answer) for answer in reserved.values()} == {Reserved}
    assert {type(answer) for answer in settled.values()} <= {Settled, Duplicate}
    left = {reservation_id(0, number) for number in range(COUNT // 2, COUNT)}
    assert asyncio.run(consistent(prepared.url)) == {"held": left, "used": 120 * (COUNT // 2)}


def test_a_restart_that_lost_its_last_seconds_is_told_them_again(prepared: Redis) -> None:
    async def run() -> set[State]:
        async with open_store(prepared.url, bound_s=PATIENT_S) as store:
            await _all(store, reserve, range(COUNT))
            await _all(store, settle, range(COUNT // 2))
            await _forget(prepared.url)
            await asyncio.to_thread(prepared.kill)
            await asyncio.to_thread(prepared.start)
            await usable(store)
            seen = await _all(store, _look, range(COUNT // 2))
            return {each.state for each in seen.values() if isinstance(each, Seen)}

    assert asyncio.run(run()) == {State.POSTED}
    left = {reservation_id(0, number) for number in range(COUNT // 2, COUNT)}
    assert asyncio.run(consistent(prepared.url)) == {"held": left, "used": 120 * (COUNT // 2)}


@pytest.mark.slow
def test_three_kills_under_load_lose_and_repeat_nothing(prepared: Redis) -> None:
    kills, requests = 3, 1_500
    moments = [asyncio.Event() for _ in range(kills)]
    ended: list[int] = []

    async def insist(store: RedisStore, make: Callable[[int], Call[Any]], number: int, on: tuple[type, ...]) -> Any:
        while not isinstance(answer := await bounded(store, make(number)), on):
            assert isinstance(answer, StoreUnavailable), answer
            await usable(store)
        return answer

    async def serve(store: RedisStore, numbers: Iterator[int]) -> None:
        for number in numbers:
            await insist(store, reserve, number, (Reserved,))
            await insist(store, settle, number, (Settled, Duplicate))
            ended.append(number)
            if len(ended) % (requests // (kills + 1)) == 0 and len(ended) < requests:
                moments[len(ended) // (requests // (kills + 1)) - 1].set()

    async def kill() -> None:
        for moment in moments:
            await moment.wait()
            await asyncio.to_thread(prepared.kill)
            await asyncio.to_thread(prepared.start)

    async def run() -> list[str]:
        async with open_store(prepared.url, bound_s=PATIENT_S) as store:
            numbers = iter(range(requests))
            await asyncio.gather(kill(), *(serve(store, numbers) for _ in range(50)))
        outbox = Outbox(read_address(prepared.url))
        (entries,) = (await outbox.read(count_max=2 * requests)).values()
        await outbox.close()
        assert {entry.event.kind for entry in entries} == {EventKind.POSTED}
        return sorted(entry.event.reservation for entry in entries)

    posted = asyncio.run(run())
    assert posted == sorted(reservation_id(0, number) for number in range(requests))
    assert asyncio.run(consistent(prepared.url)) == {"held": set(), "used": 120 * requests}


async def _forget(url: str) -> None:
    """As if the append-only file ended before the first reserve: acme is defined again, and has nothing."""
    client = RedisClient(read_address(url))
    await client.ask(pack("DEL", *keys_of("acme")))
    await client.close()
    await _define(url)


def _look(number: int) -> Look:
    return Look(organisation="acme", caller_now_ms=now_ms(), reservation=reservation_id(0, number))


def test_a_redis_that_lost_everything_is_not_ready_and_counts_nothing_as_zero(prepared: Redis) -> None:
    async def run() -> Any:
        async with open_store(prepared.url, bound_s=PATIENT_S) as store:
            await store.apply(reserve(1))
            client = RedisClient(read_address(prepared.url))
            await client.ask(pack("FLUSHALL"))
            await client.close()
            return await store.apply(reserve(2))

    assert asyncio.run(run()) == NotReady()


def test_holds_of_a_redis_that_lost_everything_are_told_again_once_it_is_put_back(prepared: Redis) -> None:
    async def run() -> set[str]:
        async with open_store(prepared.url, bound_s=PATIENT_S) as store:
            await _all(store, reserve, range(10))
            client = RedisClient(read_address(prepared.url))
            await client.ask(pack("FLUSHALL"))
            await client.close()
            assert await store.apply(reserve(10)) == NotReady()
            async with open_store(prepared.url, bound_s=PATIENT_S) as keeper:
                await keeper.apply(define())
                await keeper.apply(replace(ready(), epoch=0))
                for number in range(10):
                    await known(keeper, number)
                await keeper.apply(replace(ready(), epoch=2))
        return {reservation_id(0, number) for number in range(10)}

    held = asyncio.run(run())
    assert asyncio.run(consistent(prepared.url)) == {"held": held, "used": 0}


def test_lost_functions_are_named_and_their_return_is_noticed(prepared: Redis) -> None:
    async def run() -> tuple[Any, Any, Any]:
        async with open_store(prepared.url, bound_s=PATIENT_S) as store:
            client = RedisClient(read_address(prepared.url))
            await client.ask(pack("FUNCTION", "FLUSH"))
            at_once = await bounded(store, reserve(1))
            await asyncio.to_thread(prepared.kill)
            await asyncio.to_thread(prepared.start)
            after = await bounded(store, reserve(1))
            await client.close()
            await _load(prepared.url)
            await usable(store)
            return at_once, after, await bounded(store, reserve(1))

    at_once, after, finally_ = asyncio.run(run())
    assert "penstock setup" in str(at_once)
    assert "penstock setup" in str(after)
    assert isinstance(finally_, Reserved)


def test_a_caller_that_leaves_disturbs_no_other(prepared: Redis) -> None:
    async def run() -> tuple[dict[int, Any], int]:
        async with network(prepared.url) as between, open_store(between.url, bound_s=PATIENT_S) as store:
            connections = between.connections
            leaving = [asyncio.create_task(store.apply(reserve(number))) for number in range(10)]
            staying = asyncio.create_task(_all(store, reserve, range(10, 20)))
            await asyncio.sleep(0)
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
            return await staying, between.connections - connections

    answers, connections = asyncio.run(run())
    assert {type(answer) for answer in answers.values()} == {Reserved}
    assert connections == 0


def test_an_argument_that_is_none_is_our_own_mistake(prepared: Redis) -> None:
    async def run() -> None:
        async with open_store(prepared.url, bound_s=PATIENT_S) as store:
            await store.apply(Look(organisation="acme", caller_now_ms=0, reservation=7))  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="reservation is a number, not a string"):
        asyncio.run(run())


def test_a_full_redis_admits_nothing_and_still_settles(prepared: Redis) -> None:
    async def run() -> tuple[Any, Any]:
        async with open_store(prepared.url, bound_s=PATIENT_S) as store:
            await store.apply(reserve(1))
            client = RedisClient(read_address(prepared.url))
            await client.ask(pack("CONFIG", "SET", "maxmemory", 1))
            await client.close()
            return await bounded(store, reserve(2)), await bounded(store, settle(1))

    refused, settled = asyncio.run(run())
    assert "maxmemory" in str(refused)
    assert isinstance(settled, Settled)


def test_what_nobody_defined_is_not_ready_and_what_nobody_reserved_is_unknown(prepared: Redis) -> None:
    async def run() -> Any:
        async with open_store(prepared.url, bound_s=PATIENT_S) as store:
            return await store.apply(settle(9)), await store.apply(
                Inspect(organisation="nobody", caller_now_ms=now_ms())
            )

    assert asyncio.run(run()) == (Unknown(), NotReady())
