"""One PostgreSQL database, reached with bounds on every wait.

What reads and writes it is ``penstock.adapters.sql``, the same code as for SQLite. A connection that is lost becomes
``StoreUnavailable`` here, once, so that no caller knows the driver's errors. So does waiting in vain for one that
others use, behind a lock for example, and a statement that the server cannot run as it is now: it has no space left, or
it is read only because it is a standby, or was one and is not promoted yet.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import URL, Engine, ExceptionContext, PoolProxiedConnection, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from penstock.adapters.sql.database import revision, to_json
from penstock.adapters.sql.migrations import revisions
from penstock.adapters.tls import Tls
from penstock.errors import StoreUnavailable

CONNECT_S = 5
SILENT_MS = 15_000
CONNECTIONS_MAX = 10
_READ_ONLY = "25006"
_NOT_NOW = (_READ_ONLY, "40", "53", "57", "58")
"""SQLSTATE, or its class: the same statement may succeed later. https://www.postgresql.org/docs/15/errcodes-appendix.html"""


def open_engine(
    url: str,
    *,
    username: str | None = None,
    password: str | None = None,
    tls: Tls | None = None,
    application: str = "penstock",
    options: str = "",
    connections_max: int = CONNECTIONS_MAX,
) -> Engine:
    """An engine on the database that ``url`` names; nothing is connected until the first statement.

    Args:
        url: ``postgresql://host:port/database``; libpq's parameters may follow a ``?``.
        username: Account; that of the URL if None. ``password`` alike.
        tls: With a ``ca`` the connection is encrypted and the server's name is checked; without it the URL's
            ``sslmode`` decides. With a ``server_name`` the URL's host must be an IP address.
        application: What ``pg_stat_activity`` shows.
        options: Settings of each session, as in ``-c idle_session_timeout=10s``.
    """
    given = make_url(url)
    target = given.set(
        drivername="postgresql+psycopg",
        username=username or given.username,
        password=password or given.password,
    )
    if tls is not None and tls.server_name is not None:  # libpq checks the name of `host`, and goes to `hostaddr`
        target = target.set(host=tls.server_name).update_query_dict({"hostaddr": given.host or ""})
    settings = {
        "connect_timeout": str(CONNECT_S),
        "tcp_user_timeout": str(SILENT_MS),
        "application_name": application,
        **_secured(tls),
        **({"options": options} if options else {}),
    }
    return _engine(target.update_query_dict(settings), connections_max=connections_max)


def _secured(tls: Tls | None) -> dict[str, str]:
    if tls is None or tls.ca is None:
        return {}
    own = {"sslcert": str(tls.certificate), "sslkey": str(tls.key)} if tls.certificate is not None else {}
    return {"sslmode": "verify-full", "sslrootcert": str(tls.ca), **own}


def elsewhere(engine: Engine, database: str) -> Engine:
    """An engine on another database of the same server, by the same account."""
    return _engine(engine.url.set(database=database), connections_max=1)


def check_prepared(engine: Engine) -> None:
    """See that the database is what this code needs, before anything is served from it.

    Raises:
        StoreUnavailable: It is not there, older or newer, or cannot be reached.
    """
    with engine.connect() as connection:
        found = revision(connection)
    if found != revisions()[-1]:
        raise StoreUnavailable(
            f"the database {named(engine.url)} has version {found or 'none'}, and this penstock needs "
            f"{revisions()[-1]}; run `penstock setup`"
        )


def _engine(url: URL, *, connections_max: int) -> Engine:
    engine = create_engine(
        url,
        json_serializer=to_json,
        json_deserializer=msgspec.json.decode,
        poolclass=_Pool,
        pool_size=connections_max,
        max_overflow=0,
        pool_timeout=CONNECT_S,
        pool_pre_ping=True,
    )
    event.listen(engine, "handle_error", _translated)
    return engine


class _Pool(QueuePool):
    """Waits for a connection no longer than it says."""

    def connect(self) -> PoolProxiedConnection:
        try:
            return super().connect()
        except PoolTimeout as error:
            raise StoreUnavailable(
                f"no connection to PostgreSQL was free within {CONNECT_S} s, and all {self.size()} are in use: "
                "something waits there for long; pg_stat_activity shows for what"
            ) from error


def named(url: URL) -> str:
    """The database's name and place for a message, without any secret."""
    return f"{url.database} at {url.host}:{url.port or 5432}"


def _translated(context: ExceptionContext) -> None:
    error: Any = context.sqlalchemy_exception
    if context.engine is None or context.is_pre_ping:
        return
    state = getattr(context.original_exception, "sqlstate", None) or ""
    reason = " ".join(str(context.original_exception).split())
    is_out_of_reach = context.connection is None and isinstance(error, OperationalError)
    if is_out_of_reach or context.is_disconnect:  # whatever its class: a session ended for idling is an internal error
        what, fix = "does not answer", "check that it runs, and stores.postgresql"
        if "valid client certificate" in reason:
            fix = "give `certificate` and `key` of stores.postgresql, of an authority that the server trusts"
    elif state.startswith(_NOT_NOW):
        what, fix = "cannot do this now", "its log says more"
        if state == _READ_ONLY:
            fix = "a standby is to be promoted first, or stores.postgresql is to name the primary"
    else:
        return
    raise StoreUnavailable(
        f"PostgreSQL {what}, database {named(context.engine.url)}: {reason}; {fix}"
    ) from context.original_exception
