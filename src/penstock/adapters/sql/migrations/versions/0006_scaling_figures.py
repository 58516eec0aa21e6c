"""What waiting jobs hold, found without reading those that ended; and the figures that scaling goes by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_OPEN = sa.text("state IN ('queued', 'running')")


def upgrade() -> None:
    """Add a column and its index, and a table. Jobs from before it hold 0 here; they are soon gone."""
    op.add_column("jobs", sa.Column("tokens_held", sa.BigInteger, nullable=False, server_default="0"))
    op.create_index("ix_jobs_open", "jobs", ["model", "created_at_ms"], postgresql_where=_OPEN, sqlite_where=_OPEN)
    op.create_table(
        "scaling_figures",
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("figures", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("model", name="pk_scaling_figures"),
    )
