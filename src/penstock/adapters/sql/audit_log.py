"""Who changed what, when: written in the change's own transaction, never altered afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from penstock.adapters.sql.tables import audit_log


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One change. ``before`` is None for something new, ``after`` for something removed; neither holds a secret."""

    at_ms: int
    actor: str
    action: str
    organisation: str | None
    subject: str
    before: Any
    after: Any


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


def entries(engine: Engine, organisation: str | None = None, *, rows_max: int = 1_000) -> list[AuditEntry]:
    """The newest entries, newest first; of everything if no organisation is named."""
    statement = select(audit_log).order_by(audit_log.c.id.desc()).limit(rows_max)
    if organisation is not None:
        statement = statement.where(audit_log.c.organisation == organisation)
    with engine.connect() as connection:
        return [
            AuditEntry(
                at_ms=row.at_ms,
                actor=row.actor,
                action=row.action,
                organisation=row.organisation,
                subject=row.subject,
                before=row.before,
                after=row.after,
            )
            for row in connection.execute(statement)
        ]
