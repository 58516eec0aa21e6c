"""A database of the cluster is migrated once, recognised, refused when it is newer, and bounded when it is silent."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from penstock.adapters.postgresql.database import migrate, open_engine
from penstock.adapters.sql import definition_tables, job_tables, keeping_tables
from penstock.adapters.sql.migrations import revisions
from penstock.adapters.sql.tables import metadata
from penstock.errors import StoreUnavailable
from tests.adapters.conftest import EventMaker, EventWriter
from tests.adapters.databases import Databases


@pytest.fixture
def engine(postgresql: Databases) -> Iterator[Engine]:
    """An engine on a migrated database."""
    with postgresql.fresh() as engine:
        yield engine


def test_migrations_make_exactly_the_tables_that_the_code_names(engine: Engine) -> None:
    assert {job_tables.jobs, definition_tables.limits, keeping_tables.keeper} <= set(metadata.tables.values())

    def is_named(name: str | None, kind: str, _parents: object) -> bool:
        return kind != "table" or not (name or "").startswith("ledger_")  # its partitions

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": is_named})
        assert compare_metadata(context, metadata) == []


def test_two_processes_that_migrate_at_once_both_succeed(postgresql: Databases) -> None:
    code = (
        "import sys; from penstock.adapters.postgresql.database import migrate, open_engine\n"
        "migrate(open_engine(sys.argv[1]))"
    )
    with postgresql.named(template="template0") as url:
        running = [subprocess.Popen([sys.executable, "-c", code, url]) for _ in range(2)]
        assert [process.wait() for process in running] == [0, 0]


def test_a_newer_database_is_refused_with_the_fix(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreUnavailable, match=f"version 9999, newer.* knows {revisions()[-1]}; run the penstock"):
        migrate(engine)


def test_a_server_that_is_away_is_named_with_the_fix(postgresql: Databases) -> None:
    engine = open_engine("postgresql://nobody:secret@127.0.0.1:1/penstock")
    with pytest.raises(StoreUnavailable, match=r"penstock at 127\.0\.0\.1:1: .*refused.*check that it runs") as raised:
        engine.connect()
    assert "secret" not in raised.value.message


def test_a_connection_that_was_cut_is_unavailable_and_the_next_one_works(engine: Engine) -> None:
    with engine.connect() as connection:
        mine = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with engine.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": mine})
        with pytest.raises(StoreUnavailable, match="does not answer"):
            connection.execute(text("SELECT 1"))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1


@pytest.mark.parametrize("table", ["ledger", "ledger_default", "ledger_202503", "audit_log"])
def test_what_is_written_once_cannot_even_be_truncated(
    engine: Engine, make_event: EventMaker, write: EventWriter, table: str
) -> None:
    with engine.begin() as connection:
        assert connection.execute(text("SELECT penstock_partition(202503)")).scalar() is True
        assert connection.execute(text("SELECT penstock_partition(202503)")).scalar() is False
    write([make_event()])
    with engine.connect() as connection, pytest.raises(IntegrityError, match="is written once: no truncate"):
        connection.execute(text(f"TRUNCATE {table}"))


def test_a_row_lies_in_the_partition_of_its_month_or_in_the_default(
    engine: Engine, make_event: EventMaker, write: EventWriter
) -> None:
    with engine.begin() as connection:
        connection.execute(text("SELECT penstock_partition(202503)"))
    write([make_event(), make_event(reservation="0" * 32 + "-1")])
    with engine.connect() as connection:
        found = connection.execute(text("SELECT tableoid::regclass::text, month FROM ledger ORDER BY month")).all()
    assert [tuple(row) for row in found] == [("ledger_default", 197001), ("ledger_202503", 202503)]
