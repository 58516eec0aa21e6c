"""Who changed what, when: written in the change's own transaction, never altered afterwards."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from penstock.adapters.sql.tables import audit_log
from penstock.lanes.administering import AuditQuery, AuditRecord


def record(
    connection: Connection,
    *,
    at_ms: int,
    actor: str,
    action: str,
    organisation: str | None,
    subject: str,
    before: Any,
    after: Any,
) -> None:
    """Write one entry in the transaction of ``connection``."""
    connection.execute(
        insert(audit_log).values(
            at_ms=at_ms,
            actor=actor,
            action=action,
            organisation=organisation,
            subject=subject,
            before=before,
            after=after,
        )
    )


def entries(engine: Engine, organisation: str | None = None, *, rows_max: int = 1_000) -> list[AuditRecord]:
    """The newest entries, newest first; of everything if no organisation is named."""
    with engine.connect() as connection:
        return page_of_entries(connection, AuditQuery(organisation=organisation, count_max=rows_max))


def page_of_entries(connection: Connection, query: AuditQuery) -> list[AuditRecord]:
    """Entries that match, newest first."""
    row = audit_log.c
    asked = (
        (query.organisation, row.organisation.__eq__),
        (query.actor, row.actor.__eq__),
        (query.action, row.action.__eq__),
        (query.subject, row.subject.__eq__),
        (query.from_ms, row.at_ms.__ge__),
        (query.until_ms, row.at_ms.__lt__),
        (query.before_id, row.id.__lt__),
    )
    statement = select(audit_log).order_by(row.id.desc()).limit(query.count_max)
    for value, compared in asked:
        if value is not None:
            statement = statement.where(compared(value))
    return [
        AuditRecord(
            id=each.id,
            at_ms=each.at_ms,
            actor=each.actor,
            action=each.action,
            organisation=each.organisation,
            subject=each.subject,
            before=each.before,
            after=each.after,
        )
        for each in connection.execute(statement)
    ]
