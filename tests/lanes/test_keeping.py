"""The keeper's pace: events gather between two transactions, unless more are waiting than one takes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.lanes.keeping import DRAIN_EVERY_S, READ_MAX, Entry, Keeper
from penstock.ports import Kept
from tests.lanes.stage import ManualClock, ModelStore

ENTRY: Any = SimpleNamespace(id="1-1", event=SimpleNamespace(occurred_at_ms=1))


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

    async def drain(self, batches: Mapping[int, Sequence[Any]]) -> int:
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
