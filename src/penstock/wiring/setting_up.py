"""What ``penstock setup`` does: PostgreSQL first, since the others follow from what it holds; then Redis and RabbitMQ.

Every step may be repeated, and done by two at once: what is right already stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from penstock.adapters.postgresql.preparing import prepare as prepare_postgresql
from penstock.adapters.rabbitmq import management
from penstock.adapters.redis import preparations
from penstock.adapters.redis.address import Address as RedisAddress
from penstock.adapters.redis.address import Kind
from penstock.adapters.redis.checking import check_server
from penstock.adapters.redis.client import RedisClient
from penstock.adapters.redis.cluster import find_primaries, find_replicas
from penstock.adapters.redis.library import load_library
from penstock.adapters.redis.store import GOVERNING_S
from penstock.adapters.redis.users import apply_users
from penstock.adapters.redis.wire import Refusal
from penstock.config import Configuration
from penstock.errors import ConfigurationError, StoreUnavailable
from penstock.wiring.acting import actor
from penstock.wiring.broker import open_management, virtual_host, wanted
from penstock.wiring.clock import SystemClock
from penstock.wiring.database import cluster_engine
from penstock.wiring.governing import record
from penstock.wiring.quota import redis_address
from penstock.wiring.stores import USER_PREFIX, Service, accounts
from penstock.wiring.templates import templates


async def set_up(
    configuration: Configuration,
    environment: Mapping[str, str],
    *,
    tell: Callable[[str], None],
    version: str | None = None,
) -> None:
    """Prepare every service that ``stores`` names.

    Args:
        environment: Usually ``os.environ``.
        version: Of the configuration; recorded in the end, for those who wait for it (``penstock await``).
        tell: Given a line for each thing done.

    Raises:
        ConfigurationError: There are no stores, a reference leads nowhere, or what is there contradicts what is wanted.
        StoreUnavailable: A service cannot be reached, or refuses the account.
    """
    if configuration.stores is None:
        raise ConfigurationError(
            ("stores: not given, and the embedded default prepares itself at its start; see `penstock serve`",)
        )
    await asyncio.to_thread(_postgresql, configuration, environment, tell)
    await _redis(configuration, environment, tell)
    await _rabbitmq(configuration, environment, tell)
    if version is not None:
        await _record(configuration, version)
        tell(f"prepared for version {version}")


async def _record(configuration: Configuration, version: str) -> None:
    for primary in await find_primaries(redis_address(configuration, None)):
        async with _client(primary) as client:
            await preparations.record(client, version)


def _postgresql(configuration: Configuration, environment: Mapping[str, str], tell: Callable[[str], None]) -> None:
    now_ms = SystemClock().now_ms()
    users = accounts(configuration, Service.POSTGRESQL, environment)
    engine = cluster_engine(configuration, None)
    try:
        prepare_postgresql(engine, users, now_ms=now_ms)
        tell(f"postgresql: schema and partitions are as wanted, {_users(users)}")
        changed = record(engine, configuration, now_ms=now_ms, actor=actor("setup"))
        count = len(configuration.organisations)
        tell(f"postgresql: {count} organisations {'are written' if changed else 'stay as they are'}")
    finally:
        engine.dispose()


async def _redis(configuration: Configuration, environment: Mapping[str, str], tell: Callable[[str], None]) -> None:
    users = accounts(configuration, Service.REDIS, environment)
    at = redis_address(configuration, None)
    for primary in await find_primaries(at):
        where = "redis" if at.kind is Kind.SINGLE else f"redis {primary.host}:{primary.port}"
        async with _client(primary) as client:
            await check_server(client, check_functions=False)
            tell(f"{where}: the function library is {await load_library(client)}")
            await _redis_users(client, where, users, tell)
            replicas = () if at.kind is Kind.SINGLE else await find_replicas(client, at)
        for replica in replicas:  # they copy the library, and not the users
            async with _client(replica) as client:
                await check_server(client, check_functions=False)
                await _redis_users(client, f"redis {replica.host}:{replica.port}", users, tell)


@asynccontextmanager
async def _client(at: RedisAddress) -> AsyncIterator[RedisClient]:
    client = RedisClient(at, name="penstock-setup", bound_s=GOVERNING_S)
    try:
        await client.start()
        yield client
    except Refusal as refusal:
        raise StoreUnavailable(
            f"Redis refused what setup must do: {refusal}; give stores.redis.username an account that may load "
            "functions and change users"
        ) from refusal
    finally:
        await client.close()


async def _redis_users(client: RedisClient, where: str, users: Mapping[str, str], tell: Callable[[str], None]) -> None:
    template = (templates() / "redis" / "users.acl").read_text(encoding="utf-8")
    applied = await apply_users(client, template=template, passwords=users)
    kept = "" if applied.are_kept or not users else "; Redis forgets them at a restart, since it has no `aclfile`"
    tell(f"{where}: {_users(users)}{kept}")


async def _rabbitmq(configuration: Configuration, environment: Mapping[str, str], tell: Callable[[str], None]) -> None:
    users = accounts(configuration, Service.RABBITMQ, environment)
    names = {f"{USER_PREFIX}{role}": password for role, password in users.items()}
    definitions = wanted(configuration, virtual_host(configuration, environment), names)
    async with open_management(configuration, None, environment) as api:
        done = await management.prepare(api, definitions, names)
    for what in done:
        tell(f"rabbitmq: {what} is new")
    tell(f"rabbitmq: exchanges and queues are as wanted, {_users(users)}")


def _users(users: Mapping[str, str]) -> str:
    return f"users: {', '.join(users)}" if users else "no users of its own"
