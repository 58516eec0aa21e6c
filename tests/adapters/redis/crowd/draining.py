"""The outbox on its way into a ledger while a crowd is at work: read, commit, then trim, as the keeper does it."""

from __future__ import annotations

from pathlib import Path

from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.outbox import Outbox
from penstock.adapters.sql.database import migrate, open_engine, writing
from penstock.adapters.sql.rows import INSERT_EVENT, to_row

PATIENT_S = 60.0


async def drain(port: int, ledger: Path, positions: dict[int, str]) -> int:
    """Move what the outbox has into the ledger, and the positions with it; how many events that were."""
    engine = open_engine(ledger)
    outbox = Outbox(read_address(f"redis://127.0.0.1:{port}"), bound_s=PATIENT_S)
    moved = 0
    try:
        migrate(engine)
        await outbox.start()
        while found := await outbox.read(positions):
            entries = [each for partition in found.values() for each in partition]
            with writing(engine) as connection:
                cursor = connection.connection.cursor()
                cursor.executemany(INSERT_EVENT, [to_row(each.event) for each in entries])
                cursor.close()
            last = {partition: each[-1].id for partition, each in found.items()}
            await outbox.trim(last)
            positions.update(last)
            moved += len(entries)
    finally:
        await outbox.close()
        engine.dispose()
    return moved
