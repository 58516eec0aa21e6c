"""Setup prepares a database from nothing, again, and from two places at once; each user may do its work and no more."""

from __future__ import annotations

import json
import subprocess
import sys

import psycopg
import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import ProgrammingError

from penstock.adapters.postgresql.database import check_prepared, open_engine
from penstock.adapters.postgresql.partitioning import make_partitions
from penstock.adapters.postgresql.preparing import prepare
from penstock.adapters.postgresql.rights import EMBEDDED_ONLY, RIGHTS
from penstock.adapters.sql import definition_tables, job_tables, keeping_tables  # noqa: F401 - they declare tables
from penstock.adapters.sql.tables import metadata
from penstock.errors import ConfigurationError, StoreUnavailable
from tests.adapters.conftest import EventMaker, EventWriter
from tests.adapters.databases import ACCOUNTS, MARCH_MS, Databases

pytestmark = pytest.mark.slow  # real services: left out of the quick check

VERBS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
STATE = """
    SELECT relname, pg_get_userbyid(relowner), relacl::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT rolname, rolsuper || '-' || rolcreaterole, rolcanlogin::text FROM pg_roles
    UNION ALL SELECT datname, datacl::text, '' FROM pg_database WHERE datname = current_database()
    ORDER BY 1, 2
"""


@pytest.fixture
def engine(engine: Engine) -> Engine:
    """An engine on a database with its own rights too, which no copy of a template has."""
    prepare(engine, ACCOUNTS, now_ms=MARCH_MS)
    return engine


def _as(engine: Engine, role: str) -> Engine:
    """An engine on the same database as one of its users."""
    url = engine.url.set(username=f"penstock_{role}", password=ACCOUNTS[role])
    return open_engine(url.render_as_string(hide_password=False), connections_max=1)


def _state(engine: Engine) -> list[tuple[str, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(STATE))]


def test_two_that_prepare_a_missing_database_at_once_both_succeed(postgresql: Databases) -> None:
    code = (
        "import json, sys; from penstock.adapters.postgresql.database import open_engine\n"
        "from penstock.adapters.postgresql.preparing import prepare\n"
        "prepare(open_engine(sys.argv[1]), json.loads(sys.argv[2]), now_ms=0)"
    )
    url = postgresql.url("made_by_two")
    running = [subprocess.Popen([sys.executable, "-c", code, url, json.dumps(ACCOUNTS)]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    engine = open_engine(url)
    check_prepared(engine)
    engine.dispose()


def test_preparing_again_changes_nothing(engine: Engine) -> None:
    before = _state(engine)
    prepare(engine, ACCOUNTS, now_ms=MARCH_MS)
    assert _state(engine) == before
    assert len(before) > 40


def test_a_changed_password_is_the_one_that_works(engine: Engine) -> None:
    prepare(engine, {**ACCOUNTS, "api": "changed"}, now_ms=MARCH_MS)
    with pytest.raises(StoreUnavailable, match="authentication failed"):
        _as(engine, "api").connect()
    prepare(engine, ACCOUNTS, now_ms=MARCH_MS)
    api = _as(engine, "api")
    with api.connect() as connection:
        assert connection.execute(text("SELECT current_user")).scalar() == "penstock_api"
    api.dispose()


def test_an_account_of_no_role_is_refused_by_name(engine: Engine) -> None:
    with pytest.raises(ConfigurationError, match=r"accounts.gateway: no such role; use api, keeper, collector"):
        prepare(engine, {"gateway": "x"}, now_ms=MARCH_MS)


def test_an_account_that_may_not_prepare_is_told_what_is_missing(engine: Engine) -> None:
    keeper = _as(engine, "keeper")
    with pytest.raises(StoreUnavailable, match=r"admin option on role.*must own it and be able to create roles"):
        prepare(keeper, ACCOUNTS, now_ms=MARCH_MS)
    keeper.dispose()


def test_every_table_has_declared_rights() -> None:
    declared = {table for tables in RIGHTS.values() for table in tables} | set(EMBEDDED_ONLY)
    assert declared == set(metadata.tables) | {"alembic_version"}


@pytest.mark.parametrize("role", RIGHTS)
def test_a_role_has_exactly_its_rights(engine: Engine, role: str) -> None:
    asked = text("SELECT has_table_privilege(:user, :table, :verb)")
    found: dict[str, list[str]] = {}
    with engine.connect() as connection:
        tables = connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).scalars().all()
        for table in tables:
            for verb in VERBS:
                if connection.execute(asked, {"user": f"penstock_{role}", "table": table, "verb": verb}).scalar():
                    found.setdefault(table, []).append(verb)
    assert found == {table: [verb for verb in VERBS if verb in rights] for table, rights in RIGHTS[role].items()}


@pytest.mark.parametrize("role", RIGHTS)
@pytest.mark.parametrize("table", ["ledger", "ledger_default", "ledger_202503"])
@pytest.mark.parametrize("change", ["UPDATE {} SET cost_nanos = 0", "DELETE FROM {}", "TRUNCATE {}", "DROP TABLE {}"])
def test_no_role_can_change_the_ledger(
    engine: Engine, make_event: EventMaker, write: EventWriter, role: str, table: str, change: str
) -> None:
    write([make_event()])
    user = _as(engine, role)
    with user.connect() as connection, pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
        connection.execute(text(change.format(table)))
    user.dispose()


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("api", "INSERT INTO ledger DEFAULT VALUES"),
        ("collector", "SELECT * FROM ledger"),
        ("collector", "SELECT * FROM api_keys"),
        ("keeper", "UPDATE api_keys SET name = ''"),
        ("keeper", "ALTER TABLE ledger DISABLE TRIGGER ALL"),
        ("keeper", "CREATE TABLE mine (x int)"),
        ("api", "CREATE TEMPORARY TABLE mine (x int)"),
        ("api", "SELECT penstock_partition(209901)"),
        ("api", "SET ROLE penstock_owner"),
        ("keeper", "UPDATE audit_log SET actor = ''"),
    ],
)
def test_a_role_cannot_go_beyond_its_work(engine: Engine, role: str, statement: str) -> None:
    user = _as(engine, role)
    with user.connect() as connection, pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
        connection.execute(text(statement))
    user.dispose()


def test_the_keeper_may_make_partitions_though_it_owns_none(engine: Engine) -> None:
    keeper = _as(engine, "keeper")
    with keeper.begin() as connection:
        assert make_partitions(connection, now_ms=MARCH_MS + 31 * 86_400_000) == [202507]
        assert make_partitions(connection, now_ms=MARCH_MS) == []
    keeper.dispose()


def test_no_stranger_can_connect(engine: Engine, postgresql: Databases) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE ROLE stranger LOGIN PASSWORD 'x'"))
    url = make_url(postgresql.server.url).set(username="stranger", password="x", database=engine.url.database)
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(url.render_as_string(hide_password=False))
