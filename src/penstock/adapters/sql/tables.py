"""Every table, once: what the migrations create, the statements name and the tests compare.

Types are portable, for SQLite and PostgreSQL: every number is a ``BigInteger``, times are Unix
milliseconds, identifiers are text. PostgreSQL partitions ``ledger`` by the month, which is first in its key.

Three tables are written once and never again, ``ledger``, ``corrections`` and ``audit_log``: triggers refuse updates
and deletes.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Index, Integer, MetaData, PrimaryKeyConstraint, Table, Text

metadata = MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"},
)

ledger = Table(
    "ledger",
    metadata,
    Column("month", BigInteger, nullable=False),  # yyyymm of the reservation, read from its id
    Column("reservation", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("organisation", Text, nullable=False),
    Column("team", Text),
    Column("key", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("lane", Text, nullable=False),
    Column("occurred_at_ms", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("usage_source", Text, nullable=False),
    Column("tokens", BigInteger, nullable=False),  # charged, as are the next two
    Column("requests", BigInteger, nullable=False),
    Column("cost_nanos", BigInteger, nullable=False),
    Column("amounts", JSON, nullable=False),  # [[limit id, window id, amount], ...]
    Column("tokens_held", BigInteger, nullable=False),
    Column("prompt_picos", BigInteger, nullable=False),
    Column("cached_picos", BigInteger, nullable=False),
    Column("completion_picos", BigInteger, nullable=False),
    Column("request_picos", BigInteger, nullable=False),
    Column("job_deadline_ms", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    PrimaryKeyConstraint("month", "reservation", "kind"),
    Index(None, "organisation", "occurred_at_ms"),
    Index(None, "organisation", "job_deadline_ms"),
    postgresql_partition_by="LIST (month)",
)

# What was billed wrongly, put right on the invoice of the month in which it is written; the quota's counters stay.
corrections = Table(
    "corrections",
    metadata,
    Column("organisation", Text, nullable=False),
    Column("reference", Text, nullable=False),  # the author's own, such as a ticket: a second one is the same
    Column("occurred_at_ms", BigInteger, nullable=False),
    Column("author", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("corrects", Text, nullable=False),  # a reservation's id, or "2026-10 chat-small search", an invoice's line
    Column("team", Text),
    Column("key", Text, nullable=False),  # empty: of an invoice's line
    Column("model", Text, nullable=False),
    Column("lane", Text, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),  # this and the next three may be negative
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cost_nanos", BigInteger, nullable=False),
    PrimaryKeyConstraint("organisation", "reference"),
    Index(None, "organisation", "occurred_at_ms"),
)

# Those that the ledger alone cannot restore: open, expired, and voided before they were reserved.
reservations = Table(
    "reservations",
    metadata,
    Column("reservation", Text, nullable=False),
    Column("organisation", Text, nullable=False),
    Column("record", JSON, nullable=False),
    PrimaryKeyConstraint("reservation"),
)

bucket_states = Table(
    "bucket_states",
    metadata,
    Column("organisation", Text, nullable=False),
    Column("limit_id", Text, nullable=False),
    Column("level", BigInteger, nullable=False),  # in units of 1 / period
    Column("at_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("organisation", "limit_id"),
)

epochs = Table(
    "epochs",
    metadata,
    Column("organisation", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    PrimaryKeyConstraint("organisation"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("organisation", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("team", Text),
    Column("macs", JSON, nullable=False),  # [[lower-case hex, expires_at_ms or 0], ...], newest first
    Column("models", JSON(none_as_null=True)),  # scope: null for all
    Column("routes", JSON(none_as_null=True)),
    Column("cost_nanos_max", BigInteger),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),  # 0: never
    Column("rotated_at_ms", BigInteger, nullable=False),  # 0: never
    Column("revoked_at_ms", BigInteger, nullable=False),  # 0: not revoked
    Column("admin", Text, nullable=False, server_default=""),  # penstock.lanes.administering.Admin
    Column("creator", Text),  # "<organisation>/<key>" of the key that made it; null: the command line did
    Column("peppers", JSON, nullable=False, server_default="[]"),  # which pepper each of macs was made with
    PrimaryKeyConstraint("organisation", "id"),
)

audit_log = Table(
    "audit_log",
    metadata,
    # SQLite numbers rows by itself only in a column of exactly this type; its integers have 64 bits all the same.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), autoincrement=True, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("organisation", Text),
    Column("subject", Text, nullable=False),
    Column("before", JSON(none_as_null=True)),
    Column("after", JSON(none_as_null=True)),
    PrimaryKeyConstraint("id"),
    Index(None, "organisation", "at_ms"),
)

versions = Table(
    "versions",
    metadata,
    Column("name", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    PrimaryKeyConstraint("name"),
)

WRITTEN_ONCE = ("ledger", "corrections", "audit_log")
