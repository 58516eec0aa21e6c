"""Which of the work queues each organisation's jobs wait in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; ``penstock setup`` and every change of the organisations assign what is not assigned."""
    op.add_column("organisations", sa.Column("shard", sa.BigInteger, nullable=False, server_default="-1"))
