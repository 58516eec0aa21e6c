"""Jobs of the queue lane, their results, and the embedded default's queue."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the three tables."""
    op.create_table(
        "jobs",
        *_texts("id", "organisation"),
        sa.Column("team", sa.Text),
        *_texts("key", "model", "state"),
        *_numbers("created_at_ms", "started_at_ms", "finished_at_ms", "deadline_ms"),
        *_texts("reason"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_organisation_created_at_ms_id", "jobs", ["organisation", "created_at_ms", "id"])
    op.create_table(
        "results",
        *_texts("job", "organisation", "model", "route", "status"),
        *_numbers("http_status"),
        sa.Column("body", sa.Text),
        *_texts("reason"),
        *(sa.Column(name, sa.BigInteger) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")),
        sa.Column("usage_source", sa.Text),
        *_numbers("attempts", "started_at_ms", "finished_at_ms"),
        sa.Column("arguments", sa.JSON, nullable=False),
        sa.Column("settled", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("job", name="pk_results"),
    )
    op.create_index("ix_results_settled_finished_at_ms", "results", ["settled", "finished_at_ms"])
    op.create_table(
        "queued_jobs",
        sa.Column("place", sa.BigInteger().with_variant(sa.Integer, "sqlite"), autoincrement=True, nullable=False),
        *_texts("job", "organisation", "model", "message"),
        sa.PrimaryKeyConstraint("place", name="pk_queued_jobs"),
    )
    op.create_index("ix_queued_jobs_job", "queued_jobs", ["job"], unique=True)


def _numbers(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


def _texts(*names: str) -> list[sa.Column[str]]:
    text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")  # in the order of bytes, as SQLite and we sort
    return [sa.Column(name, text, nullable=False) for name in names]
