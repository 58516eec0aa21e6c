"""Who manages what, how long what is stored is kept, who may administrate, and what was erased."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns, with what was the case before; create the table of erasures."""
    for table in ("organisations", "models"):
        op.add_column(table, sa.Column("managed_by", sa.Text, nullable=False, server_default="file"))
    for column in ("results_ms", "answers_ms"):
        op.add_column("organisations", sa.Column(column, sa.BigInteger))
    op.add_column("prices", sa.Column("in_force", sa.Boolean, nullable=False, server_default=sa.true()))
    op.add_column("api_keys", sa.Column("admin", sa.Text, nullable=False, server_default=""))
    op.add_column("api_keys", sa.Column("creator", sa.Text))
    op.add_column("api_keys", sa.Column("peppers", sa.JSON, nullable=False, server_default="[]"))
    op.create_table(
        "erasures",
        sa.Column("organisation", sa.Text, nullable=False),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("erased_at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("organisation", "job", name="pk_erasures"),
    )
