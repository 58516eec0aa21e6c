"""Corrections of bills: rows of their own, written once, since a row of the ledger is never changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table, which refuses changes as the ledger does."""
    text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.create_table(
        "corrections",
        *(sa.Column(name, text, nullable=False) for name in ("organisation", "reference")),
        sa.Column("occurred_at_ms", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("author", "reason", "corrects")),
        sa.Column("team", sa.Text),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("key", "model", "lane")),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "cost_nanos")
        ),
        sa.PrimaryKeyConstraint("organisation", "reference", name="pk_corrections"),
    )
    op.create_index("ix_corrections_organisation_occurred_at_ms", "corrections", ["organisation", "occurred_at_ms"])
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("update", "delete"):
            op.execute(
                f"CREATE TRIGGER corrections_no_{verb} BEFORE {verb.upper()} ON corrections "
                f"BEGIN SELECT RAISE(ABORT, 'corrections is written once: no {verb}'); END"
            )
        return
    for name, verbs, each in (
        ("corrections_no_change", "UPDATE OR DELETE", "ROW"),
        ("corrections_no_truncate", "TRUNCATE", "STATEMENT"),
    ):
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {verbs} ON corrections "
            f"FOR EACH {each} EXECUTE FUNCTION penstock_refuse('corrections')"
        )
