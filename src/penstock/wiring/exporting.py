"""Exports the ledger into a folder, one file a day: one that was interrupted goes on where it stopped.

A file has its name only once it is whole. Of a day that has been over for an hour (all of it has arrived by then)
the file is final, and is not made again; of a later day it is called ``.open`` and made anew each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from sqlalchemy import Engine

from penstock.adapters.exporting import Format
from penstock.adapters.sql.billing import EXPORTED, exported_rows
from penstock.adapters.sql.ledger import LedgerReads
from penstock.api.instants import iso
from penstock.lanes.billing import CLOSING_MS

DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What to export.

    Args:
        organisations: Those of the ledger, or some of them.
        name: What the files' names begin with.
        start_ms: Included; ``end_ms`` excluded.
    """

    engine: Engine
    form: Format
    organisations: Sequence[str]
    name: str
    start_ms: int
    end_ms: int

    @classmethod
    def of(cls, engine: Engine, form: Format, organisation: str | None, *, start_ms: int, end_ms: int) -> Export:
        """Of one organisation, or of every one that the ledger knows."""
        if organisation is not None:
            name, whose = f"ledger-{organisation}", [organisation]
        else:
            with engine.connect() as connection:
                name, whose = "ledger", list(LedgerReads(connection).organisations())
        return cls(engine=engine, form=form, organisations=whose, name=name, start_ms=start_ms, end_ms=end_ms)


def export_days(export: Export, folder: Path, *, now_ms: int, told: Callable[[Path, int | None], None]) -> None:
    """Write every day of the range into ``folder``.

    Args:
        export: Begins and ends at midnight, UTC.
        told: Given each file with its number of rows, None where it was there already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for start_ms in range(export.start_ms, export.end_ms, DAY_MS):
        end_ms = start_ms + DAY_MS
        day = f"{export.name}-{iso(start_ms)[:10]}"
        final = folder / f"{day}.{export.form.suffix}"
        still_open = folder / f"{day}.open.{export.form.suffix}"
        is_final = now_ms >= end_ms + CLOSING_MS
        if is_final and final.exists():
            told(final, None)
            continue
        target = final if is_final else still_open
        draft = folder / f".{target.name}.draft"
        with draft.open("wb") as file:
            count = write_rows(export, file, start_ms=start_ms, end_ms=end_ms)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
        if is_final:
            still_open.unlink(missing_ok=True)
        told(target, count)


def write_rows(export: Export, file: IO[bytes], *, start_ms: int, end_ms: int) -> int:
    """Write the rows of a range to an open file, from one snapshot of the ledger; tells how many."""
    writer = export.form.writer(file, EXPORTED)
    count = 0
    with export.engine.connect() as connection, connection.begin():
        for rows in exported_rows(connection, export.organisations, start_ms=start_ms, end_ms=end_ms):
            writer.write(rows)
            count += len(rows)
    writer.close()
    return count
