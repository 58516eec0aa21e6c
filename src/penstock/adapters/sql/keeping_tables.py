"""The tables that the keeper writes beside the ledger, in the same transactions: rolled-up usage, and who may write.

``outbox_positions`` tells how far each partition's outbox has been drained, for people and for gateways that keep what
is not drained yet. Nothing is skipped because of it: a store that lost its state may count from the beginning again.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, PrimaryKeyConstraint, Table, Text

from penstock.adapters.sql.tables import metadata


def _rolled_up(name: str, start: str) -> Table:
    return Table(
        name,
        metadata,
        Column(start, BigInteger, nullable=False),  # of the hour or day, UTC
        Column("organisation", Text, nullable=False),
        Column("team", Text, nullable=False),  # empty: none
        Column("key", Text, nullable=False),
        Column("model", Text, nullable=False),
        Column("lane", Text, nullable=False),
        Column("requests", BigInteger, nullable=False),
        Column("prompt_tokens", BigInteger, nullable=False),
        Column("cached_tokens", BigInteger, nullable=False),
        Column("completion_tokens", BigInteger, nullable=False),
        Column("tokens", BigInteger, nullable=False),
        Column("cost_nanos", BigInteger, nullable=False),
        PrimaryKeyConstraint("organisation", start, "team", "key", "model", "lane"),
    )


usage_hourly = _rolled_up("usage_hourly", "hour_ms")
usage_daily = _rolled_up("usage_daily", "day_ms")

keeper = Table(
    "keeper",
    metadata,
    Column("name", Text, nullable=False),  # one row: "keeper"
    Column("fence", BigInteger, nullable=False),  # rises with each change of who is active
    Column("process", Text, nullable=False),
    Column("since_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("name"),
)

outbox_positions = Table(
    "outbox_positions",
    metadata,
    Column("partition", BigInteger, autoincrement=False, nullable=False),
    Column("entry", Text, nullable=False),  # the last one's id in the stream
    Column("drained_at_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("partition"),
)

scaling_figures = Table(
    "scaling_figures",
    metadata,
    Column("model", Text, nullable=False),
    Column("figures", JSON, nullable=False),  # penstock.planning.figures.Figures, as the active keeper last found them
    PrimaryKeyConstraint("model"),
)
