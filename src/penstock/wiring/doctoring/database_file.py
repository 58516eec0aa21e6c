"""Checks of the embedded default's one file."""

from __future__ import annotations

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from penstock.lanes.diagnosis import Finding, wrong
from penstock.wiring.doctoring.patient import Patient

SHOWN = 3


async def check_database_file(patient: Patient) -> list[Finding]:
    """Its pages and indexes are whole."""

    def look(connection: Connection) -> list[str]:
        return [str(row[0]) for row in connection.execute(text(f"PRAGMA quick_check({SHOWN})"))]

    try:
        told = await patient.ask_database(look)
    except DBAPIError as error:
        told = [str(error.orig)]
    if told == ["ok"]:
        return []
    what = f"{patient.places.database} is damaged: {'; '.join(told)}"
    return [
        wrong("database", what, "stop the service, and restore the file from its backup: docs/04-operations/backup.md")
    ]
