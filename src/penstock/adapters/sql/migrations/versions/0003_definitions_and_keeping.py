"""What governs requests, rolled-up usage, and the keeper's fence and positions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    _definitions()
    for name, start in (("usage_hourly", "hour_ms"), ("usage_daily", "day_ms")):
        op.create_table(
            name,
            *_numbers(start),
            *_texts("organisation", "team", "key", "model", "lane"),
            *_numbers("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "tokens", "cost_nanos"),
            sa.PrimaryKeyConstraint("organisation", start, "team", "key", "model", "lane", name=f"pk_{name}"),
        )
    op.create_table(
        "keeper",
        *_texts("name"),
        *_numbers("fence"),
        *_texts("process"),
        *_numbers("since_ms"),
        sa.PrimaryKeyConstraint("name", name="pk_keeper"),
    )
    op.create_table(
        "outbox_positions",
        sa.Column("partition", sa.BigInteger, autoincrement=False, nullable=False),
        *_texts("entry"),
        *_numbers("drained_at_ms"),
        sa.PrimaryKeyConstraint("partition", name="pk_outbox_positions"),
    )
    op.execute("INSERT INTO keeper (name, fence, process, since_ms) VALUES ('keeper', 0, '', 0)")


def _definitions() -> None:
    op.create_table(
        "organisations",
        *_texts("name", "reserve", "overrun"),
        *_numbers("created_at_ms", "removed_at_ms"),
        sa.PrimaryKeyConstraint("name", name="pk_organisations"),
    )
    op.create_table(
        "teams",
        *_texts("organisation", "name"),
        sa.PrimaryKeyConstraint("organisation", "name", name="pk_teams"),
    )
    op.create_table(
        "limits",
        *_texts("organisation", "id", "owner", "metric", "kind"),
        *_numbers("period_ms", "anchor_ms"),
        sa.Column("model", sa.Text),
        *_numbers("cap"),
        sa.PrimaryKeyConstraint("organisation", "id", name="pk_limits"),
    )
    op.create_table(
        "models",
        *_texts("name"),
        *_numbers("context", "template_tokens", "tokens_per_byte_max"),
        sa.PrimaryKeyConstraint("name", name="pk_models"),
    )
    op.create_table(
        "prices",
        *_texts("model"),
        *_numbers("since_ms", "prompt_picos", "cached_picos", "completion_picos", "request_picos"),
        sa.PrimaryKeyConstraint("model", "since_ms", name="pk_prices"),
    )


def _numbers(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]
