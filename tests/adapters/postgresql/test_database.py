"""A database of the cluster is migrated once, recognised, refused when it is newer, and bounded when it is silent."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text
from sqlalchemy.exc import DataError, IntegrityError

from penstock.adapters.postgresql.database import check_prepared, open_engine
from penstock.adapters.sql import definition_tables, job_tables, keeping_tables
from penstock.adapters.sql.tables import metadata
from penstock.errors import StoreUnavailable
from tests.adapters.conftest import EventMaker, EventWriter
from tests.adapters.databases import Databases
from tests.polling import until

pytestmark = pytest.mark.slow  # real services: left out of the quick check


def test_migrations_make_exactly_the_tables_that_the_code_names(engine: Engine) -> None:
    assert {job_tables.jobs, definition_tables.limits, keeping_tables.keeper} <= set(metadata.tables.values())

    def is_named(name: str | None, kind: str, _parents: object) -> bool:
        return kind != "table" or not (name or "").startswith("ledger_")  # its partitions

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": is_named})
        assert compare_metadata(context, metadata) == []


@pytest.mark.parametrize("version", ["0001", "9999"])
def test_a_database_of_another_version_is_refused_with_the_fix(engine: Engine, version: str) -> None:
    check_prepared(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})
    with pytest.raises(StoreUnavailable, match=f"has version {version}, .*run "):
        check_prepared(engine)


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


def test_a_session_that_the_server_ended_because_it_idled_is_unavailable(engine: Engine) -> None:
    with engine.connect() as connection:
        mine = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        connection.execute(text("SET idle_in_transaction_session_timeout = 1"))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
            left = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
            until(lambda: not other.execute(left, {"pid": mine}).scalar_one(), "it is gone", bound_s=30)
        with pytest.raises(StoreUnavailable, match=r"idle-in-transaction timeout|closed the connection"):
            connection.execute(text("SELECT 1"))


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("25006", "cannot do this now, .* is to name the primary"),  # read_only_sql_transaction
        ("40001", "cannot do this now, .*its log says more"),  # serialization_failure
        ("53100", "cannot do this now, .*its log says more"),  # disk_full
        ("57014", "cannot do this now, .*its log says more"),  # query_canceled
        ("58030", "cannot do this now, .*its log says more"),  # io_error
    ],
)
def test_what_a_server_cannot_do_as_it_is_now_is_unavailable(engine: Engine, state: str, told: str) -> None:
    raising = f"DO $$ BEGIN RAISE EXCEPTION 'told by a test' USING ERRCODE = '{state}'; END $$"
    with engine.connect() as connection:
        with pytest.raises(StoreUnavailable, match=told):
            connection.execute(text(raising))
        connection.rollback()
        assert connection.execute(text("SELECT 1")).scalar() == 1


def test_a_statement_that_can_never_succeed_is_not_called_unavailable(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(DataError, match="division by zero"):
        connection.execute(text("SELECT 1 / 0"))


def test_a_connection_that_others_keep_is_unavailable_for_now(engine: Engine) -> None:
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    only = open_engine(url, connections_max=1)
    try:
        with only.connect(), pytest.raises(StoreUnavailable, match="all 1 are in use"):
            only.connect()
        with only.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1
    finally:
        only.dispose()


@pytest.mark.parametrize("table", ["ledger", "ledger_default", "ledger_202502", "ledger_202503", "audit_log"])
def test_what_is_written_once_cannot_even_be_truncated(
    engine: Engine, make_event: EventMaker, write: EventWriter, table: str
) -> None:
    with engine.begin() as connection:
        assert connection.execute(text("SELECT penstock_partition(202502)")).scalar() is True
        assert connection.execute(text("SELECT penstock_partition(202502)")).scalar() is False
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
