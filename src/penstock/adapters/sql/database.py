"""One SQLite database: opened with the settings that durability needs, migrated, and owned by one service at most.

WAL lets other processes read, and write keys, while the service runs; ``synchronous=FULL`` makes a commit survive
a loss of power, not only a kill: one fsync for each group of settles, which a group shares.

The service holds a lock on ``<database>.lock`` for its life. The kernel frees it with the process, however it ends,
so that no lock is ever left behind.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError

from penstock.adapters.sql.migrations import revisions
from penstock.errors import StoreUnavailable

BUSY_MS = 5_000
_SCRUBS_MAX = 5
WRITE = {"penstock_begin": "BEGIN IMMEDIATE"}


def open_engine(path: Path, *, busy_ms: int = BUSY_MS) -> Engine:
    """An engine on the SQLite file ``path``; nothing is read or written until the first connection.

    Args:
        busy_ms: How long a statement waits for another process's write before it fails.
    """
    engine = create_engine(f"sqlite:///{path}", json_serializer=to_json, json_deserializer=msgspec.json.decode)

    @event.listens_for(engine, "connect")
    def _connected(driver: Any, _record: Any) -> None:
        driver.isolation_level = None  # the driver would begin by itself, and only before writes
        cursor = driver.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {busy_ms:d}")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten, not only unlinked
        cursor.close()

    @event.listens_for(engine, "begin")
    def _began(connection: Connection) -> None:
        options = connection.get_execution_options()
        connection.exec_driver_sql(options.get("penstock_begin", "BEGIN"))

    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes; SQLite's takes its lock at its begin: it cannot fail half-way for want of it."""
    with engine.connect().execution_options(**WRITE) as connection, connection.begin():
        yield connection


@contextmanager
def translated() -> Iterator[None]:
    """Turn a driver's error into ours.

    Raises:
        StoreUnavailable: The database refuses.
    """
    try:
        yield
    except DBAPIError as error:
        raise StoreUnavailable(f"the database does not work: {error.orig}; free its disk, or repair it") from error


def scrub(engine: Engine) -> None:
    """Leave nothing of deleted rows in the files: the database overwrites them, the log of changes is emptied here.

    Raises:
        StoreUnavailable: Somebody reads without end, so the log cannot be emptied.
    """
    for _ in range(_SCRUBS_MAX):
        driver: Any = engine.raw_connection()
        try:  # outside a transaction; it waits for readers as long as a statement waits for a writer
            (is_busy, *_rest) = driver.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            driver.close()
        if not is_busy:
            return
    raise StoreUnavailable("the database is read without end, so its log cannot be emptied; try again in a while")


def migrate(engine: Engine) -> None:
    """Bring the database to this code's version; quick when it is there already.

    Raises:
        StoreUnavailable: The database is newer than this code, or cannot be opened.
    """
    try:
        with engine.connect() as connection:
            current = revision(connection)
        if current != revisions()[-1]:
            with _locked(Path(f"{engine.url.database}.migrate.lock"), fcntl.LOCK_EX):
                _upgrade(engine)
    except DBAPIError as error:
        raise StoreUnavailable(
            f"cannot open the database {engine.url.database}: {error.orig}; "
            "check that the path is a SQLite database which this user may write, and that its disk has room"
        ) from error


def revision(connection: Connection) -> str | None:
    """The version that a database of either kind has; None of one that was never migrated.

    Raises:
        StoreUnavailable: It is newer than this code.
    """
    if not inspect(connection).has_table("alembic_version"):
        return None
    current: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if current is not None and current not in revisions():
        raise StoreUnavailable(
            f"the database {connection.engine.url.database} has version {current}, newer than this penstock, "
            f"which knows {revisions()[-1]}; run the penstock that wrote it, or a newer one"
        )
    return current


def upgrade(connection: Connection) -> None:
    """Run the migrations that are missing, in the caller's transaction, which nobody else may hold at once."""
    from alembic import command  # a tenth of a second to import, and needed once in a database's life
    from alembic.config import Config

    if revision(connection) == revisions()[-1]:
        return
    config = Config()
    config.set_main_option("script_location", "penstock.adapters.sql:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _upgrade(engine: Engine) -> None:
    driver = engine.raw_connection()
    try:  # outside a transaction, and remembered by the file; two processes at once would lock each other out
        driver.cursor().execute("PRAGMA journal_mode = WAL")
    finally:
        driver.close()
    with writing(engine) as connection:
        upgrade(connection)


@contextmanager
def sole_service(path: Path) -> Iterator[None]:
    """Hold the lock that makes this process the one service on the database ``path``.

    Raises:
        StoreUnavailable: Another process holds it.
    """
    try:
        with _locked(path.with_name(path.name + ".lock"), fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield
    except _Held as error:
        raise StoreUnavailable(
            f"another penstock (process {error}) already serves the database {path}: "
            "two would each admit the whole of every limit; "
            "stop it, or give this one a directory of its own with --data"
        ) from error


class _Held(Exception):
    """Another process holds the lock; the message is its number."""


@contextmanager
def _locked(lock: Path, how: int) -> Iterator[None]:
    """Hold a lock file, with this process's number in it."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError as error:
            raise _Held(os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def to_json(value: Any) -> str:
    """JSON as the databases are given it."""
    return msgspec.json.encode(value).decode()
