"""Notices of jobs that changed, as whoever stores a result sends them: ``pg_notify('penstock_jobs', id)``.

A connection of its own waits for them in a thread. While the database is away none arrive, and those who wait for a
job look for themselves once a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from threading import Event
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from penstock.errors import StoreUnavailable

CHANNEL = "penstock_jobs"
LOOK_S = 0.5  # how long the thread may take to see that it should end
RETRY_S = 1.0

_log = logging.getLogger(__name__)


async def notice(engine: Engine, tell: Callable[[str], None]) -> None:
    """Call ``tell`` on the event loop with the id of each job that changed, until cancelled."""
    loop = asyncio.get_running_loop()
    stopping = Event()
    listening = asyncio.create_task(
        asyncio.to_thread(_run, engine, lambda job: loop.call_soon_threadsafe(tell, job), stopping)
    )
    try:
        await asyncio.shield(listening)
    finally:
        stopping.set()
        await asyncio.wait([listening])


def _run(engine: Engine, tell: Callable[[str], object], stopping: Event) -> None:
    while not stopping.is_set():
        try:
            _listen(engine, tell, stopping)
        except (DBAPIError, StoreUnavailable) as error:
            _log.warning("no notices of jobs for now", extra={"why": str(error)})
            stopping.wait(RETRY_S)


def _listen(engine: Engine, tell: Callable[[str], object], stopping: Event) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"LISTEN {CHANNEL}"))
        driver: Any = connection.connection.driver_connection
        try:
            while not stopping.is_set():
                for notify in driver.notifies(timeout=LOOK_S):
                    tell(notify.payload)
        except engine.dialect.loaded_dbapi.OperationalError as error:
            raise StoreUnavailable(f"the connection that waits for notices was lost: {error}") from error
        finally:
            connection.detach()  # closed, not pooled: it would listen on in somebody else's hands
