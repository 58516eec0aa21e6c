"""The quota of a cluster, as one of its processes reaches it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from penstock.adapters.redis.address import Address, read_address
from penstock.adapters.redis.outbox import Outbox
from penstock.adapters.redis.restoring import Restorer
from penstock.adapters.redis.store import RedisStore, open_store
from penstock.config import Configuration
from penstock.wiring.stores import Role, Service, address


def redis_address(configuration: Configuration, role: Role | None) -> Address:
    """Where Redis is, and as whom a process goes there; None is ``penstock setup``.

    Raises:
        ConfigurationError: A reference leads nowhere.
    """
    found = address(configuration, Service.REDIS, role, os.environ)
    return read_address(found.location, username=found.username, password=found.password, tls=found.tls)


@asynccontextmanager
async def open_quota(configuration: Configuration, role: Role) -> AsyncIterator[RedisStore]:
    """The quota's operations, checked and connected.

    Raises:
        ConfigurationError: A reference leads nowhere, or this Redis cannot be trusted with a quota.
        StoreUnavailable: It cannot be reached, or refuses the account.
    """
    found = address(configuration, Service.REDIS, role, os.environ)
    async with open_store(
        found.location, username=found.username, password=found.password, tls=found.tls, name=f"penstock-{role}"
    ) as store:
        yield store


@asynccontextmanager
async def open_outbox(configuration: Configuration, role: Role) -> AsyncIterator[Outbox]:
    """The events that are on their way to the ledger. Raises like ``open_quota``."""
    outbox = Outbox(redis_address(configuration, role), name=f"penstock-{role}-outbox")
    try:
        await outbox.start()
        yield outbox
    finally:
        await outbox.close()


@asynccontextmanager
async def open_restorer(configuration: Configuration, role: Role) -> AsyncIterator[Restorer]:
    """What puts lost state back. Raises like ``open_quota``."""
    restorer = Restorer(redis_address(configuration, role), name=f"penstock-{role}-restore")
    try:
        await restorer.start()
        yield restorer
    finally:
        await restorer.close()
