"""Which work queue each organisation's jobs wait in, kept with its row."""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from penstock.adapters.sql.definition_tables import organisations
from penstock.quota.sharding import assign_shards

_name, _shard = organisations.c.name, organisations.c.shard


def assign(connection: Connection, shards: int) -> dict[str, tuple[int, int]]:
    """Give every organisation a shard, in the caller's transaction, which must be the only one that does.

    Call it after each organisation that is added, and when the number of shards changes. One that was removed keeps
    its row's, and makes room for others.

    Args:
        shards: How many work queues each model has.

    Returns:
        By organisation, from which shard (-1: none) to which, for those that moved.
    """
    served = select(_name, _shard).where(organisations.c.removed_at_ms == 0)
    known = {row.name: row.shard for row in connection.execute(served)}
    moved = {name: (known[name], shard) for name, shard in assign_shards(known, shards).items() if shard != known[name]}
    for name, (_, shard) in moved.items():
        connection.execute(update(organisations).where(_name == name).values(shard=shard))
    return moved
