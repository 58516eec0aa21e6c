"""The keeper's pace: events gather between two transactions, unless more are waiting than one takes.

And its order: what was read of a store that then loses its state is in the ledger before a rebuild adds that up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.errors import Deposed
from penstock.lanes.draining import Entry
from penstock.lanes.keeping import DRAIN_EVERY_S, READ_MAX, TAKE_EVERY_S, Keeper
from penstock.ports import Kept
from penstock.quota import Definitions, EventKind
from tests.lanes.stage import ManualClock, ModelStore

ENTRY: Any = SimpleNamespace(id="1-1", event=SimpleNamespace(occurred_at_ms=1, kind=EventKind.POSTED))


class Store:
    """Books, an outbox of prepared batches and a rebuilder with nothing to do, in one."""

    def __init__(self, *batches: int) -> None:
        self.batches = list(batches)
        self.done: list[str] = []

    async def take(self) -> bool:
        return True

    async def leave(self) -> None:
        return

    def begin(self) -> None:
        return

    async def read(self, *, count_max: int) -> Mapping[int, Sequence[Entry]]:
        assert count_max == READ_MAX
        count = self.batches.pop(0) if self.batches else 0
        return {7: [ENTRY] * count} if count else {}

    async def drain(self, batches: Mapping[int, Sequence[Any]], *, without: Collection[Any]) -> int:
        assert not without
        self.done.append(f"drain {len(batches[7])}")
        return len(batches[7])

    async def trim(self, _through: Mapping[int, str]) -> int:
        return 0

    async def of_reservation(self, _organisation: str, _reservation: str) -> list[Any]:
        raise AssertionError("nothing is posted")

    may_have = of_reservation

    async def unsettled(self, **_bounds: int) -> list[Any]:
        await asyncio.Event().wait()
        return []


class LosingStore(Store):
    """It is flushed while its first batch is being written; that takes until a rebuild has asked for all to be."""

    def __init__(self) -> None:
        super().__init__(3)
        self.is_read = asyncio.Event()
        self.is_rebuilding = asyncio.Event()

    async def renew(self) -> None:
        return

    async def drain(self, batches: Mapping[int, Sequence[Any]], *, without: Collection[Any]) -> int:
        self.is_read.set()
        await self.is_rebuilding.wait()
        for _ in range(100):  # as long as a rebuild that does not wait would need
            await asyncio.sleep(0)
        return await super().drain(batches, without=without)

    async def definitions(self) -> tuple[int, Mapping[str, Definitions]]:
        await self.is_read.wait()
        return 1, {"acme": Definitions()}

    async def tend(self, *_: Any, is_lost: bool, drain: Callable[[], Awaitable[None]]) -> None:
        assert is_lost
        self.is_rebuilding.set()
        await drain()
        self.done.append("added up")
        raise Deposed("seen enough")


def test_a_batch_read_before_a_loss_is_written_before_a_rebuild_adds_the_ledger_up() -> None:
    async def run() -> list[str]:
        store = LosingStore()

        async def pause(seconds: float) -> None:
            if seconds == TAKE_EVERY_S:
                raise RuntimeError("the keeper is over")
            await asyncio.Event().wait()

        keeper = Keeper(
            store, store, ModelStore(ManualClock()), ManualClock(), store.definitions, store,  # type: ignore[arg-type]
            kept=Kept(1, 1), lease_s=10, pause=pause,
        )  # fmt: skip
        with pytest.raises(RuntimeError, match="is over"):
            await asyncio.wait_for(keeper.run(), timeout=60)
        return store.done

    assert asyncio.run(run()) == ["drain 3", "added up"]


def test_a_full_batch_is_followed_at_once_and_any_other_after_a_pause() -> None:
    store = Store(READ_MAX, 3, 0, 5)

    async def pause(seconds: float) -> None:
        if seconds != DRAIN_EVERY_S:
            await asyncio.Event().wait()
        store.done.append("pause")
        if not store.batches:
            raise RuntimeError("seen enough")

    async def definitions() -> Any:
        return await asyncio.Event().wait()

    keeper = Keeper(
        store, store, ModelStore(ManualClock()), ManualClock(), definitions, store,  # type: ignore[arg-type]
        kept=Kept(1, 1), lease_s=10, pause=pause,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="seen enough"):
        asyncio.run(keeper.run())
    assert store.done == [f"drain {READ_MAX}", "drain 3", "pause", "pause", "drain 5", "pause"]
