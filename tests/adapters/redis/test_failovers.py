"""A primary is lost and its copy takes over, by sentinels or within a cluster: what was acknowledged is charged once.

And what that can cost: a copy that lacks the end lets that much be admitted again, where nobody is left to tell it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.adapters.redis import Outbox, RedisStore, load_library, open_store
from penstock.adapters.redis.address import Kind, read_address
from penstock.adapters.redis.client import RedisClient
from penstock.adapters.redis.cluster import find_primaries, find_replicas, slot_of
from penstock.adapters.redis.translating import partition_of
from penstock.errors import StoreUnavailable
from penstock.quota import (
    Call,
    Define,
    Denied,
    Duplicate,
    Inspect,
    Inspected,
    NotReady,
    Reserved,
    Settled,
    Unknown,
    reservation_id,
)
from tests.adapters.redis.desks import TOKENS_HELD, define, now_ms, ready, reserve, settle
from tests.adapters.redis.fleets import UP_S, Cluster, Watched, started, told
from tests.counts import count
from tests.polling import until
from tests.system.services import Redis

pytestmark = pytest.mark.slow  # real services: left out of the quick check

BOUND_S = 2.0
USED = 120  # tokens of each settle
ORGANISATIONS = ("acme", "umbrella", "globex", "initech", "wayne", "wonka")  # two of each node
SLOTS_OF_ONE = 16384 // 3 + 1


def node_of(organisation: str) -> int:
    """Which of three nodes has it, as `redis-cli --cluster create` deals out slots."""
    return slot_of(partition_of(organisation)) // SLOTS_OF_ONE


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    fleet = Watched(tmp_path)
    with started(fleet):
        asyncio.run(prepare(fleet.url, ("acme",)))
        yield fleet


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    fleet = Cluster(tmp_path)
    with started(fleet):
        asyncio.run(prepare(fleet.url, ORGANISATIONS))
        yield fleet


async def prepare(url: str, organisations: Sequence[str], *, cap: int | None = None) -> None:
    for primary in await find_primaries(read_address(url)):
        client = RedisClient(primary, bound_s=BOUND_S)
        await load_library(client)
        await client.close()
    async with open_store(url, bound_s=BOUND_S) as store:
        for name in organisations:
            await store.apply(definition(name, cap=cap))
            await store.apply(replace(ready(), organisation=name))


def definition(organisation: str, *, cap: int | None = None, version: int = 1) -> Define:
    found = define(version)
    limits = tuple(
        replace(limit, owner=organisation, cap=limit.cap if cap is None or limit.kind != "window" else cap)
        for limit in found.definitions.limits
    )
    return replace(found, organisation=organisation, definitions=replace(found.definitions, limits=limits))


def reserved_by(organisation: str, number: int) -> Call[Any]:
    return replace(reserve(number), organisation=organisation)


def settled_by(organisation: str, number: int) -> Call[Any]:
    return replace(settle(number), organisation=organisation)


class Load:
    """Requests of some organisations, each insisted on until it is charged."""

    def __init__(self, store: RedisStore, organisations: Sequence[str]) -> None:
        self._store = store
        self._organisations = organisations
        self.settled: Counter[str] = Counter()
        self.reservations: set[str] = set()
        self.refused: Counter[str] = Counter()
        self.is_ending = False

    async def run(self, *, at_once: int) -> None:
        numbers = iter(range(1, 10**9))
        await asyncio.gather(*(self._serve(numbers) for _ in range(at_once)))

    async def _serve(self, numbers: Iterator[int]) -> None:
        while not self.is_ending:
            number = next(numbers)
            name = self._organisations[number % len(self._organisations)]
            await self._insist(reserved_by, name, number, Reserved)
            await self._insist(settled_by, name, number, Settled, Duplicate)
            self.settled[name] += 1
            self.reservations.add(reservation_id(0, number))

    async def _insist(self, make: Callable[[str, int], Call[Any]], name: str, number: int, *on: type) -> None:
        while True:
            try:
                answer = await self._store.apply(make(name, number))
            except StoreUnavailable as unavailable:
                self.refused[name] += unavailable.retry_after_ms > 0  # each tells the client when to come again
                await asyncio.sleep(0.02)
                continue
            if isinstance(answer, NotReady | Unknown):  # lost, and not yet put back or not yet told again
                self.refused[name] += 1
                await asyncio.sleep(0.02)
                continue
            assert isinstance(answer, on), answer
            return


async def until_true(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110  # a counter grows by itself
        await asyncio.sleep(0.01)


async def under_load(url: str, organisations: Sequence[str], fault: Callable[[], None]) -> Load:
    """A fault in the middle of a load; ended once every organisation was served for a while after it."""
    async with open_store(url, bound_s=BOUND_S) as store:
        load = Load(store, organisations)
        running = asyncio.create_task(load.run(at_once=20))
        await until_true(lambda: running.done() or min(load.settled[name] for name in organisations) > count(200))
        await asyncio.to_thread(fault)
        before = dict(load.settled)
        await until_true(
            lambda: running.done() or min(load.settled[name] - before[name] for name in organisations) > count(200)
        )
        load.is_ending = True
        await running
        return load


async def assert_charged_once(url: str, load: Load) -> None:
    """Used and held, and one event for each request."""
    outbox = Outbox(read_address(url))
    entries = await outbox.read(count_max=1_000_000)
    await outbox.close()
    events = [entry.event for each in entries.values() for entry in each]
    posted = Counter((event.organisation, event.reservation) for event in events if event.kind == "posted")
    assert Counter(organisation for organisation, _ in posted) == load.settled
    assert set(posted.values()) == {1}
    async with open_store(url, bound_s=BOUND_S) as store:
        for name, requests in load.settled.items():
            found = await store.apply(Inspect(organisation=name, caller_now_ms=now_ms()))
            assert isinstance(found, Inspected)
            limits = {limit.limit: (limit.used, limit.held) for limit in found.limits}
            assert found.holds == ()
            assert limits[f"{name}/tokens/month"] == (USED * requests, 0)
            assert limits[f"{name}/concurrency/concurrent"] == (0, 0)


def test_sentinels_replace_a_primary_under_load_and_each_request_is_charged_once(watched: Watched) -> None:
    def lose() -> None:
        watched.primary.kill()
        watched.wait_for_failover()

    load = asyncio.run(under_load(watched.url, ("acme",), lose))
    assert load.refused["acme"] > 0
    asyncio.run(assert_charged_once(watched.url, load))


async def servers_of(url: str) -> dict[int, list[int]]:
    """Each primary's replicas, by their ports."""
    found = {}
    address = read_address(url)
    for primary in await find_primaries(address):
        client = RedisClient(primary, bound_s=BOUND_S)
        found[primary.port] = [each.port for each in await find_replicas(client, address)]
        await client.close()
    return found


def test_a_cluster_replaces_a_lost_node_under_load_and_each_request_is_charged_once(cluster: Cluster) -> None:
    one, two, three, copy = cluster.nodes
    assert asyncio.run(servers_of(cluster.url)) == {one.port: [copy.port], two.port: [], three.port: []}
    until(lambda: "penstock" in told(copy, "FUNCTION", "LIST"), "the copy has the library", bound_s=UP_S)

    def lose() -> None:
        one.kill()
        cluster.wait_for_failover()

    load = asyncio.run(under_load(cluster.url, ORGANISATIONS, lose))
    lost = {name for name in ORGANISATIONS if node_of(name) == 0}
    assert 0 < len(lost) < len(ORGANISATIONS)
    assert set(load.refused) <= lost, "organisations of other nodes notice nothing"
    asyncio.run(assert_charged_once(cluster.url, load))


def test_a_planned_change_is_followed_and_a_lost_node_without_a_copy_costs_its_own_organisations(
    cluster: Cluster,
) -> None:
    load = asyncio.run(under_load(cluster.url, ORGANISATIONS, cluster.change_over))
    asyncio.run(assert_charged_once(cluster.url, load))

    async def lose() -> None:
        async with open_store(cluster.url, bound_s=BOUND_S) as store:
            await asyncio.to_thread(cluster.nodes[2].kill)
            for name in ORGANISATIONS:
                call = reserved_by(name, 10**6)
                if node_of(name) == 2:
                    with pytest.raises(StoreUnavailable):
                        await store.apply(call)
                else:
                    assert isinstance(await store.apply(call), Reserved)
            assert store.failure is None, "two thirds can be served"
            await asyncio.to_thread(cluster.nodes[2].start)
            for name in ORGANISATIONS:
                call = reserved_by(name, 10**6 + 1)
                assert isinstance(await until_answered(store, call), Reserved)

    asyncio.run(lose())


async def until_answered(store: RedisStore, call: Call[Any]) -> Any:
    while True:
        try:
            return await store.apply(replace(call, caller_now_ms=now_ms()))
        except StoreUnavailable:
            await asyncio.sleep(0.02)


def test_what_a_copy_lacked_is_admitted_again_and_never_more(watched: Watched) -> None:
    """The process that was granted the missing holds is gone, so nobody asserts them again."""
    cap, first, missing = 20 * TOKENS_HELD, 12, 5

    async def run() -> tuple[int, int]:
        async with open_store(watched.url, bound_s=BOUND_S) as keeper:
            await keeper.apply(definition("acme", cap=cap, version=2))
        async with open_store(watched.url, bound_s=BOUND_S, tells_again=False) as gone:
            for number in range(first):
                assert isinstance(await gone.apply(reserved_by("acme", number)), Reserved)
            assert told(watched.primary, "WAIT", "1", "10000").strip() == "1"
            watched.replica.freeze()
            told(watched.primary, "CLIENT", "KILL", "TYPE", "replica")  # so that it cannot read the rest later
            for number in range(first, first + missing):
                assert isinstance(await gone.apply(reserved_by("acme", number)), Reserved)
        await asyncio.to_thread(watched.primary.kill)
        watched.replica.thaw()
        await asyncio.to_thread(watched.wait_for_failover)
        async with open_store(watched.url, bound_s=BOUND_S) as store:
            admitted = first + missing
            for number in range(100, 100 + 2 * cap // TOKENS_HELD):
                answer = await until_answered(store, reserved_by("acme", number))
                if isinstance(answer, Denied):
                    break
                admitted += 1
            return admitted * TOKENS_HELD, missing * TOKENS_HELD

    admitted, in_the_loss_window = asyncio.run(run())
    assert admitted - cap == min(cap, in_the_loss_window)


def test_an_address_of_several_servers_is_read() -> None:
    found = read_address("rediss+sentinel://one:p@a,b:7000/main", username="two")
    assert (found.kind, found.places, found.service) == (Kind.SENTINEL, (("a", 26379), ("b", 7000)), "main")
    assert (found.username, found.password, found.tls is not None) == ("two", "p", True)
    assert read_address("redis+cluster://a,[::1]:7000").places == (("a", 6379), ("::1", 7000))
    with pytest.raises(ValueError, match="/<service>"):
        read_address("redis+sentinel://a")
    with pytest.raises(ValueError, match="no address of a Redis"):
        read_address("redis://a,b")


def test_a_server_that_is_no_node_of_a_cluster_and_none_that_is_a_sentinel_are_named(service: Redis) -> None:
    async def run(url: str) -> None:
        async with open_store(url):
            raise AssertionError("it started")

    hosts = f"127.0.0.1:{service.port}"
    with pytest.raises(StoreUnavailable, match="is no node of a cluster"):
        asyncio.run(run(f"redis+cluster://{hosts}"))
    with pytest.raises(StoreUnavailable, match=r"no sentinel names the primary .*unknown command"):
        asyncio.run(run(f"redis+sentinel://{hosts}/quota"))
