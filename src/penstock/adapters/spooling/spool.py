"""Keeps what the quota store did not acknowledge in a file, and applies it until the store has it.

::

    keep -> written and synced -> (applied | still away: again) -> forgotten

A settle that the store no longer knows is posted by force, unless the ledger has it (``lanes.posting``).

An end is on the disk before the answer to its client ends, so a settle survives this process and this machine's loss
of power. Applying one twice is harmless: ends are idempotent. The file is emptied when nothing is left in it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import msgspec

from penstock.adapters.spooling.disk import SYNCED, WRITTEN, Disk
from penstock.errors import StoreUnavailable
from penstock.lanes.settling import Ended, apply_ending
from penstock.ports import QuotaStore
from penstock.quota.events import Usage
from penstock.quota.operations import Done, Duplicate, PostAnswer, Reserve, Settle, Settled, Unknown, Void

log = logging.getLogger("penstock.adapters.spooling")

RETRY_FIRST_S: Final = 0.1
RETRY_MOST_S: Final = 5.0
APPLIED: Final = "spool-applied"  # a point at which tests kill it: the store has it, and so has the file still
CRASH_POINTS: Final = (WRITTEN, SYNCED, APPLIED)


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file: exactly one of ``settle`` and ``void``."""

    reserve: Reserve
    settle: Settle | None = None
    void: Void | None = None

    @property
    def ending(self) -> Settle | Void:
        """What is to be applied."""
        ending = self.settle or self.void
        assert ending is not None, "one of the two is given"
        return ending


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Kept).decode


class FileSpool:
    """``penstock.ports.Spool`` on a disk.

    Args:
        disk: Lines in it from an earlier run are applied first.
        store: Where ends belong.
        post: Charges a settle of a reservation that the store does not know; None: it cannot be told yet.
        reached: Called with ``APPLIED``.
    """

    def __init__(
        self,
        disk: Disk,
        store: QuotaStore,
        *,
        post: Callable[[Reserve, Usage], Awaitable[PostAnswer | Done | None]],
        reached: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._disk = disk
        self._store = store
        self._post = post
        self._reached = reached
        self._kept: dict[str, Kept] = {}
        self._unwritten: list[bytes] = []
        self._writing: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._applying: asyncio.Task[None] | None = None
        self._told: set[str] = set()  # the waiting ones that the log has named

    @property
    def waiting(self) -> int:
        """Ends that the store has not acknowledged."""
        return len(self._kept)

    async def start(self) -> None:
        """Read what an earlier run left, and begin to apply.

        Raises:
            StoreUnavailable: The file cannot be opened.
        """
        try:
            self._read(await self._disk.open())
        except OSError as error:
            raise StoreUnavailable(f"{self._disk}: {error.strerror}; check the data directory's owner") from error
        if self._kept:
            log.warning("ends of reservations from an earlier run", extra={"count": len(self._kept)})
            self._arrived.set()
        self._applying = asyncio.create_task(self._apply_all(), name="spool")

    async def close(self) -> None:
        """Stop applying; what the store does not have stays in the file for the next start."""
        if self._applying is not None:
            self._applying.cancel()
            with suppress(asyncio.CancelledError):
                await self._applying
        if self._writing is not None:
            await self._writing
        self._disk.close()
        if self._kept:
            log.warning("ends of reservations wait in the spool", extra={"count": len(self._kept)})

    async def keep(self, ending: Settle | Void, reserve: Reserve) -> None:
        """See ``penstock.ports.Spool``: on the disk once this returns.

        Raises:
            OSError: The disk refused; the end is applied as long as this process lives.
        """
        kept = (
            Kept(reserve=reserve, settle=ending) if isinstance(ending, Settle) else Kept(reserve=reserve, void=ending)
        )
        self._kept[ending.reservation] = kept
        self._unwritten.append(_encode(kept) + b"\n")
        self._arrived.set()
        while self._writing is not None and not self._writing.done():
            await asyncio.shield(self._writing)  # the next write takes all that gathered meanwhile
        if self._unwritten:
            lines, self._unwritten = self._unwritten, []
            self._writing = asyncio.ensure_future(self._disk.append(b"".join(lines)))
        if self._writing is not None:
            await asyncio.shield(self._writing)

    def _read(self, lines: bytes) -> None:
        for line in lines.splitlines():
            try:
                kept = _decode(line)
            except msgspec.DecodeError:
                log.warning("a torn line in the spool", extra={"bytes": len(line)})  # never acknowledged to anybody
                continue
            self._kept[kept.ending.reservation] = kept

    async def _apply_all(self) -> None:
        delay_s = RETRY_FIRST_S
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            for kept in list(self._kept.values()):
                if await self._apply(kept):
                    self._reached(APPLIED)
                    self._kept.pop(kept.ending.reservation, None)
            if not self._kept:
                delay_s = RETRY_FIRST_S
                self._empty()
                continue
            await asyncio.sleep(delay_s)
            delay_s = min(RETRY_MOST_S, delay_s * 2)
            self._arrived.set()

    async def _apply(self, kept: Kept) -> bool:
        """Whether the store has it now, or never will."""
        ending = kept.ending
        answer: Ended | PostAnswer | None
        try:
            answer = await apply_ending(self._store, ending)
            if isinstance(answer, Unknown) and isinstance(ending, Settle):
                answer = await self._post(kept.reserve, ending.usage)
        except StoreUnavailable:
            return False
        if isinstance(answer, Settled | Done | Duplicate):
            return True
        if isinstance(answer, Unknown):
            return True  # a void: nothing is held and nothing is charged
        if ending.reservation not in self._told:
            self._told.add(ending.reservation)
            why = "its event is on its way to the ledger" if answer is None else str(answer)
            log.warning("an end waits", extra={"reservation": ending.reservation, "why": why})
        return False

    def _empty(self) -> None:
        """Nothing is waiting: the file begins anew, unless something arrives meanwhile."""
        self._told.clear()
        if not self._kept and not self._unwritten and (self._writing is None or self._writing.done()):
            self._disk.empty()
