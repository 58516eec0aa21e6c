"""The ledger, the state that a restart needs, API keys and the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create everything."""
    _ledger()
    _state()
    _keys()
    _audit_log()
    if op.get_bind().dialect.name == "sqlite":
        for table in ("ledger", "audit_log"):
            for verb in ("update", "delete"):
                op.execute(
                    f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb.upper()} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{table} is written once: no {verb}'); END"
                )


def _numbers(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _ledger() -> None:
    op.create_table(
        "ledger",
        *_numbers("month"),
        *_texts("reservation", "kind", "organisation"),
        sa.Column("team", sa.Text),
        *_texts("key", "model", "lane"),
        *_numbers("occurred_at_ms", "prompt_tokens", "cached_tokens", "completion_tokens"),
        *_texts("usage_source"),
        *_numbers("tokens", "requests", "cost_nanos"),
        sa.Column("amounts", sa.JSON, nullable=False),
        *_numbers("tokens_held", "prompt_picos", "cached_picos", "completion_picos", "request_picos"),
        *_numbers("job_deadline_ms"),
        *_texts("reason"),
        sa.PrimaryKeyConstraint("month", "reservation", "kind", name="pk_ledger"),
    )
    for column in ("occurred_at_ms", "job_deadline_ms"):
        op.create_index(f"ix_ledger_organisation_{column}", "ledger", ["organisation", column])


def _state() -> None:
    op.create_table(
        "reservations",
        *_texts("reservation", "organisation"),
        sa.Column("record", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("reservation", name="pk_reservations"),
    )
    op.create_table(
        "bucket_states",
        *_texts("organisation", "limit_id"),
        *_numbers("level", "at_ms"),
        sa.PrimaryKeyConstraint("organisation", "limit_id", name="pk_bucket_states"),
    )
    op.create_table(
        "epochs",
        *_texts("organisation"),
        *_numbers("epoch"),
        sa.PrimaryKeyConstraint("organisation", name="pk_epochs"),
    )


def _keys() -> None:
    op.create_table(
        "api_keys",
        *_texts("organisation", "id", "name"),
        sa.Column("team", sa.Text),
        sa.Column("macs", sa.JSON, nullable=False),
        sa.Column("models", sa.JSON),
        sa.Column("routes", sa.JSON),
        sa.Column("cost_nanos_max", sa.BigInteger),
        *_numbers("created_at_ms", "expires_at_ms", "rotated_at_ms", "revoked_at_ms"),
        sa.PrimaryKeyConstraint("organisation", "id", name="pk_api_keys"),
    )
    op.create_table(
        "versions",
        *_texts("name"),
        *_numbers("version"),
        sa.PrimaryKeyConstraint("name", name="pk_versions"),
    )


def _audit_log() -> None:
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "audit_log",
        sa.Column("id", number, autoincrement=True, nullable=False),
        *_numbers("at_ms"),
        *_texts("actor", "action"),
        sa.Column("organisation", sa.Text),
        *_texts("subject"),
        sa.Column("before", sa.JSON),
        sa.Column("after", sa.JSON),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
    )
    op.create_index("ix_audit_log_organisation_at_ms", "audit_log", ["organisation", "at_ms"])
