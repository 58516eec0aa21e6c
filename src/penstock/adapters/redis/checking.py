"""Whether a Redis can be trusted with a quota: asked at every start, and of every new connection."""

from __future__ import annotations

from typing import Any, Final

from penstock.adapters.redis.client import RedisClient
from penstock.adapters.redis.library import VERSION
from penstock.adapters.redis.wire import Refusal, Wire, pack
from penstock.adapters.redis.wire import read_info as read_info
from penstock.errors import ConfigurationError

REDIS_LEAST: Final = (7, 0)
_VERSION = pack("FCALL", "penstock_version", 0)


async def check_library(wire: Wire) -> None:
    """Refuse a connection to a Redis without the library, or with an earlier one.

    Raises:
        Refusal: It is so; says what to do.
    """
    found = int(await wire.send(_VERSION))
    if found < VERSION:
        raise Refusal(f"PENSTOCK {_older(found)}")


async def check_server(client: RedisClient, *, check_functions: bool = True) -> None:
    """See everything that is wrong with a server at once, its library included.

    Args:
        check_functions: False for who is about to load them.

    Raises:
        ConfigurationError: Each problem with its fix.
        StoreUnavailable: It cannot be reached.
    """
    told = read_info(await client.ask(pack("INFO", "everything")))
    problems = [*server_problems(told), *await _fsync_problems(client)]
    if check_functions:
        problems += await library_problems(client)
    if problems:
        raise ConfigurationError(tuple(problems))


def server_problems(told: dict[str, str]) -> list[str]:
    """What ``INFO`` tells that must be otherwise, each with its fix."""
    problems = []
    version = told.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2]) < REDIS_LEAST:
        problems.append(f"redis: found version {version}, wanted 7.0 or later, which has functions; upgrade it")
    if (policy := told.get("maxmemory_policy")) != "noeviction":
        problems.append(
            f"redis: maxmemory-policy is {policy}, which throws counters away when memory is short; "
            "set `maxmemory-policy noeviction`"
        )
    if told.get("aof_enabled") != "1":
        problems.append("redis: appendonly is off, so a restart forgets every counter; set `appendonly yes`")
    return problems


async def _fsync_problems(client: RedisClient) -> list[str]:
    try:
        found: list[Any] = await client.ask(pack("CONFIG", "GET", "appendfsync"))
    except Refusal:  # most accounts may not ask; `penstock setup` could
        return []
    if found and found[1] == b"no":
        return ["redis: appendfsync is no, so a crash loses what the disk was never told; set `appendfsync everysec`"]
    return []


async def library_problems(client: RedisClient) -> list[str]:
    """Whether the function library is missing or older than this code, with its fix.

    Raises:
        Refusal: The account may not ask.
    """
    try:
        found = int(await client.ask(_VERSION))
    except Refusal as refusal:
        if refusal.code == "NOPERM":
            raise
        return [f"redis: the function library of Penstock is missing ({refusal}); run `penstock setup`"]
    return [f"redis: {_older(found)}"] if found < VERSION else []


def _older(found: int) -> str:
    return f"the function library is of version {found}, wanted is {VERSION} or later; run `penstock setup`"
