"""From the database back to organisations that can admit: what ``penstock.quota.restore`` needs, read in one snapshot.

Windows come from the ledger's rows, not from a saved counter, so that a restart cannot carry an error on. Only rows
since the oldest window that is still current are read: 9 us each on SQLite, ten seconds for a million.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from sqlalchemy import Connection, Engine, Text, select, type_coerce

from penstock.adapters.embedded.committing import CommitCounts, CommitObserver, GroupCommitter, Persisted
from penstock.adapters.embedded.crash_points import Reached, unnoticed
from penstock.adapters.embedded.store import EmbeddedStore
from penstock.adapters.embedded.writing import GroupWriter
from penstock.adapters.sql.database import BUSY_MS, migrate, open_engine, sole_service
from penstock.adapters.sql.ledger import LedgerReads
from penstock.adapters.sql.tables import bucket_states, epochs, reservations
from penstock.errors import ConfigurationError
from penstock.quota import Define, Definitions, Organisation, Ready, limit_id
from penstock.quota.definitions import BUCKETS
from penstock.quota.plans import fault_in
from penstock.quota.restore import current_since_ms, restore
from penstock.quota.state import REMEMBER_MS, Reservation

_FIRST_EPOCH = 1
_decoder = msgspec.json.Decoder(Reservation)


@asynccontextmanager
async def open_store(
    path: Path,
    definitions: Mapping[str, Definitions],
    *,
    version: int,
    now_ms: Callable[[], int],
    observer: CommitObserver | None = None,
    busy_ms: int = BUSY_MS,
    reached: Reached = unnoticed,
) -> AsyncIterator[EmbeddedStore]:
    """The quota store on the database ``path``, which is created or migrated if need be; closed at the end.

    Args:
        definitions: By organisation; what the database keeps of any other waits until it is defined again.
        version: Of all definitions, at least 1; a later ``Define`` must carry a higher one.
        now_ms: The clock, Unix milliseconds.
        busy_ms: How long a commit waits for another process's write before it counts as failed.

    Raises:
        StoreUnavailable: Another process serves the database, or it cannot be opened, or is newer than this code.
        ConfigurationError: Definitions are unfit.
    """
    faults = {name: fault_in(name, each) for name, each in definitions.items()}
    if any(faults.values()):
        raise ConfigurationError(tuple(f"organisations.{name}: {fault}" for name, fault in faults.items() if fault))
    with sole_service(path):
        engine = open_engine(path, busy_ms=busy_ms)
        try:
            organisations, persisted = await asyncio.to_thread(
                _restart, engine, definitions, version=version, time_ms=now_ms()
            )
            committer = GroupCommitter(
                GroupWriter(engine, reached=reached),
                persisted=persisted,
                observer=observer or CommitCounts(),
                reached=reached,
            )
            for organisation in organisations.values():
                committer.join(organisation)  # whose epoch is new
            store = EmbeddedStore(organisations=organisations, committer=committer, now_ms=now_ms, reached=reached)
            try:
                yield store
            finally:
                await store.close()
        finally:
            engine.dispose()


def _restart(
    engine: Engine, definitions: Mapping[str, Definitions], *, version: int, time_ms: int
) -> tuple[dict[str, Organisation], Persisted]:
    """Every defined organisation, and what the database has of them and of all others."""
    migrate(engine)
    with engine.begin() as connection:
        organisations = rebuilt(connection, definitions, version=version, time_ms=time_ms)
        rows = set(connection.execute(select(reservations.c.reservation)).scalars())
        return organisations, Persisted(reservations=rows, epochs=_known_epochs(connection))


def rebuilt(
    connection: Connection, definitions: Mapping[str, Definitions], *, version: int, time_ms: int
) -> dict[str, Organisation]:
    """Every defined organisation as a restart makes it; the database is only read, in the caller's transaction."""
    known = _known_epochs(connection)
    return {
        name: _restored(connection, name, each, version=version, epoch=known[name], time_ms=time_ms)
        if name in known
        else _new(name, each, version=version, time_ms=time_ms)
        for name, each in definitions.items()
    }


def _known_epochs(connection: Connection) -> dict[str, int]:
    return {row.organisation: row.epoch for row in connection.execute(select(epochs))}


def _new(name: str, definitions: Definitions, *, version: int, time_ms: int) -> Organisation:
    """One that this database has never seen: windows at 0, buckets full."""
    organisation = Organisation(name)
    define = Define(organisation=name, caller_now_ms=time_ms, version=version, definitions=definitions)
    organisation.apply(define, time_ms=time_ms)
    organisation.apply(Ready(organisation=name, caller_now_ms=time_ms, epoch=_FIRST_EPOCH), time_ms=time_ms)
    return organisation


def _restored(
    connection: Connection, name: str, definitions: Definitions, *, version: int, epoch: int, time_ms: int
) -> Organisation:
    ledger = LedgerReads(connection)
    newest_ms = ledger.newest_ms(name)
    clock_ms = max(time_ms, newest_ms)
    return restore(
        name,
        version=version,
        definitions=definitions,
        epoch=epoch,
        time_ms=time_ms,
        ledger_time_ms=newest_ms,
        window_sums=ledger.window_sums(name, since_ms=current_since_ms(definitions, clock_ms)),
        reservations=_records(connection, name),
        tombstones=ledger.to_be_remembered(name, now_ms=clock_ms, remember_ms=REMEMBER_MS),
        buckets=_buckets(connection, name, definitions, clock_ms),
    )


def _records(connection: Connection, name: str) -> list[Reservation]:
    text = type_coerce(reservations.c.record, Text)
    found = connection.execute(select(text).where(reservations.c.organisation == name)).scalars()
    return [_decoder.decode(record) for record in found]


def _buckets(connection: Connection, name: str, definitions: Definitions, now_ms: int) -> dict[str, tuple[int, int]]:
    """Levels as of the last group; a bucket that was never written was never debited, and is full."""
    levels = {
        limit_id(limit): (limit.cap * limit.period_ms, now_ms) for limit in definitions.limits if limit.kind in BUCKETS
    }
    row = bucket_states.c
    found = connection.execute(select(row.limit_id, row.level, row.at_ms).where(row.organisation == name))
    levels.update({limit: (level, at_ms) for limit, level, at_ms in found})
    return levels
