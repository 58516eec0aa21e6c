"""Noticing that another process changed keys, so that a revoked key is refused within a second.

SQLite tells nobody of a change, so the version is asked for: one row, once a second. (``PRAGMA data_version`` would not
do: it changes with each group that the service itself commits.)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sqlalchemy.exc import DBAPIError

from penstock.adapters.sql.keys import Keys
from penstock.errors import StoreUnavailable

EVERY_S = 1.0

_log = logging.getLogger(__name__)


async def watch(
    keys: Keys,
    changed: Callable[[int], Awaitable[None]],
    *,
    known: int,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Call ``changed`` with each new version of the keys, until cancelled.

    Args:
        known: The version that the caller has: the one before it read the keys.
        changed: Reads the keys anew and defines. If it raises, the watch ends with its error.
        pause: Waits for so many seconds.
    """
    while True:
        await pause(EVERY_S)
        try:
            version = await asyncio.to_thread(keys.version)
        except (DBAPIError, StoreUnavailable) as error:
            reason = error.message if isinstance(error, StoreUnavailable) else str(error.orig)
            _log.warning("cannot see whether keys changed", extra={"error": reason})
            continue
        if version != known:
            await changed(version)
            known = version
