"""What ``penstock setup`` does to PostgreSQL: database, schema, partitions, users and their rights.

Everything but the database itself happens in one transaction under one lock: it is all there or nothing is, and two
that prepare at once do it one after the other. Doing it again changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from psycopg import sql
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from penstock.adapters.postgresql.database import elsewhere, named
from penstock.adapters.postgresql.partitioning import make_partitions
from penstock.adapters.postgresql.rights import OWNER, PREFIX, RIGHTS, SEQUENCES
from penstock.adapters.sql.database import upgrade
from penstock.errors import ConfigurationError, StoreUnavailable

LOCK = 7_364_796_111  # in pg_locks: any number that nobody else uses
_MAINTENANCE = "postgres"  # the database that every server has


def prepare(engine: Engine, accounts: Mapping[str, str], *, now_ms: int) -> None:
    """Make the database what this version needs, and a user ``penstock_<role>`` for each account.

    Args:
        engine: Of an account that may create roles and owns the database, or may create it.
        accounts: Passwords by role: "api", "keeper", "collector". A role without an account gets no user.
        now_ms: Decides which of the ledger's partitions are made ahead.

    Raises:
        ConfigurationError: There is no such role.
        StoreUnavailable: It cannot be reached, is newer than this code, or the account may not do this.
    """
    unknown = sorted(set(accounts) - set(RIGHTS))
    if unknown:
        raise ConfigurationError(
            tuple(f"stores.postgresql.accounts.{role}: no such role; use {', '.join(RIGHTS)}" for role in unknown)
        )
    try:
        _make_database(engine)
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            _make_owner(connection)
            connection.execute(text(f"SET LOCAL ROLE {OWNER}"))
            upgrade(connection)
            make_partitions(connection, now_ms=now_ms)
            connection.execute(text("RESET ROLE"))
            _bar_everyone(connection)
            for role, password in accounts.items():
                _make_user(connection, role, password)
    except DBAPIError as error:
        raise StoreUnavailable(
            f"cannot prepare the database {named(engine.url)}: {error.orig}; "
            "the account of stores.postgresql must own it and be able to create roles, or be a superuser"
        ) from error


def _make_database(engine: Engine) -> None:
    try:
        with engine.connect():
            return
    except StoreUnavailable as error:
        failed = error
    administration = elsewhere(engine, _MAINTENANCE).execution_options(isolation_level="AUTOCOMMIT")
    try:
        with administration.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
            exists = text("SELECT true FROM pg_database WHERE datname = :name")
            if connection.execute(exists, {"name": engine.url.database}).scalar():
                with engine.connect():  # it was made a moment ago, or is out of reach for another reason
                    return
            _execute(connection, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(engine.url.database or "")))
            connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": LOCK})
    except StoreUnavailable:
        raise failed from None
    finally:
        administration.dispose()


def _make_owner(connection: Connection) -> None:
    """The role that owns the schema; nobody logs in as it, but the preparing account may act for it."""
    if not _has_role(connection, OWNER):
        connection.execute(text(f"CREATE ROLE {OWNER} NOLOGIN"))
    is_member = text("SELECT pg_has_role(current_user, :owner, 'MEMBER')")
    if not connection.execute(is_member, {"owner": OWNER}).scalar():
        connection.execute(text(f"GRANT {OWNER} TO CURRENT_USER"))
    connection.execute(text(f"GRANT USAGE, CREATE ON SCHEMA public TO {OWNER}"))


def _bar_everyone(connection: Connection) -> None:
    database = _database(connection)
    _execute(connection, sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
    connection.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))


def _make_user(connection: Connection, role: str, password: str) -> None:
    name, database = sql.Identifier(f"{PREFIX}{role}"), _database(connection)
    if not _has_role(connection, f"{PREFIX}{role}"):
        _execute(connection, sql.SQL("CREATE ROLE {}").format(name))
    driver = connection.connection.driver_connection
    assert driver is not None
    verifier = driver.pgconn.encrypt_password(password.encode(), f"{PREFIX}{role}".encode(), b"scram-sha-256")
    _execute(  # only what the password is checked with is sent, so that no log of the server can hold the password
        connection, sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(verifier.decode()))
    )
    _execute(connection, sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, name))
    _execute(connection, sql.SQL("GRANT USAGE ON SCHEMA public TO {}").format(name))
    connection.execute(text(f"SET LOCAL ROLE {OWNER}"))
    _execute(connection, sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {}").format(name))
    for table, rights in RIGHTS[role].items():
        granted = sql.SQL(", ".join(rights))
        _execute(connection, sql.SQL("GRANT {} ON {} TO {}").format(granted, sql.Identifier(table), name))
    for sequence in SEQUENCES.get(role, ()):
        _execute(connection, sql.SQL("GRANT USAGE ON SEQUENCE {} TO {}").format(sql.Identifier(sequence), name))
    if role == "keeper":
        _execute(connection, sql.SQL("GRANT EXECUTE ON FUNCTION penstock_partition(bigint) TO {}").format(name))
    connection.execute(text("RESET ROLE"))
    if role == "keeper":  # COPY goes into a temporary table
        _execute(connection, sql.SQL("GRANT TEMPORARY ON DATABASE {} TO {}").format(database, name))


def _has_role(connection: Connection, name: str) -> bool:
    return bool(connection.execute(text("SELECT true FROM pg_roles WHERE rolname = :name"), {"name": name}).scalar())


def _database(connection: Connection) -> sql.Identifier:
    return sql.Identifier(connection.execute(text("SELECT current_database()")).scalar_one())


def _execute(connection: Connection, statement: sql.Composed) -> None:
    """Run what names things: names cannot be bound, so they are quoted by the driver."""
    driver = connection.connection.driver_connection
    assert driver is not None
    connection.exec_driver_sql(statement.as_string(driver).replace("%", "%%"))
