"""Which versions of a configuration Redis, and so everything, has been prepared for.

Kept as a function library of its own, since functions outlive FLUSHALL and are reached by every role with one right:
a pod that starts while Redis has lost its counters must not wait for a setup that was done long ago.
"""

from __future__ import annotations

import re
from typing import Final

from penstock.adapters.redis.client import RedisClient, pack
from penstock.adapters.redis.wire import Refusal
from penstock.errors import ConfigurationError

KEPT: Final = 50
_VERSION: Final = re.compile(r"[0-9a-z]{1,40}")
_ASK: Final = pack("FCALL", "penstock_prepared", 0)
_LIBRARY: Final = """#!lua name=penstock_prepared
redis.register_function{{function_name = 'penstock_prepared', callback = function() return {{{versions}}} end,
    flags = {{'no-writes', 'allow-oom', 'allow-stale'}}}}
"""


async def prepared(client: RedisClient) -> tuple[str, ...]:
    """The versions, oldest first; none if there was never a setup.

    Raises:
        StoreUnavailable: Redis cannot be reached.
        Refusal: The account may not ask.
    """
    try:
        found: list[bytes] = await client.ask(_ASK)
    except Refusal as refusal:
        if refusal.code == "NOPERM":
            raise
        return ()  # no such function
    return tuple(version.decode() for version in found)


async def record(client: RedisClient, version: str) -> None:
    """Add a version; the last ``KEPT`` stay. Two at once: the one that comes last has read the other's, or loses it,
    and its Job is tried again.

    Raises:
        ConfigurationError: The version is not of small letters and digits, at most 40.
        StoreUnavailable: Redis cannot be reached.
        Refusal: The account may not load functions.
    """
    if not _VERSION.fullmatch(version):
        raise ConfigurationError(
            (f"--version: found {version[:60]!r}, wanted at most 40 small letters and digits; give a digest",)
        )
    known = [each for each in await prepared(client) if each != version]
    versions = ", ".join(f"'{each}'" for each in [*known, version][-KEPT:])
    await client.ask(pack("FUNCTION", "LOAD", "REPLACE", _LIBRARY.format(versions=versions)))
