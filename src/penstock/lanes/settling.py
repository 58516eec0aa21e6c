"""Ends reservations, and never gives an end up: what the store does not acknowledge goes to a spool.

Every end is idempotent, so it is simply applied again: after an interruption, or by the spool.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

from penstock.errors import StoreUnavailable
from penstock.ports import QuotaStore, Spool
from penstock.quota.operations import (
    Done,
    Duplicate,
    NotReady,
    Reserve,
    Settle,
    SettleAnswer,
    Settled,
    Unknown,
    Void,
    VoidAnswer,
)

log = logging.getLogger("penstock.lanes")

RETRY_FIRST_S: Final = 0.1
RETRY_MOST_S: Final = 5.0


Ended = SettleAnswer | VoidAnswer
_ENDED: Final = (Settled, Done, Duplicate)


async def apply_ending(store: QuotaStore, ending: Settle | Void) -> Ended:
    """Apply either kind of end. Raises like ``QuotaStore.apply``."""
    if isinstance(ending, Settle):  # the same call twice, since each kind has an answer of its own type
        return await store.apply(ending)
    return await store.apply(ending)


class Settling:
    """Settles and voids, for a caller that may be interrupted at any moment.

    Args:
        spool: Takes what the store did not acknowledge.
    """

    def __init__(self, store: QuotaStore, spool: Spool) -> None:
        self._store = store
        self._spool = spool
        self._under_way: set[asyncio.Task[Any]] = set()

    async def settle(self, settle: Settle, reserve: Reserve) -> int:
        """Post what was used; return the nano-dollars posted, 0 if the store has not said yet.

        Returns once the store or the spool has it. Cancelled meanwhile, it goes on by itself.
        """
        answer = await self._end(settle, reserve)
        return answer.cost_nanos if isinstance(answer, Settled) else 0

    async def void(self, void: Void, reserve: Reserve) -> None:
        """Charge nothing. As ``settle`` otherwise."""
        await self._end(void, reserve)

    def void_later(self, void: Void, reserve: Reserve) -> None:
        """The same, for a caller that must not wait for a store that is away."""
        self._go_on(self._end(void, reserve))

    async def close(self) -> None:
        """Wait until everything under way is with the store or the spool."""
        while self._under_way:
            await asyncio.gather(*self._under_way)

    async def _end(self, ending: Settle | Void, reserve: Reserve) -> Settled | Done | Duplicate | None:
        answer: Ended | None
        try:
            answer = await apply_ending(self._store, ending)
        except StoreUnavailable:
            answer = None
        except asyncio.CancelledError:
            self._go_on(self._end(ending, reserve))
            raise
        if isinstance(answer, _ENDED):
            return answer
        if answer is None or isinstance(answer, (NotReady, Unknown)):
            keeping = self._go_on(self._spool.keep(ending, reserve))
            await asyncio.shield(keeping)
        else:
            log.error("a settle was refused", extra={"reservation": ending.reservation, "why": answer.why})
        return None

    def _go_on(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task


class RetryInProcess:
    """A spool for a store that lives in this process and dies with it: what it forgets, the store forgets too.

    Each end is applied again, first after 0.1 s, then after twice as long, up to 5 s.
    """

    def __init__(self, store: QuotaStore) -> None:
        self._store = store
        self._retries: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """How many ends the store has not acknowledged."""
        return len(self._retries)

    async def keep(self, ending: Settle | Void, reserve: Reserve) -> None:
        """See ``penstock.ports.Spool``."""
        task = asyncio.get_running_loop().create_task(self._retry(ending))
        self._retries.add(task)
        task.add_done_callback(self._retries.discard)

    async def close(self) -> None:
        """Give the store 5 s more, then stop trying; what is lost is logged."""
        if self._retries:
            await asyncio.wait(self._retries, timeout=RETRY_MOST_S)
        if self._retries:
            log.error("ends of reservations are lost", extra={"count": len(self._retries)})
        for task in tuple(self._retries):
            task.cancel()
        await asyncio.gather(*self._retries, return_exceptions=True)

    async def _retry(self, ending: Settle | Void) -> None:
        delay_s = RETRY_FIRST_S
        while True:
            await asyncio.sleep(delay_s)
            delay_s = min(RETRY_MOST_S, delay_s * 2)
            try:
                answer = await apply_ending(self._store, ending)
            except StoreUnavailable:
                continue
            if isinstance(answer, NotReady):
                continue
            if not isinstance(answer, Settled | Done | Duplicate):
                log.error("an end was refused", extra={"reservation": ending.reservation, "why": str(answer)})
            return
