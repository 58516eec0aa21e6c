"""The audit of a cluster: live counters in Redis against PostgreSQL's ledger and what is on its way there.

The three cannot be read at one instant, so they are read in an order that shows whether anything came between::

    ledger's snapshot and drained positions -> outbox behind them -> counters -> outbox behind those -> positions

An organisation of which an event appeared on the way, or whose partition was drained, is looked at again. So is one
whose holds are so many that they are read page by page, unless its counters stand still meanwhile; a difference is then
believed once it was found twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from sqlalchemy import Connection, Engine, select

from penstock.adapters.redis.outbox import Entry, Outbox
from penstock.adapters.redis.store import RedisStore
from penstock.adapters.redis.translating import partition_of
from penstock.adapters.sql.definitions import read_definitions
from penstock.adapters.sql.keeping_tables import outbox_positions
from penstock.config import Configuration
from penstock.errors import StoreUnavailable
from penstock.lanes.audit_report import AuditReport, OrganisationAudit
from penstock.lanes.inspecting import inspect
from penstock.quota.operations import NotReady
from penstock.wiring.clock import SystemClock
from penstock.wiring.comparing import compare, not_ready
from penstock.wiring.database import cluster_engine
from penstock.wiring.quota import open_outbox, open_quota
from penstock.wiring.stores import Role

TRIES = 50


async def audit_cluster(
    organisations: Iterable[str], quota: RedisStore, outbox: Outbox, engine: Engine, *, now_ms: int
) -> AuditReport:
    """Compare each organisation's live counters with its ledger.

    Raises:
        StoreUnavailable: A service cannot be asked, or an organisation is so busy that no instant could be found.
    """
    found = [await audit_organisation(name, quota, outbox, engine, now_ms=now_ms) for name in sorted(organisations)]
    return AuditReport(source="service", organisations=tuple(found))


async def audit_from_outside(configuration: Configuration) -> AuditReport:
    """The same for a command: of every organisation in the database, over connections of its own.

    Raises:
        ConfigurationError: A reference leads nowhere.
        StoreUnavailable: As ``audit_cluster``.
    """
    engine = cluster_engine(configuration, Role.API)
    try:
        organisations = await asyncio.to_thread(read_definitions, engine)
        async with (
            open_quota(configuration, Role.API) as quota,
            open_outbox(configuration, Role.API) as outbox,
        ):
            return await audit_cluster(organisations, quota, outbox, engine, now_ms=SystemClock().now_ms())
    finally:
        engine.dispose()


class TooBusy(StoreUnavailable):
    """An organisation that changed at each look."""


async def audit_organisation(
    name: str, quota: RedisStore, outbox: Outbox, engine: Engine, *, now_ms: int
) -> OrganisationAudit:
    """Compare one organisation's live counters with its ledger.

    Raises:
        TooBusy: It never stood still.
        StoreUnavailable: A service cannot be asked, or the organisation's state is not ready.
    """
    doubted: OrganisationAudit | None = None
    for _ in range(TRIES):
        found = await _looked_at(name, quota, outbox, engine, now_ms=now_ms)
        if found is None:
            continue
        audit, is_of_one_instant = found
        if is_of_one_instant or not audit.differences or (doubted and doubted.differences == audit.differences):
            return audit
        doubted = audit
    raise TooBusy(
        f"{name}: changed at each of {TRIES} looks, so no instant could be compared; audit it when it is less busy"
    )


async def _looked_at(
    name: str, quota: RedisStore, outbox: Outbox, engine: Engine, *, now_ms: int
) -> tuple[OrganisationAudit, bool] | None:
    """What a look found, and whether its holds were read at one instant; None if anything came between."""
    partition = partition_of(name)
    connection = await asyncio.to_thread(_snapshot, engine)
    try:
        position = await asyncio.to_thread(_position, connection, partition)
        before = await _behind(outbox, partition, position)
        read = await inspect(quota, name, now_ms=now_ms)
        if isinstance(read, NotReady):
            raise not_ready(name)
        last = before[-1].id if before else position
        after = await _behind(outbox, partition, last)
        drained = await asyncio.to_thread(_position_now, engine, partition)
        if drained != position or not read.is_still or any(entry.event.organisation == name for entry in after):
            return None
        unwritten = [entry.event for entry in before if entry.event.organisation == name]
        audit = await asyncio.to_thread(compare, connection, name, read.inspected, unwritten, each_row=False)
        return audit, read.is_of_one_instant
    finally:
        await asyncio.to_thread(connection.close)


def _snapshot(engine: Engine) -> Connection:
    """A connection whose first statement fixes what all its statements see."""
    connection = engine.connect().execution_options(isolation_level="REPEATABLE READ")
    connection.begin()
    return connection


def _position(connection: Connection, partition: int) -> str | None:
    where = outbox_positions.c.partition == partition
    position: str | None = connection.execute(select(outbox_positions.c.entry).where(where)).scalar()
    return position


def _position_now(engine: Engine, partition: int) -> str | None:
    with engine.connect() as connection:
        return _position(connection, partition)


async def _behind(outbox: Outbox, partition: int, position: str | None) -> list[Entry]:
    """All entries after a position."""
    found: list[Entry] = []
    while True:
        after = found[-1].id if found else position
        page = await outbox.read({partition: after} if after else None, partitions=(partition,))
        if not page:
            return found
        found += page[partition]
