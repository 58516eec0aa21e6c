"""Redis is killed, flushed, cut short or out of disk under load: what was acknowledged is charged once, or the loss has
a bound that is asserted here."""

from __future__ import annotations

import asyncio
import resource
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.adapters.redis import Outbox, RedisStore, open_store
from penstock.adapters.redis.address import read_address
from penstock.errors import StoreUnavailable
from penstock.quota import Denied, Duplicate, Inspect, Inspected, NotReady, Reserved, Settled
from tests.adapters.redis.desks import TOKENS_HELD, define, now_ms, ready, reserve, settle
from tests.adapters.redis.fleets import told
from tests.adapters.redis.test_failovers import (
    Load,
    assert_charged_once,
    definition,
    prepare,
    until_answered,
    until_true,
)
from tests.counts import count
from tests.polling import until
from tests.system.services import Redis, found_program

pytestmark = pytest.mark.slow  # real services: left out of the quick check

BOUND_S = 2.0
KILLS = count(100, short=3)
FLUSHES = count(20, short=2)
BETWEEN = 60  # requests that are charged between two faults
CAP = 20 * TOKENS_HELD


@pytest.fixture
def prepared(service: Redis) -> Redis:
    asyncio.run(prepare(service.url, ("acme",)))
    return service


async def faulted(store: RedisStore, times: int, fault: Callable[[RedisStore], Awaitable[None]]) -> Load:
    """A load that goes on through a fault after every so many requests."""
    load = Load(store, ("acme",))
    running = asyncio.create_task(load.run(at_once=20))

    async def some_more() -> None:
        enough = load.settled["acme"] + BETWEEN
        await until_true(lambda: running.done() or load.settled["acme"] >= enough)

    for _ in range(times):
        await some_more()
        await fault(store)
    await some_more()
    load.is_ending = True
    await running
    return load


@pytest.mark.torture
def test_any_number_of_kills_under_load_charge_each_request_once(prepared: Redis) -> None:
    async def kill(_: RedisStore) -> None:
        await asyncio.to_thread(prepared.kill)
        await asyncio.to_thread(prepared.start)

    async def run() -> Load:
        async with open_store(prepared.url, bound_s=BOUND_S) as store:
            return await faulted(store, KILLS, kill)

    load = asyncio.run(run())
    assert load.refused["acme"] > 0
    asyncio.run(assert_charged_once(prepared.url, load))


class Drained:
    """What a keeper would have: one row for each reservation and kind, of events that it read before they were lost."""

    def __init__(self, url: str) -> None:
        self._outbox = Outbox(read_address(url), bound_s=BOUND_S)
        self.posted: set[str] = set()

    async def run(self) -> None:
        while True:
            for partition, entries in (await self._outbox.read(count_max=1_000)).items():
                self.posted |= {entry.event.reservation for entry in entries if entry.event.kind == "posted"}
                await self._outbox.trim({partition: entries[-1].id})
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        await self._outbox.close()


@pytest.mark.torture
def test_what_was_acknowledged_is_charged_however_often_redis_is_flushed_under_load(prepared: Redis) -> None:
    epochs = iter(range(2, FLUSHES + 2))

    async def flush(store: RedisStore) -> None:
        told(prepared, "FLUSHALL")
        assert await store.apply(reserve(10**6)) == NotReady(), "what was lost never counts from zero"
        async with open_store(prepared.url, bound_s=BOUND_S, tells_again=False) as keeper:
            await keeper.apply(define())
            await keeper.apply(replace(ready(), epoch=0))
            assert await store.apply(reserve(10**6)) == NotReady()
            await keeper.apply(replace(ready(), epoch=next(epochs)))

    async def run() -> None:
        ledger = Drained(prepared.url)
        draining = asyncio.create_task(ledger.run())
        async with open_store(prepared.url, bound_s=BOUND_S) as store:
            load = await faulted(store, FLUSHES, flush)
            await until_true(lambda: draining.done() or load.reservations <= ledger.posted)
            found = await store.apply(Inspect(organisation="acme", caller_now_ms=now_ms()))
        draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)
        await ledger.close()
        assert load.reservations <= ledger.posted
        assert isinstance(found, Inspected)
        assert found.holds == ()
        assert {limit.held for limit in found.limits} == {0}

    asyncio.run(run())


def log_of(service: Redis) -> Path:
    """The file that Redis appends to now."""
    (found,) = service.folder.glob("appendonlydir/*.incr.aof")
    return found


def is_written(service: Redis) -> bool:
    """Whether its file has all that it answered: it keeps some back while the disk is busy."""
    return "\naof_buffer_length:0\n" in told(service, "INFO", "persistence")


async def capped(url: str) -> None:
    async with open_store(url, bound_s=BOUND_S) as store:
        await store.apply(definition("acme", cap=CAP, version=2))


async def admitted(url: str, numbers: range) -> int:
    """How many requests of a process that then ends fit."""
    async with open_store(url, bound_s=BOUND_S, tells_again=False) as store:
        answers = [await until_answered(store, reserve(number)) for number in numbers]
    assert {type(answer) for answer in answers} <= {Reserved, Denied}
    return sum(isinstance(answer, Reserved) for answer in answers)


@pytest.mark.parametrize("lost", [1, 5, 30])
def test_a_cut_log_admits_again_at_most_what_was_admitted_in_the_part_that_is_gone(prepared: Redis, lost: int) -> None:
    """Of the processes that were promised it, none is left to say so."""

    async def run() -> tuple[int, int]:
        await capped(prepared.url)
        kept = await admitted(prepared.url, range(10))
        await asyncio.to_thread(until, lambda: is_written(prepared), bound_s=60.0)
        size_bytes = log_of(prepared).stat().st_size
        gone = await admitted(prepared.url, range(100, 100 + lost))
        await asyncio.to_thread(until, lambda: is_written(prepared), bound_s=60.0)
        await asyncio.to_thread(prepared.kill)
        with log_of(prepared).open("r+b") as file:
            file.truncate(size_bytes + 7)  # in the middle of a command: its end is what a loss of power leaves
        await asyncio.to_thread(prepared.start)
        again = await admitted(prepared.url, range(200, 300))
        return (kept + gone + again) * TOKENS_HELD, gone * TOKENS_HELD

    total, in_the_loss_window = asyncio.run(run())
    assert total - CAP == min(CAP, in_the_loss_window)


def test_a_log_damaged_in_the_middle_stops_the_start_and_mended_is_a_cut_log(prepared: Redis) -> None:
    async def run() -> Any:
        async with open_store(prepared.url, bound_s=BOUND_S) as store:
            begins = log_of(prepared).stat().st_size
            for number in range(20):
                assert isinstance(await until_answered(store, reserve(number)), Reserved)
            await asyncio.to_thread(prepared.kill)
            with log_of(prepared).open("r+b") as file:
                file.seek((begins + log_of(prepared).stat().st_size) // 2)
                file.write(bytes(1_000))
            with pytest.raises(RuntimeError, match="Bad file format"):
                await asyncio.to_thread(prepared.start)
            prepared.process = None
            with pytest.raises(StoreUnavailable):
                await store.apply(reserve(100))
            await asyncio.to_thread(mend, prepared)
            await asyncio.to_thread(prepared.start)
            return [await until_answered(store, settle(number)) for number in range(20)]

    answers = asyncio.run(run())
    assert {type(answer) for answer in answers} <= {Settled, Duplicate}


def mend(service: Redis) -> None:
    """What the operator does, as the page on operations says."""
    (manifest,) = service.folder.glob("appendonlydir/*.manifest")
    subprocess.run([found_program("redis-check-aof"), "--fix", str(manifest)], input=b"y\n", check=True,
                   capture_output=True)  # fmt: skip


class Patient(Redis):
    """One whose writes fail where a file may not grow, as on a full disk, instead of ending it by a signal."""

    def command(self) -> list[str]:
        return [found_program("env"), "--ignore-signal=XFSZ", *super().command()]


def test_a_full_disk_refuses_with_a_retry_and_goes_on_once_there_is_room(tmp_path: Path) -> None:
    """A bound on the size of its files is what a full disk is to Redis: a write that fails."""
    prepared = Patient(tmp_path)
    prepared.start()

    async def run() -> tuple[list[Any], Any]:
        async with open_store(prepared.url, bound_s=BOUND_S) as store:
            assert isinstance(await until_answered(store, reserve(1)), Reserved)
            resource.prlimit(prepared.pid, resource.RLIMIT_FSIZE, (log_of(prepared).stat().st_size + 4096, -1))
            refused: list[Any] = []
            for number in range(2, 400):
                try:
                    await store.apply(reserve(number))
                except StoreUnavailable as unavailable:
                    refused.append(unavailable)
            resource.prlimit(prepared.pid, resource.RLIMIT_FSIZE, (-1, -1))
            return refused, await until_answered(store, settle(1))

    try:
        asyncio.run(prepare(prepared.url, ("acme",)))
        refused, settled = asyncio.run(run())
    finally:
        prepared.stop()
    assert refused
    assert {each.retry_after_ms for each in refused} == {1000}
    assert "free its disk" in str(refused[-1])
    assert isinstance(settled, Settled | Duplicate)
