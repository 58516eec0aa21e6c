"""Noticing that another process changed keys or definitions, so that a revoked key is refused within two seconds.

SQLite tells nobody of a change, so the version is asked for: one row, twice a second. (``PRAGMA data_version`` would
not do: it changes with each group that the service itself commits.) PostgreSQL is asked alike: a notice can be lost
with its connection, and whoever must not miss one has to ask all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sqlalchemy.exc import DBAPIError

from penstock.errors import StoreUnavailable

EVERY_S = 0.5

_log = logging.getLogger(__name__)


async def watch(
    look: Callable[[], int],
    changed: Callable[[int], Awaitable[None]],
    *,
    known: int,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Call ``changed`` with each new version of keys and definitions, until cancelled.

    Args:
        look: Reads the version; called in a thread, since it waits for the database.
        known: The version that the caller has: the one before it read the rest.
        changed: Reads anew and defines. If a store is away, it is called again at the next look.
        pause: Waits for so many seconds.
    """
    while True:
        await pause(EVERY_S)
        try:
            version = await asyncio.to_thread(look)
            if version != known:
                await changed(version)
                known = version
        except (DBAPIError, StoreUnavailable) as error:
            reason = error.message if isinstance(error, StoreUnavailable) else str(error.orig)
            _log.warning("changes of keys and definitions wait", extra={"error": reason})
