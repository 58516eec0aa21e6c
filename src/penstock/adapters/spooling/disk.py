"""The spool's file: lines that are on the disk once they are appended.

Apart from the spool, which decides what is kept and for how long; this knows what a disk does.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

WRITTEN: Final = "spool-written"  # points at which tests kill the process
SYNCED: Final = "spool-synced"


class Disk(Protocol):
    """Where a spool keeps its lines. Every method raises ``OSError`` if the disk refuses."""

    async def open(self) -> bytes:
        """Everything that an earlier run left; a torn line at its end is ended, so that the next one is whole."""
        ...

    async def append(self, lines: bytes) -> None:
        """They survive this process and a loss of power once this returns."""
        ...

    def empty(self) -> None:
        """Begin anew."""
        ...

    def close(self) -> None:
        """Done with it."""
        ...


class DiskFile:
    """A file that belongs to one process.

    Args:
        path: Made if it is not there.
        reached: Called with ``WRITTEN`` and ``SYNCED``.
    """

    def __init__(self, path: Path, *, reached: Callable[[str], None] = lambda _: None) -> None:
        self._path = path
        self._reached = reached
        self._descriptor = -1

    def __str__(self) -> str:
        return str(self._path)

    async def open(self) -> bytes:
        """See ``Disk``."""
        return await asyncio.to_thread(self._open)

    async def append(self, lines: bytes) -> None:
        """See ``Disk``."""
        await asyncio.to_thread(self._write, lines)

    def empty(self) -> None:
        """See ``Disk``."""
        os.ftruncate(self._descriptor, 0)

    def close(self) -> None:
        """See ``Disk``."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> bytes:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        found = self._path.read_bytes()
        if found and not found.endswith(b"\n"):
            self._write(b"\n")
        return found

    def _write(self, lines: bytes) -> None:
        written = 0
        while written < len(lines):
            written += os.write(self._descriptor, lines[written:])
        self._reached(WRITTEN)
        os.fdatasync(self._descriptor)
        self._reached(SYNCED)
