"""Keeps the leases of requests in flight: one task for all of them, not one for each.

A touch renews a reservation's lease and records how far it has come, so that a process that dies is charged for
all but its last seconds. Bytes that flow are recorded every 5 s; a request that waits is touched every 20 s,
a third of its lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from penstock.errors import StoreUnavailable
from penstock.ports import Clock, QuotaStore
from penstock.quota.operations import Cancelled, Touch

log = logging.getLogger("penstock.lanes")

TOUCH_EVERY_S: Final = 5.0
WAITING_TOUCH_EVERY_S: Final = 20.0


class Lease(msgspec.Struct, kw_only=True, eq=False):
    """One request in flight.

    Args:
        progress: Prompt tokens if somebody counted them, else 0, and completion tokens so far.
        cancel: Called when somebody cancelled it.
    """

    organisation: str
    reservation: str
    progress: Callable[[], tuple[int, int]]
    cancel: Callable[[], None]
    touched_s: float
    recorded: tuple[int, int] = (0, 0)


class Leases:
    """All leases of this process."""

    def __init__(self, store: QuotaStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._held: dict[Lease, None] = {}  # in order, so that a simulation repeats itself
        self._task: asyncio.Task[None] | None = None

    def hold(self, lease: Lease) -> None:
        """Renew it from now on."""
        self._held[lease] = None

    def release(self, lease: Lease) -> None:
        """It ended."""
        self._held.pop(lease, None)

    @property
    def held(self) -> int:
        """How many requests are in flight."""
        return len(self._held)

    async def start(self) -> None:
        """Touch every 5 s, until ``close``."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop touching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def touch_due(self) -> None:
        """Touch once what has moved, or has waited for long."""
        now_s = self._clock.monotonic_s()
        due = [
            lease
            for lease in self._held
            if lease.progress() != lease.recorded or now_s - lease.touched_s >= WAITING_TOUCH_EVERY_S
        ]
        await asyncio.gather(*(self._touch(lease, now_s) for lease in due))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TOUCH_EVERY_S)
            await self.touch_due()

    async def _touch(self, lease: Lease, now_s: float) -> None:
        prompt, completion = progress = lease.progress()
        touch = Touch(
            organisation=lease.organisation,
            caller_now_ms=self._clock.now_ms(),
            reservation=lease.reservation,
            prompt=prompt,
            completion=completion,
        )
        try:
            answer = await self._store.apply(touch)
        except StoreUnavailable as error:  # the next round tries again
            log.warning("a lease was not renewed", extra={"reservation": lease.reservation, "why": error.message})
            return
        lease.touched_s = now_s
        lease.recorded = progress
        if isinstance(answer, Cancelled) and lease in self._held:
            lease.cancel()
