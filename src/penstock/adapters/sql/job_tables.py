"""The tables of the queue lane: what became of each job, its answer, and in the embedded default the queue itself.

``jobs`` is a projection of the quota's events, as the ledger is, written in the same transaction: see
``penstock.adapters.sql.jobs.project``. What a job was charged is not in it but in the ledger. ``results`` has one row
for each job that came to an end in an executor: the first wins, and is written before its usage is settled.

``queued_jobs`` exists in both modes and is used in the embedded default only, where a broker would be in the way.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, Index, Integer, PrimaryKeyConstraint, Table, Text, text

from penstock.adapters.sql.tables import metadata

IS_OPEN = text("state IN ('queued', 'running')")
"""Written out, since a partial index serves no statement that gives the states as parameters."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, nullable=False),  # its reservation
    Column("organisation", Text, nullable=False),
    Column("team", Text),
    Column("key", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("state", Text, nullable=False),  # penstock.ports.JobState
    Column("created_at_ms", BigInteger, nullable=False),  # 0: not known (yet), as for the next two
    Column("started_at_ms", BigInteger, nullable=False),
    Column("finished_at_ms", BigInteger, nullable=False),
    Column("deadline_ms", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("tokens_held", BigInteger, nullable=False, server_default="0"),  # when it was accepted
    PrimaryKeyConstraint("id"),
    Index(None, "organisation", "created_at_ms", "id"),
    Index("ix_jobs_open", "model", "created_at_ms", postgresql_where=IS_OPEN, sqlite_where=IS_OPEN),
)

results = Table(
    "results",
    metadata,
    Column("job", Text, nullable=False),
    Column("organisation", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("route", Text, nullable=False),  # "chat.completions", "completions", "embeddings"
    Column("status", Text, nullable=False),  # succeeded, failed, cancelled, expired
    Column("http_status", BigInteger, nullable=False),
    Column("body", Text),  # JSON as the model server answered it, or an error; null: none
    Column("reason", Text, nullable=False),
    Column("prompt_tokens", BigInteger),  # null, as the next three: nothing is charged
    Column("cached_tokens", BigInteger),
    Column("completion_tokens", BigInteger),
    Column("usage_source", Text),
    Column("attempts", BigInteger, nullable=False),
    Column("started_at_ms", BigInteger, nullable=False),
    Column("finished_at_ms", BigInteger, nullable=False),
    Column("arguments", JSON, nullable=False),  # of its reserve, for a store that lost it
    Column("settled", Boolean, nullable=False),  # the quota store has acknowledged usage, or void
    PrimaryKeyConstraint("job"),
    Index(None, "settled", "finished_at_ms"),
)

queued_jobs = Table(
    "queued_jobs",
    metadata,
    # SQLite numbers rows by itself only in a column of exactly this type.
    Column("place", BigInteger().with_variant(Integer, "sqlite"), autoincrement=True, nullable=False),
    Column("job", Text, nullable=False),
    Column("organisation", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("message", Text, nullable=False),  # JSON; the prompt is in it, so it goes when the job ends
    PrimaryKeyConstraint("place"),
    Index(None, "job", unique=True),
)
