"""The audit of the embedded default: of the live counters while the service runs, of a rebuild while it does not.

Live, the counters are read and a snapshot of the ledger is begun at one instant, while no commit is under way; the sums
are then made from the snapshot in a thread, and nothing waits for them. Row by row the ledger is read only to name
the reservations behind a difference; of a database at rest always, which also finds rows that contradict each other
while their sum is right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from sqlalchemy import Engine

from penstock.adapters.embedded.restarting import rebuilt
from penstock.adapters.embedded.store import EmbeddedStore
from penstock.adapters.sql.database import migrate, open_engine
from penstock.adapters.sql.definition_rows import organisations_without_keys
from penstock.adapters.sql.ledger import LedgerReads
from penstock.errors import StoreUnavailable
from penstock.lanes.audit_report import AuditReport
from penstock.quota.definitions import Definitions
from penstock.quota.operations import Inspect, Inspected
from penstock.wiring.comparing import compare_all, whole
from penstock.wiring.places import Places


async def audit_service(store: EmbeddedStore, engine: Engine, *, now_ms: int) -> AuditReport:
    """Compare the live counters of ``store`` with the ledger that ``engine`` reads.

    Raises:
        StoreUnavailable: An organisation's state is not ready.
    """
    connection = engine.connect()
    try:
        async with store.unwritten() as unwritten:
            inspected = {name: await _inspect(store, name, now_ms) for name in store.organisations}
            connection.begin()
            LedgerReads(connection).newest_ms()  # the first read fixes the snapshot
        found = await asyncio.to_thread(compare_all, connection, inspected, unwritten, each_row=False)
    finally:
        connection.close()
    return AuditReport(source="service", organisations=found)


def audit_database(places: Places, definitions: Mapping[str, Definitions], *, now_ms: int) -> AuditReport:
    """Rebuild the counters as a restart would, in memory, and compare them; the database is only read.

    Args:
        definitions: By organisation, from the configuration, for a database that has none yet.

    Raises:
        StoreUnavailable: There is no database, or it cannot be read.
    """
    if not places.database.exists():
        raise StoreUnavailable(
            f"there is no database in {places.data}; start the service once, or name its directory with --data"
        )
    engine = open_engine(places.database)
    try:
        migrate(engine)
        with engine.begin() as connection:
            governed = organisations_without_keys(connection) or definitions
            organisations = rebuilt(connection, governed, version=1, time_ms=now_ms)
            inspected = {
                name: whole(name, each.apply(Inspect(organisation=name, caller_now_ms=now_ms), time_ms=now_ms))
                for name, each in organisations.items()
            }
            found = compare_all(connection, inspected, [], each_row=True)
            return AuditReport(source="database", organisations=found)
    finally:
        engine.dispose()


async def _inspect(store: EmbeddedStore, name: str, now_ms: int) -> Inspected:
    return whole(name, await store.apply(Inspect(organisation=name, caller_now_ms=now_ms)))
