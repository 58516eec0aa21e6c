"""Each role's user can do its work and nothing else, on a real Redis with the files of ``config/redis``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from penstock.adapters.redis import apply_users, load_library, open_store
from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.client import RedisClient, pack
from penstock.adapters.redis.outbox import Outbox
from penstock.adapters.redis.positions import Position, find_positions
from penstock.adapters.redis.translating import keys_of, outbox_key, partition_of, write_call
from penstock.adapters.redis.users import read_users
from penstock.adapters.redis.wire import Refusal
from penstock.errors import StoreUnavailable
from penstock.quota import Inspect
from tests.adapters.redis.desks import calls_of_a_life, define, ready, reserve, settle
from tests.system.services import Redis

pytestmark = pytest.mark.slow  # real services: left out of the quick check

CONFIG = Path(__file__).parents[3] / "config/redis"
TEMPLATE = (CONFIG / "users.acl").read_text()
ROLES = ("api", "keeper", "gateway", "worker", "collector")
PASSWORDS = {role: f"secret of {role}" for role in ROLES}

# What each role does in DESIGN's picture: names of operations.
WORK = {
    "api": {"Reserve", "Settle", "Void", "Touch", "Extend", "Cancel", "Reassert", "Post", "Inspect",
            "Look", "Define"},
    "keeper": {"Reserve", "Settle", "Void", "Cancel", "Reassert", "Post", "Sweep", "Inspect", "Look", "Define",
               "Ready"},
    "gateway": {"Reserve", "Void", "Look"},
    "worker": {"Acquire", "Touch", "Extend", "Published", "Look", "Reassert"},
    "collector": {"Settle", "Void"},
}  # fmt: skip


@pytest.fixture
def prepared(tmp_path: Path) -> Iterator[Redis]:
    """With an aclfile, the library, the users, and acme defined."""
    service = Redis(tmp_path, configuration=CONFIG / "redis.conf")
    (service.folder / "users.acl").touch()
    service.start()
    asyncio.run(_prepare(service.url))
    yield service
    service.stop()


async def _prepare(url: str) -> None:
    async with _client(url) as client:
        await load_library(client)
        assert (await apply_users(client, template=TEMPLATE, passwords=PASSWORDS)).are_kept
    async with open_store(url) as store:
        await store.apply(define())
        await store.apply(ready())


@asynccontextmanager
async def _client(url: str, role: str = "") -> AsyncIterator[RedisClient]:
    username, password = (f"penstock_{role}", PASSWORDS[role]) if role else (None, None)
    client = RedisClient(read_address(url, username=username, password=password))
    try:
        yield client
    finally:
        await client.close()


async def _may(client: RedisClient, command: bytes) -> bool:
    try:
        await client.ask(command)
    except Refusal as refusal:
        if "NOPERM" not in str(refusal):
            raise
        return False
    return True


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_call_the_functions_of_its_work_and_no_other(role: str, prepared: Redis) -> None:
    async def called() -> set[str]:
        async with _client(prepared.url, role) as client:
            return {type(call).__name__ for call in calls_of_a_life() if await _may(client, write_call(call))}

    assert asyncio.run(called()) == WORK[role]


@pytest.mark.parametrize("role", ROLES)
def test_no_role_may_do_what_only_an_administrator_does(role: str, prepared: Redis) -> None:
    forbidden = (
        "FLUSHALL", "FUNCTION FLUSH", "FUNCTION LIST", "CONFIG GET requirepass", "ACL LIST", "KEYS *", "SHUTDOWN",
        "GET other", "SCRIPT FLUSH", "MONITOR", "REPLICAOF NO ONE", "SAVE",
    )  # fmt: skip

    async def allowed() -> list[str]:
        async with _client(prepared.url, role) as client:
            return [words for words in forbidden if await _may(client, pack(*words.split()))]

    assert asyncio.run(allowed()) == []


@pytest.mark.parametrize("role", ["gateway", "worker", "collector"])
def test_only_who_governs_writes_definitions_and_only_the_keeper_trims(role: str, prepared: Redis) -> None:
    definitions, outbox = keys_of("acme")[3], outbox_key(partition_of("acme"))

    async def allowed() -> list[bool]:
        async with _client(prepared.url, role) as client:
            return [
                await _may(client, pack("HSET", definitions, "key/k9", "x")),
                await _may(client, pack("DEL", definitions)),
                await _may(client, pack("XTRIM", outbox, "MAXLEN", 0)),
                await _may(client, pack("XRANGE", outbox, "-", "+")),
                await _may(client, pack("XINFO", "STREAM", outbox)),
            ]

    assert asyncio.run(allowed()) == [False] * 5


@pytest.mark.parametrize("role", ["api", "keeper"])
def test_who_charges_may_ask_what_is_drained(role: str, prepared: Redis) -> None:
    async def found() -> Position:
        async with _client(prepared.url, role) as client:
            await client.ask(write_call(reserve(1)))
            await client.ask(write_call(settle(1)))
            return (await find_positions(client, ["acme"]))["acme"]

    position = asyncio.run(found())
    assert (position.epoch, position.oldest) == (1, position.newest)


def test_the_keeper_reads_and_trims_the_outbox(prepared: Redis) -> None:
    async def lengths() -> list[dict[int, int]]:
        async with open_store(prepared.url) as store:
            for call in calls_of_a_life():
                await store.apply(call)
        address = read_address(prepared.url, username="penstock_keeper", password=PASSWORDS["keeper"])
        outbox = Outbox(address)
        before = await outbox.lengths()
        read = await outbox.read()
        await outbox.trim({partition: entries[-1].id for partition, entries in read.items()})
        after = await outbox.lengths()
        await outbox.close()
        return [before, after]

    before, after = asyncio.run(lengths())
    assert set(before) == {partition_of("acme")}
    assert after == {}


def test_users_outlive_a_restart(prepared: Redis) -> None:
    prepared.kill()
    prepared.start()

    async def inspected() -> object:
        async with open_store(prepared.url, username="penstock_api", password=PASSWORDS["api"]) as store:
            return await store.apply(Inspect(organisation="acme", caller_now_ms=0))

    assert type(asyncio.run(inspected())).__name__ == "Inspected"


def test_a_role_without_a_password_gets_no_user_and_an_unknown_one_is_refused(service: Redis) -> None:
    async def users() -> list[bytes]:
        async with _client(service.url) as client:
            applied = await apply_users(client, template=TEMPLATE, passwords={"api": "x"})
            assert not applied.are_kept  # this Redis has no aclfile
            with pytest.raises(ValueError, match="no user for painter"):
                await apply_users(client, template=TEMPLATE, passwords={"painter": "x"})
            found: list[bytes] = await client.ask(pack("ACL", "USERS"))
            return found

    assert asyncio.run(users()) == [b"default", b"penstock_api"]


def test_users_are_applied_again_and_by_two_at_once(service: Redis) -> None:
    async def listed() -> list[list[bytes]]:
        found = []
        async with _client(service.url) as one, _client(service.url) as other:
            for _ in range(2):
                await asyncio.gather(
                    apply_users(one, template=TEMPLATE, passwords=PASSWORDS),
                    apply_users(other, template=TEMPLATE, passwords=PASSWORDS),
                )
                found.append(await one.ask(pack("ACL", "LIST")))
        return found

    first, second = asyncio.run(listed())
    assert first == second
    assert len(first) == 6
    assert b"secret of" not in b"".join(first)


def test_a_wrong_password_names_the_fix(prepared: Redis) -> None:
    async def start() -> None:
        async with open_store(prepared.url, username="penstock_api", password="wrong"):
            raise AssertionError("it started")

    with pytest.raises(StoreUnavailable, match="penstock setup"):
        asyncio.run(start())


@pytest.mark.parametrize("text", ["    -@all\n", "account a\n", "user a\n    (+get\n"])
def test_a_template_that_cannot_be_read_names_its_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"line \d"):
        read_users(text)


def test_every_user_of_the_template_is_a_role_and_begins_with_nothing() -> None:
    users = read_users(TEMPLATE)
    assert {name.removeprefix("penstock_") for name in users} == set(ROLES)
    assert {rules[0] for rules in users.values()} == {"-@all"}


def test_a_role_that_may_not_read_the_outbox_is_told_so(prepared: Redis) -> None:
    async def read() -> None:
        outbox = Outbox(read_address(prepared.url, username="penstock_gateway", password=PASSWORDS["gateway"]))
        try:
            await outbox.read()
        finally:
            await outbox.close()

    with pytest.raises(StoreUnavailable, match="penstock setup"):
        asyncio.run(read())
