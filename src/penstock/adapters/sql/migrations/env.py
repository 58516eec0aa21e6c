"""What Alembic runs: the migrations, on the connection and in the transaction that the caller opened."""

from __future__ import annotations

from alembic import context

from penstock.adapters.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,  # the caller's transaction holds all of it
)
context.run_migrations()
