"""Whom the doctor examines: a configuration, and the services that it names, as whoever may see most of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection

from penstock.adapters.rabbitmq.management import ManagementApi
from penstock.adapters.redis.address import Address
from penstock.adapters.redis.client import RedisClient
from penstock.adapters.redis.cluster import find_primaries
from penstock.adapters.redis.store import GOVERNING_S
from penstock.adapters.sql import database as sqlite
from penstock.config import Configuration, read_secret
from penstock.config.store_settings import Store
from penstock.errors import ConfigurationError, StoreUnavailable
from penstock.ports import Clock
from penstock.wiring.broker import open_management
from penstock.wiring.database import cluster_engine
from penstock.wiring.places import Places
from penstock.wiring.quota import redis_address
from penstock.wiring.stores import Role, Service

T = TypeVar("T")

_SECOND_BEST = {Service.REDIS: Role.API, Service.POSTGRESQL: Role.API, Service.RABBITMQ: Role.MONITOR}


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """What every check is given.

    Args:
        environment: Usually ``os.environ``.
    """

    configuration: Configuration
    places: Places
    environment: Mapping[str, str]
    clock: Clock

    def role(self, service: Service) -> Role | None:
        """The account of ``penstock setup`` (None) where its password is at hand, else the one that sees most."""
        stores = self.configuration.stores
        assert stores is not None, "checks of services are made of a cluster only"
        store: Store = getattr(stores, service)
        second = _SECOND_BEST[service]
        if store.password is None:
            return second if store.username is None and getattr(store.accounts, second) is not None else None
        try:
            read_secret(store.password, environment=self.environment, what=f"stores.{service}.password")
        except ConfigurationError:
            return second
        return None

    async def redis_addresses(self) -> tuple[Address, ...]:
        """Each primary."""
        return await find_primaries(redis_address(self.configuration, self.role(Service.REDIS)))

    @asynccontextmanager
    async def redis(self, at: Address) -> AsyncIterator[RedisClient]:
        """A connection to one primary."""
        client = RedisClient(at, name="penstock-doctor", bound_s=GOVERNING_S)
        try:
            await client.start()
            yield client
        finally:
            await client.close()

    @contextmanager
    def database(self) -> Iterator[Connection]:
        """A connection that reads: to PostgreSQL, or to the file of the embedded default.

        Raises:
            StoreUnavailable: It cannot be reached, or is not there.
        """
        if self.configuration.stores is not None:
            engine = cluster_engine(self.configuration, self.role(Service.POSTGRESQL), connections_max=1)
        elif self.places.database.exists():
            engine = sqlite.open_engine(self.places.database)
        else:
            raise StoreUnavailable(
                f"there is no database in {self.places.data}; start `penstock serve` once, or name its directory "
                "with --data"
            )
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            engine.dispose()

    async def ask_database(self, look: Callable[[Connection], T]) -> T:
        """Look in a thread, over a connection of its own. Raises like ``database``."""

        def run() -> T:
            with self.database() as connection:
                return look(connection)

        return await asyncio.to_thread(run)

    @asynccontextmanager
    async def management(self) -> AsyncIterator[ManagementApi]:
        """RabbitMQ's management API."""
        async with open_management(self.configuration, self.role(Service.RABBITMQ), self.environment) as api:
            yield api


def cause_and_fix(message: str) -> tuple[str, str]:
    """The two halves of our errors, which end with what to do.

    Example:
        >>> cause_and_fix("redis: appendonly is off; restarts forget; set `appendonly yes`")
        ('redis: appendonly is off; restarts forget', 'set `appendonly yes`')
    """
    cause, separator, fix = message.rpartition("; ")
    return (cause, fix) if separator else (message, "see its log")
