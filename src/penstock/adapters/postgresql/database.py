"""One PostgreSQL database: reached with bounds on every wait, migrated by one process at a time.

What reads and writes it is ``penstock.adapters.sql``, the same code as for SQLite. A connection that is lost becomes
``StoreUnavailable`` here, once, so that no caller knows the driver's errors.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import URL, Engine, ExceptionContext, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError

from penstock.adapters.sql.database import revision, to_json, upgrade
from penstock.adapters.sql.migrations import revisions
from penstock.errors import StoreUnavailable

CONNECT_S = 5
SILENT_MS = 15_000
CONNECTIONS_MAX = 10
LOCK = 7_364_796_111  # of `migrate` and `prepare`, in pg_locks: any number that nobody else uses


def open_engine(
    url: str,
    *,
    username: str | None = None,
    password: str | None = None,
    ca: str | None = None,
    application: str = "penstock",
    connections_max: int = CONNECTIONS_MAX,
) -> Engine:
    """An engine on the database that ``url`` names; nothing is connected until the first statement.

    Args:
        url: ``postgresql://host:port/database``; libpq's parameters may follow a ``?``.
        username: Account; that of the URL if None. ``password`` alike.
        ca: Path of the certificates (PEM) that vouch for the server. With it the connection is encrypted and the
            server's name is checked; without it the URL's ``sslmode`` decides.
        application: What ``pg_stat_activity`` shows.
    """
    given = make_url(url)
    target = given.set(
        drivername="postgresql+psycopg",
        username=username or given.username,
        password=password or given.password,
    )
    tls = {"sslmode": "verify-full", "sslrootcert": ca} if ca else {}
    engine = create_engine(
        target,
        json_serializer=to_json,
        json_deserializer=msgspec.json.decode,
        pool_size=connections_max,
        max_overflow=0,
        pool_timeout=CONNECT_S,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": CONNECT_S,
            "tcp_user_timeout": SILENT_MS,
            "application_name": application,
            **tls,
        },
    )
    event.listen(engine, "handle_error", _translated)
    return engine


def migrate(engine: Engine) -> None:
    """Bring the database to this code's version; others that try at the same time wait.

    Raises:
        StoreUnavailable: It is newer than this code, cannot be reached, or the account may not do this.
    """
    try:
        with engine.begin() as connection:
            if revision(connection) == revisions()[-1]:
                return
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            upgrade(connection)
    except DBAPIError as error:
        raise StoreUnavailable(
            f"cannot migrate the database {named(engine.url)}: {error.orig}; "
            "run `penstock setup` with the account that owns it"
        ) from error


def named(url: URL) -> str:
    """The database's name and place for a message, without any secret."""
    return f"{url.database} at {url.host}:{url.port or 5432}"


def _translated(context: ExceptionContext) -> None:
    error: Any = context.sqlalchemy_exception
    if context.engine is None or context.is_pre_ping or not isinstance(error, OperationalError):
        return
    if context.connection is None or context.is_disconnect:
        reason = " ".join(str(context.original_exception).split())
        raise StoreUnavailable(
            f"PostgreSQL does not answer, database {named(context.engine.url)}: {reason}; "
            "check that it runs, and stores.postgresql"
        ) from context.original_exception
