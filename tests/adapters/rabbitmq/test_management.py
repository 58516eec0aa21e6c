"""Declaring the topology in a real broker: idempotent, from two places at once, and clear about what is in the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from penstock.adapters.http.client import HttpClient
from penstock.adapters.rabbitmq.management import ManagementApi, ManagementRefused, prepare
from penstock.adapters.rabbitmq.topology import Bounds, Definitions, fill
from penstock.errors import ConfigurationError, StoreUnavailable
from tests.system.services import RabbitMQ, free_port

A = TypeVar("A")

TEMPLATE = (Path(__file__).parents[3] / "config" / "rabbitmq" / "definitions.json").read_text()
PASSWORDS = {f"penstock_{role}": f"secret-of-{role}" for role in ("gateway", "worker", "collector", "monitor")}

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("rabbitmq")]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    started = RabbitMQ(tmp_path_factory.mktemp("broker"))
    started.start()
    yield started
    started.stop()


@asynccontextmanager
async def api_of(broker: RabbitMQ, *, username: str = "", password: str = "") -> AsyncIterator[ManagementApi]:
    client = HttpClient()
    try:
        yield ManagementApi(
            client, broker.management_url, username=username or broker.user, password=password or broker.password
        )
    finally:
        await client.close()


def with_api(broker: RabbitMQ, work: Callable[[ManagementApi], Awaitable[A]]) -> A:
    async def within() -> A:
        async with api_of(broker) as api:
            return await work(api)

    return asyncio.run(within())


def definitions(vhost: str, *, deliveries: int = 20) -> Definitions:
    bounds = Bounds(ready_bytes_max=1_000_000, deliveries=deliveries)
    return fill(TEMPLATE, vhost=vhost, models=["m"], shards=1, bounds=bounds, users=PASSWORDS)


def test_the_second_time_nothing_is_new(broker: RabbitMQ) -> None:
    async def twice(api: ManagementApi) -> tuple[list[str], list[str]]:
        first = await prepare(api, definitions("twice"), PASSWORDS)
        return first, await prepare(api, definitions("twice"), PASSWORDS)

    first, second = with_api(broker, twice)
    assert {"vhost twice", "queue jobs.m.standard.0", "exchange penstock.jobs", "policy penstock-jobs"} <= set(first)
    assert second == []


def test_from_two_places_at_once_both_succeed(broker: RabbitMQ) -> None:
    async def together(api: ManagementApi) -> tuple[int, object]:
        await asyncio.gather(*(prepare(api, definitions("together"), PASSWORDS) for _ in range(4)))
        bound = await api.ask("GET", "bindings", "together", "e", "penstock.jobs", "q", "jobs.m.standard.0")
        return len(bound[1]), await prepare(api, definitions("together"), PASSWORDS)

    bindings, new = with_api(broker, together)
    assert (bindings, new) == (1, [])


def test_bounds_are_in_force_and_can_be_changed(broker: RabbitMQ) -> None:
    async def change(api: ManagementApi) -> list[object]:
        found = []
        for deliveries in (5, 7):
            await prepare(api, definitions("change", deliveries=deliveries), PASSWORDS)
            _, policy = await api.ask("GET", "policies", "change", "penstock-jobs")
            found.append(policy["definition"]["delivery-limit"])
        _, queue = await api.ask("GET", "queues", "change", "jobs.m.standard.0")
        return [*found, queue["type"]]

    assert with_api(broker, change) == [5, 7, "quorum"]


def test_a_queue_of_another_kind_is_named_with_its_fix(broker: RabbitMQ) -> None:
    async def in_the_way(api: ManagementApi) -> None:
        await api.ask("PUT", "vhosts", "classic", body={})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        await api.ask("PUT", "permissions", "classic", broker.user, body=everything)
        classic = {"durable": True, "arguments": {"x-queue-type": "classic"}}
        await api.ask("PUT", "queues", "classic", "results", body=classic)
        await prepare(api, definitions("classic"), PASSWORDS)

    with pytest.raises(ConfigurationError, match=r"queue results in vhost classic: arguments is .*classic.* delete it"):
        with_api(broker, in_the_way)


def test_an_empty_and_an_absent_queue_are_told_apart(broker: RabbitMQ) -> None:
    async def count(api: ManagementApi) -> tuple[int | None, int | None]:
        await prepare(api, definitions("count"), PASSWORDS)
        return await api.ready_messages("count", "results"), await api.ready_messages("count", "nowhere")

    assert with_api(broker, count) == (0, None)


def test_a_wrong_password_says_what_to_check(broker: RabbitMQ) -> None:
    async def ask() -> None:
        async with api_of(broker, password="wrong") as api:
            await prepare(api, definitions("v"), PASSWORDS)

    with pytest.raises(ManagementRefused, match=r"401.*stores\.rabbitmq\.password") as refused:
        asyncio.run(ask())
    assert refused.value.status == 401


def test_a_user_that_is_no_administrator_is_told_so(broker: RabbitMQ) -> None:
    async def ask() -> None:
        async with api_of(broker) as api:
            await prepare(api, definitions("least"), PASSWORDS)
        async with api_of(broker, username="penstock_monitor", password=PASSWORDS["penstock_monitor"]) as api:
            assert await api.ready_messages("least", "results") == 0
            assert (await api.messages("least", "results"), await api.messages("least", "nowhere")) == (0, None)
            await prepare(api, definitions("least"), PASSWORDS)

    with pytest.raises(ManagementRefused, match="tag administrator"):
        asyncio.run(ask())


def test_a_broker_that_is_away_is_named() -> None:
    async def ask() -> None:
        client = HttpClient()
        try:
            api = ManagementApi(client, f"http://127.0.0.1:{free_port()}", username="u", password="p")
            await api.ready_messages("v", "q")
        finally:
            await client.close()

    with pytest.raises(StoreUnavailable, match="rabbitmq_management"):
        asyncio.run(ask())
