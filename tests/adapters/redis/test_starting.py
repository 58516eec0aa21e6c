"""A start is refused where quota could be lost, and says the fix; the library is loaded as often as one likes."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trustme

from penstock.adapters.redis import Loaded, load_library, open_store
from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.checking import check_server, server_problems
from penstock.adapters.redis.client import RedisClient, pack
from penstock.adapters.redis.library import SOURCE, VERSION
from penstock.adapters.tls import Tls
from penstock.errors import ConfigurationError, StoreUnavailable
from penstock.quota import Inspect, NotReady
from tests.system.services import Redis, free_port

pytestmark = pytest.mark.slow  # real services: left out of the quick check

A = TypeVar("A")


def asked(url: str, ask: Callable[[RedisClient], Awaitable[A]]) -> A:
    async def run() -> A:
        client = RedisClient(read_address(url))
        try:
            return await ask(client)
        finally:
            await client.close()

    return asyncio.run(run())


def started(url: str, **more: object) -> object:
    async def run() -> object:
        async with open_store(url, **more) as store:  # type: ignore[arg-type]
            return await store.apply(Inspect(organisation="acme", caller_now_ms=0))

    return asyncio.run(run())


def refused(url: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as found:
        started(url)
    return found.value.problems


def test_every_problem_is_named_at_once_with_its_fix(tmp_path: Path) -> None:
    service = Redis(tmp_path, "--maxmemory-policy", "allkeys-lru", "--appendonly", "no", "--appendfsync", "no")
    service.start()
    try:
        problems = refused(service.url)
    finally:
        service.stop()
    fixes = ("maxmemory-policy noeviction", "appendonly yes", "appendfsync everysec", "penstock setup")
    assert len(problems) == len(fixes)
    for problem, fix in zip(problems, fixes, strict=True):
        assert fix in problem


@pytest.mark.parametrize(("version", "is_refused"), [("6.2.14", True), ("7.0.0", False), ("8.0.1", False)])
def test_a_redis_without_functions_is_too_old(version: str, is_refused: bool) -> None:
    told = {"redis_version": version, "maxmemory_policy": "noeviction", "aof_enabled": "1"}
    assert bool(server_problems(told)) is is_refused


def test_an_older_library_is_refused_and_a_newer_one_serves(service: Redis) -> None:
    older, newer = (SOURCE.replace(f"VERSION = '{VERSION}'", f"VERSION = '{VERSION + step}'") for step in (-1, 1))
    asked(service.url, lambda client: load_library(client, source=older))
    (problem,) = refused(service.url)
    assert "version 0" in problem
    assert "penstock setup" in problem
    asked(service.url, lambda client: load_library(client, source=newer))
    assert started(service.url) == NotReady()


def test_a_library_is_loaded_once_replaced_if_it_differs_and_never_by_an_older_one(service: Redis) -> None:
    newer = SOURCE.replace(f"VERSION = '{VERSION}'", f"VERSION = '{VERSION + 1}'")

    async def load(client: RedisClient) -> list[Loaded]:
        return [await load_library(client, source=each) for each in (SOURCE + "\n", SOURCE, SOURCE, newer, SOURCE)]

    assert asked(service.url, load) == [Loaded.NEW, Loaded.REPLACED, Loaded.SAME, Loaded.REPLACED, Loaded.NEWER]


def test_two_places_may_load_the_library_at_once(service: Redis) -> None:
    async def load(client: RedisClient) -> set[Loaded]:
        other = RedisClient(read_address(service.url))
        found = await asyncio.gather(*(load_library(each) for each in (client, other, client, other)))
        await other.close()
        return set(found)

    assert asked(service.url, load) <= {Loaded.NEW, Loaded.REPLACED, Loaded.SAME}
    assert started(service.url) == NotReady()


def test_a_server_can_be_checked_before_it_has_the_library(service: Redis) -> None:
    asked(service.url, lambda client: check_server(client, check_functions=False))


def test_a_store_reaches_redis_over_tls_and_trusts_only_its_own_authority(tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    for name, each in (("ca.pem", authority), ("other.pem", other)):
        each.cert_pem.write_to_path(tmp_path / name)
    port = free_port()
    pem = str(tmp_path / "server.pem")
    service = Redis(
        tmp_path, "--tls-port", str(port), "--tls-cert-file", pem, "--tls-key-file", pem,
        "--tls-ca-cert-file", str(tmp_path / "ca.pem"), "--tls-auth-clients", "no",
    )  # fmt: skip
    service.start()
    url = f"rediss://127.0.0.1:{port}"
    try:
        asked(service.url, load_library)
        assert started(url, tls=Tls(ca=tmp_path / "ca.pem")) == NotReady()
        with pytest.raises(StoreUnavailable, match="certificate verify failed"):
            started(url, tls=Tls(ca=tmp_path / "other.pem"))
    finally:
        service.stop()


def test_nobody_listening_is_said_at_once() -> None:
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        started(f"redis://127.0.0.1:{free_port()}")


def test_a_server_that_never_answers_does_not_hold_up_a_start() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(StoreUnavailable, match=r"no (answer in time|reply within)"),
    ):
        started(f"redis://127.0.0.1:{silent.getsockname()[1]}")


def test_another_protocol_is_no_redis() -> None:
    async def run() -> None:
        async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(StoreUnavailable):
                async with open_store(f"redis://127.0.0.1:{port}"):
                    raise AssertionError("it started")

    asyncio.run(run())


def test_a_server_that_is_no_primary_any_more_keeps_no_connection() -> None:
    async def run() -> None:
        ended: list[asyncio.Task[bytes]] = []

        async def name_itself(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked = await reader.read(4096)
            port = str(writer.get_extra_info("sockname")[1])
            role = b"run_id:1\r\nrole:slave\r\n"
            itself = b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%s\r\n" % (len(port), port.encode())
            writer.write(itself if b"SENTINEL" in asked else b"+OK\r\n$%d\r\n%s\r\n" % (len(role), role))
            ended.append(asyncio.create_task(reader.read()))
            await ended[-1]
            writer.close()

        async with await asyncio.start_server(name_itself, "127.0.0.1", 0) as server:
            client = RedisClient(read_address(f"redis+sentinel://127.0.0.1:{server.sockets[0].getsockname()[1]}/quota"))
            with pytest.raises(StoreUnavailable, match="name a server that is no primary"):
                await client.start()
            try:
                assert await asyncio.wait_for(asyncio.gather(*ended), 5) == [b"", b""]
            finally:
                await client.close()

    asyncio.run(run())


def test_a_new_connection_takes_the_place_of_the_one_before(service: Redis) -> None:
    async def start(client: RedisClient) -> None:
        for _ in range(3):
            await client.start()
        async with asyncio.timeout(30):
            while (await client.ask(pack("CLIENT", "LIST"))).count(b"name=penstock ") != 1:
                pass  # Redis has not seen yet that the others are closed

    asked(service.url, start)


@pytest.mark.parametrize("url", ["http://127.0.0.1", "redis://", "amqp://127.0.0.1:5672"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="no address of a Redis"):
        read_address(url)


def test_an_address_takes_account_and_database_from_the_url_or_from_beside_it() -> None:
    found = read_address("rediss://one:p%40ss@cache:7000/3")
    assert (found.host, found.port, found.database, found.username, found.password) == ("cache", 7000, 3, "one", "p@ss")
    assert isinstance(found.tls, ssl.SSLContext)
    beside = read_address("redis://one:p@cache", username="two", password="q")
    assert (beside.username, beside.password, beside.port) == ("two", "q", 6379)
    assert "password" not in repr(beside)


def test_a_database_of_its_own_is_used(service: Redis) -> None:
    asked(service.url, load_library)
    assert started(f"{service.url}/3") == NotReady()
    assert asked(f"{service.url}/3", lambda client: client.ask(pack("DBSIZE"))) == 0
