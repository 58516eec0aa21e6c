"""One keeper active, any number standing by: an advisory lock decides who, a fence makes sure of it.

::

    standing by --lock taken, fence raised--> active --connection lost, or a higher fence seen--> standing by

The lock lives as long as its connection. A process that hangs keeps its connection, so the server ends one that was
silent for ``lease_s``, and the next keeper takes over. The one that hung does not know; but each of its transactions
begins by reading the fence, finds a higher number, and writes nothing. While a transaction runs it holds the fence's
row, so that nobody can raise it between the check and the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, select, text, update
from sqlalchemy.exc import DBAPIError

from penstock.adapters.sql.keeping_tables import keeper
from penstock.errors import Deposed, StoreUnavailable

LOCK = 7_364_796_112  # in pg_locks: any number that nobody else uses
_row = keeper.c


def session_options(lease_s: float) -> str:
    """Settings of a keeper's sessions: a silent one is ended by the server, and a silent transaction too."""
    lease_ms = round(lease_s * 1000)
    return f"-c idle_in_transaction_session_timeout={lease_ms} -c idle_session_timeout={lease_ms}"


class Leadership:
    """This process's claim to be the one keeper. Its methods wait for the database.

    Args:
        engine: Of a single connection, whose sessions have ``session_options``: the lock lives in it.
        process: Who this is, for people.
        now_ms: The clock, Unix milliseconds.
    """

    def __init__(self, engine: Engine, *, process: str, now_ms: Callable[[], int]) -> None:
        self._engine = engine
        self._process = process
        self._now_ms = now_ms
        self._connection: Connection | None = None
        self._fence = 0

    @property
    def fence(self) -> int:
        """The number under which this keeper writes; 0 while it stands by."""
        return self._fence

    def take(self) -> bool:
        """Become the active keeper, if there is none.

        Raises:
            StoreUnavailable: The database cannot be reached.
        """
        self.leave()
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._connection = connection
        if not connection.execute(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": LOCK}).scalar():
            self.leave()
            return False
        raised = update(keeper).values(fence=_row.fence + 1, process=self._process, since_ms=self._now_ms())
        self._fence = connection.execute(raised.returning(_row.fence)).scalar_one()
        return True

    def renew(self) -> None:
        """Keep the lock's connection from falling silent.

        Raises:
            Deposed: It is gone, and the lock with it.
        """
        if self._connection is None:
            raise Deposed("this keeper stands by")
        try:
            self._connection.execute(text("SELECT 1"))
        except (DBAPIError, StoreUnavailable) as error:
            self.leave()
            raise Deposed("the connection with the keeper's lock was lost; another keeper may be active") from error

    def leave(self) -> None:
        """Stand by; the lock is free at once."""
        connection, self._connection, self._fence = self._connection, None, 0
        if connection is not None:
            if not connection.invalidated:
                connection.detach()  # so that closing it ends the session, and with it the lock
            connection.close()


@contextmanager
def fenced(engine: Engine, fence: int) -> Iterator[Connection]:
    """A transaction of the keeper that has ``fence``; nobody can take over until it has ended.

    Raises:
        Deposed: Another keeper took over; nothing is written.
    """
    with engine.begin() as connection:
        current = connection.execute(select(_row.fence).with_for_update(read=True)).scalar_one()
        if current != fence:
            raise Deposed(f"keeper {current} took over from keeper {fence}; nothing was written")
        yield connection
