"""Prices whose moment has come: marked as in force once, by whoever looks first, which every process then notices."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, select, update

from penstock.adapters.sql.audit_log import record
from penstock.adapters.sql.database import writing
from penstock.adapters.sql.definition_rows import PICOS, prices_in_force
from penstock.adapters.sql.definition_tables import prices
from penstock.adapters.sql.keys import raise_version


def put_in_force(engine: Engine, *, now_ms: int, actor: str) -> int:
    """Mark every price that is due; tells how many. Costs one small read while none is."""
    due = (prices.c.in_force.is_(False)) & (prices.c.since_ms <= now_ms)
    with engine.connect() as connection:
        if connection.execute(select(prices.c.model).where(due).limit(1)).first() is None:
            return 0
    with writing(engine) as connection:
        raise_version(connection)  # first: whoever else wants to mark them waits here, and then finds none
        known: dict[str, Any] = dict(prices_in_force(connection))
        rows = connection.execute(select(prices).where(due).order_by(prices.c.model, prices.c.since_ms)).all()
        for row in rows:
            after = {each: getattr(row, each) for each in PICOS}
            record(
                connection,
                at_ms=now_ms,
                actor=actor,
                action="prices.in_force",
                organisation=None,
                subject=row.model,
                before=known.get(row.model),
                after=after,
            )
            known[row.model] = after
        connection.execute(update(prices).where(due).values(in_force=True))
    return len(rows)
