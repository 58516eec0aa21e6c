"""Checks of PostgreSQL: whether it keeps what it is told, is prepared for this version, and has a keeper."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, func, select, text

from penstock.adapters.postgresql.leading import LOCK
from penstock.adapters.postgresql.partitioning import months_from
from penstock.adapters.sql.database import revision
from penstock.adapters.sql.job_tables import results
from penstock.adapters.sql.migrations import revisions
from penstock.lanes.diagnosis import Finding, warning, wrong
from penstock.wiring.doctoring.patient import Patient

VERSION_MIN = 130_000
UNSETTLED_LONG_MS = 300_000
_MUST_BE_ON = ("fsync", "full_page_writes", "synchronous_commit")
_ARCHIVER = text("SELECT last_failed_wal, last_failed_time > coalesce(last_archived_time, '-infinity') "
                 "FROM pg_stat_archiver")  # fmt: skip
_HOLDER = text(
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = :high AND objid = :low "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


async def check_postgresql(patient: Patient) -> list[Finding]:
    """Recent enough, and every commit is on its disk before it is acknowledged."""

    def look(connection: Connection) -> list[Finding]:
        findings = []
        version = int(connection.execute(text("SHOW server_version_num")).scalar_one())
        if version < VERSION_MIN:
            what = f"PostgreSQL has version {version // 10_000}, wanted is {VERSION_MIN // 10_000} or later"
            findings.append(wrong("postgresql", what, "upgrade the server"))
        for name in _MUST_BE_ON:
            if connection.execute(text(f"SHOW {name}")).scalar_one() == "off":
                what = f"PostgreSQL's {name} is off, so a crash may lose or break ledger rows that were acknowledged"
                findings.append(wrong("postgresql", what, f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf();"))
        failed_wal, is_failing = connection.execute(_ARCHIVER).one()
        if is_failing:
            what = f"PostgreSQL's archive_command fails, last for {failed_wal}; the write-ahead log fills its disk"
            findings.append(wrong("postgresql", what, "try the archive_command by hand, as the server's user"))
        return findings

    return await patient.ask_database(look)


async def check_schema(patient: Patient) -> list[Finding]:
    """The tables are of this version, and the months to come have their partition."""

    def look(connection: Connection) -> list[Finding]:
        found, wanted = revision(connection), revisions()[-1]
        if found != wanted:
            what = f"the database has revision {found or 'none'}, this penstock needs {wanted}"
            return [wrong("schema", what, "penstock setup")]
        if patient.configuration.stores is None:
            return []
        missing = [
            month
            for month in months_from(patient.clock.now_ms(), 2)
            if connection.execute(text("SELECT to_regclass(:name)"), {"name": f"ledger_{month}"}).scalar() is None
        ]
        if not missing:
            return []
        what = f"the ledger has no partition for {', '.join(map(str, missing))}"
        return [warning("schema", what, "penstock setup; an active `penstock keeper` makes them ahead")]

    return await patient.ask_database(look)


async def check_keeper(patient: Patient) -> list[Finding]:
    """One keeper is active: it holds the advisory lock."""

    def look(connection: Connection) -> list[Finding]:
        holders = connection.execute(_HOLDER, {"high": LOCK >> 32, "low": LOCK & 0xFFFFFFFF}).scalar_one()
        if holders:
            return []
        what = "no keeper is active, so nothing is billed, expired or rebuilt"
        return [wrong("keeper", what, "start `penstock keeper`; if one runs, its log says why it stands by")]

    return await patient.ask_database(look)


async def check_results(patient: Patient) -> list[Finding]:
    """What jobs used has been charged."""
    before_ms = patient.clock.now_ms() - UNSETTLED_LONG_MS
    statement = select(func.count(), func.min(results.c.finished_at_ms)).where(
        results.c.settled.is_(False), results.c.finished_at_ms < before_ms
    )

    def look(connection: Connection) -> list[Finding]:
        count, oldest_ms = connection.execute(statement).one()
        if not count:
            return []
        since = datetime.fromtimestamp(oldest_ms / 1000, tz=UTC).isoformat(timespec="seconds")
        what = f"{count} results of jobs are stored and not charged, the oldest since {since}"
        return [wrong("results", what, "see the log of the active `penstock keeper`, which charges them")]

    return await patient.ask_database(look)
