"""The audit of the embedded default: of the live counters while the service runs, of a rebuild while it does not.

Live, the counters are read and a snapshot of the ledger is begun at one instant, while no commit is under way; the sums
are then made from the snapshot in a thread, and nothing waits for them. Row by row the ledger is read only to name
the reservations behind a difference; of a database at rest always, which also finds rows that contradict each other
while their sum is right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, Engine

from penstock.adapters.embedded.restarting import rebuilt
from penstock.adapters.embedded.store import EmbeddedStore
from penstock.adapters.sql.database import migrate, open_engine
from penstock.adapters.sql.ledger import LedgerReads
from penstock.errors import StoreUnavailable
from penstock.lanes.audit import Difference, audit
from penstock.lanes.audit_report import AuditReport, OrganisationAudit
from penstock.quota.definitions import Definitions, Kind
from penstock.quota.events import Event
from penstock.quota.limits import parse_limit_id, window_ends_ms
from penstock.quota.operations import Inspect, InspectAnswer, Inspected
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
        found = await asyncio.to_thread(_compare_all, connection, inspected, unwritten, each_row=False)
    finally:
        connection.close()
    return AuditReport(source="service", organisations=found)


def audit_database(places: Places, definitions: Mapping[str, Definitions], *, now_ms: int) -> AuditReport:
    """Rebuild the counters as a restart would, in memory, and compare them; the database is only read.

    Args:
        definitions: By organisation, from the configuration.

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
            organisations = rebuilt(connection, definitions, version=1, time_ms=now_ms)
            inspected = {
                name: _whole(name, each.apply(Inspect(organisation=name, caller_now_ms=now_ms), time_ms=now_ms))
                for name, each in organisations.items()
            }
            found = _compare_all(connection, inspected, [], each_row=True)
            return AuditReport(source="database", organisations=found)
    finally:
        engine.dispose()


async def _inspect(store: EmbeddedStore, name: str, now_ms: int) -> Inspected:
    return _whole(name, await store.apply(Inspect(organisation=name, caller_now_ms=now_ms)))


def _whole(name: str, answer: InspectAnswer) -> Inspected:
    if not isinstance(answer, Inspected):
        raise StoreUnavailable(f"{name}: its quota state is not ready, so there is nothing to compare; try again")
    return answer


def _compare_all(
    connection: Connection, inspected: Mapping[str, Inspected], unwritten: Sequence[Event], *, each_row: bool
) -> tuple[OrganisationAudit, ...]:
    ledger = LedgerReads(connection)
    found = []
    for name, each in sorted(inspected.items()):
        on_the_way = [event for event in unwritten if event.organisation == name]
        found.append(
            OrganisationAudit(
                organisation=name,
                at_ms=each.now_ms,
                limits=each.limits,
                holds=len(each.holds),
                tokens_held=sum(hold.tokens_held for hold in each.holds),
                unwritten=len(on_the_way),
                differences=tuple(_differences(ledger, name, each, on_the_way, each_row=each_row)),
            )
        )
    return tuple(found)


def _differences(
    ledger: LedgerReads, name: str, inspected: Inspected, unwritten: Sequence[Event], *, each_row: bool
) -> list[Difference]:
    since_ms = _current_since_ms(inspected)
    sums = ledger.window_sums(name, since_ms=since_ms)
    if not each_row and not audit(inspected, window_sums=sums, unwritten=unwritten):
        return []
    rows = ledger.events(organisation=name, start_ms=since_ms)
    return audit(inspected, window_sums=sums, unwritten=unwritten, rows=rows)


def _current_since_ms(inspected: Inspected) -> int:
    """When the oldest window that is current began: rows before it are in no counter."""
    begins_ms = [inspected.now_ms]
    for standing in inspected.limits:
        if standing.kind == Kind.WINDOW:
            limit = parse_limit_id(standing.limit)
            begins_ms.append(window_ends_ms(limit.period_ms, limit.anchor_ms, standing.window - 1))
    return min(begins_ms)
