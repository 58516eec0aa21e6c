"""An organisation without state begins, or is rebuilt from the ledger and waits a lease; nothing is admitted before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest

from penstock.errors import StoreUnavailable
from penstock.lanes.rebuilding import BEGINNINGS_MAX, Rebuilder
from penstock.quota import (
    Call,
    Define,
    Definitions,
    Done,
    Event,
    Inspect,
    Inspected,
    Kind,
    Limit,
    Metric,
    Organisation,
    Ready,
    Refused,
    restore,
)
from penstock.quota.state import REMEMBER_MS

A = TypeVar("A")
T0_MS = 1_741_000_000_000
DAY = Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.WINDOW, period_ms=86_400_000, cap=1_000)
RATE = Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.RATE, period_ms=60_000, cap=600)
DEFINITIONS = Definitions(limits=(DAY, RATE))
TODAY = T0_MS // 86_400_000


class Stage:
    """A quota store that is the model, a ledger of a few numbers, and a clock that stands until it is moved."""

    def __init__(self, *, epoch: int = 0, newest_ms: int = 0) -> None:
        self.now_s = 0.0
        self.epochs = {"acme": epoch}
        self.newest = newest_ms
        self.drains = 0
        self.reopened_since_ms = 0
        self.unanswered: type | None = None
        self.restores = 0
        self.meanwhile: list[Callable[[], None]] = []  # before each of the next marks and epochs
        self.organisation = Organisation("acme")
        self.rebuilder = Rebuilder(self, self, self, self)

    def now_ms(self) -> int:
        return T0_MS + int(self.now_s * 1000)

    def monotonic_s(self) -> float:
        return self.now_s

    async def apply(self, call: Call[A]) -> A:
        answer = self.organisation.apply(call, time_ms=self.now_ms())
        if self.unanswered is type(call):
            self.unanswered = None
            raise StoreUnavailable("the answer is lost")
        return answer

    async def epoch(self, organisation: str) -> int:
        return self.epochs[organisation]

    async def keep_epoch(self, organisation: str, epoch: int) -> None:
        self.epochs[organisation] = epoch
        if self.meanwhile:
            self.meanwhile.pop(0)()

    async def newest_ms(self, organisation: str) -> int:
        return self.newest

    async def reopen_results(self, organisation: str, *, since_ms: int) -> int:
        self.reopened_since_ms = since_ms
        return 0

    async def window_sums(self, organisation: str, *, since_ms: int) -> dict[tuple[str, int], int]:
        assert since_ms <= TODAY * 86_400_000
        return {("acme/tokens/day", TODAY): 450}

    async def to_be_remembered(self, organisation: str, *, now_ms: int, remember_ms: int) -> list[Event]:
        return []

    async def restore(
        self,
        organisation: str,
        *,
        clock_ms: int,
        window_sums: dict[tuple[str, int], int],
        tombstones: Sequence[Event],
        jobs: Sequence[Event],
    ) -> str | Refused:
        assert self.organisation.version, "defined first"
        if self.organisation.marked:
            return Refused("the state is not lost")
        self.restores += 1
        restored = f"1 of restore {self.restores}"
        self.organisation = restore(
            organisation, version=1, definitions=DEFINITIONS, epoch=0, time_ms=clock_ms, window_sums=window_sums,
            tombstones=tombstones, restored=restored,
        )  # fmt: skip
        return restored

    async def restored(self, organisation: str) -> str | None:
        return self.organisation.restored or None

    async def forget(self, organisation: str) -> None:
        self.organisation = Organisation("acme")

    def flush(self) -> None:
        """Lost, and defined again at once by a service whose definitions changed."""
        self.organisation = Organisation("acme")
        define = Define(organisation="acme", caller_now_ms=self.now_ms(), version=1, definitions=DEFINITIONS)
        assert self.organisation.apply(define, time_ms=self.now_ms()) == Done()

    async def drain(self) -> None:
        self.drains += 1

    def tend(self, *, is_lost: bool = False) -> None:
        asyncio.run(self.rebuilder.tend("acme", 1, DEFINITIONS, is_lost=is_lost, drain=self.drain))

    def inspected(self) -> Any:
        return self.organisation.apply(Inspect(organisation="acme", caller_now_ms=self.now_ms()), time_ms=self.now_ms())

    def standing(self) -> dict[str, tuple[int, int]]:
        found = self.inspected()
        assert isinstance(found, Inspected)
        return {limit.limit: (limit.used, limit.available) for limit in found.limits}


def test_one_that_the_ledger_never_charged_begins_at_once_with_full_buckets() -> None:
    stage = Stage()
    stage.tend(is_lost=True)
    assert stage.inspected().epoch == stage.epochs["acme"] == 1
    assert stage.standing() == {"acme/tokens/day": (0, 1_000), "acme/tokens/minute": (0, 600)}
    assert not stage.rebuilder.under_way


def test_a_lost_one_has_the_ledgers_sums_and_empty_buckets_and_waits_a_lease_for_claims() -> None:
    stage = Stage(epoch=4, newest_ms=T0_MS - 5)
    stage.tend(is_lost=True)
    assert stage.drains == 1
    assert stage.inspected().epoch == 0
    assert stage.standing() == {"acme/tokens/day": (450, 550), "acme/tokens/minute": (0, 0)}
    stage.now_s = 59.9
    stage.tend()
    assert stage.inspected().epoch == 0
    assert stage.rebuilder.under_way == ("acme",)
    stage.now_s = 60.0
    stage.tend()
    assert stage.inspected().epoch == stage.epochs["acme"] == 5
    assert stage.drains == 2
    assert not stage.rebuilder.under_way


def test_results_of_late_are_settled_again_whose_end_the_ledger_does_not_have() -> None:
    stage = Stage(epoch=4, newest_ms=T0_MS - 5)
    stage.tend(is_lost=True)
    assert stage.reopened_since_ms == 0, "whoever settled one just before may note that now"
    stage.now_s = 60.0
    stage.tend()
    assert stage.reopened_since_ms == T0_MS + 60_000 - REMEMBER_MS


def test_a_rebuild_whose_marker_was_written_and_not_acknowledged_ends_all_the_same() -> None:
    stage = Stage(epoch=4, newest_ms=T0_MS)
    stage.unanswered = Ready
    with pytest.raises(StoreUnavailable):
        stage.tend(is_lost=True)
    stage.tend()
    stage.now_s = 60.0
    stage.tend()
    assert stage.inspected().epoch == 5


def test_a_rebuild_of_the_keeper_before_is_ended_though_the_first_look_at_it_was_not_answered() -> None:
    stage = Stage(epoch=4, newest_ms=T0_MS)
    stage.tend(is_lost=True)
    stage.rebuilder.begin()
    stage.unanswered = Inspect
    with pytest.raises(StoreUnavailable):
        stage.tend()
    stage.tend()
    stage.now_s = 60.0
    stage.tend()
    assert stage.inspected().epoch == 5


def test_one_with_an_epoch_but_no_rows_was_lost_too() -> None:
    stage = Stage(epoch=1)
    stage.tend(is_lost=True)
    assert stage.inspected().epoch == 0


def test_the_next_keeper_ends_a_rebuild_that_the_one_before_began() -> None:
    stage = Stage(epoch=4, newest_ms=T0_MS)
    stage.tend(is_lost=True)
    stage.rebuilder.begin()
    stage.now_s = 30.0
    stage.tend()
    stage.now_s = 89.9
    stage.tend()
    assert stage.inspected().epoch == 0
    stage.now_s = 90.0
    stage.tend()
    assert stage.inspected().epoch == 5


def test_an_epoch_that_the_database_lost_is_kept_again() -> None:
    stage = Stage()
    stage.tend(is_lost=True)
    stage.epochs["acme"] = 0
    stage.rebuilder.begin()
    stage.tend()
    assert stage.epochs["acme"] == 1


WHOLE = {"acme/tokens/day": (450, 550), "acme/tokens/minute": (0, 0)}


@pytest.mark.parametrize("times", [1, 2])
def test_lost_again_between_restore_and_marker_it_is_restored_again_before_it_is_marked(times: int) -> None:
    stage = Stage(epoch=4, newest_ms=T0_MS)
    stage.meanwhile = [stage.flush] * times
    stage.tend(is_lost=True)
    assert stage.restores == stage.drains == times + 1
    assert stage.inspected().epoch == 0
    assert stage.standing() == WHOLE
    assert stage.rebuilder.under_way == ("acme",)


def test_lost_again_just_before_its_epoch_it_is_rebuilt_from_the_start_and_waits_another_lease() -> None:
    stage = Stage(epoch=4, newest_ms=T0_MS)
    stage.tend(is_lost=True)
    stage.now_s = 60.0
    stage.meanwhile = [stage.flush]
    stage.tend()
    assert stage.inspected().epoch == 0
    assert stage.standing() == WHOLE
    stage.now_s = 119.9
    stage.tend()
    assert stage.inspected().epoch == 0
    stage.now_s = 120.0
    stage.tend()
    assert stage.inspected().epoch == stage.epochs["acme"]
    assert stage.standing()["acme/tokens/day"] == (450, 550)
    assert not stage.rebuilder.under_way


def test_what_a_deposed_keeper_restored_after_a_second_loss_is_forgotten_and_restored_again() -> None:
    """It had added up the ledger before the loss, and went on."""
    stage = Stage(epoch=4, newest_ms=T0_MS)
    stage.tend(is_lost=True)

    def lost_and_restored_by_another() -> None:
        stage.organisation = restore(
            "acme", version=1, definitions=DEFINITIONS, epoch=0, time_ms=stage.now_ms(), restored="1 of another"
        )
        mark = Ready(organisation="acme", caller_now_ms=stage.now_ms(), epoch=0, restored="1 of another")
        assert stage.organisation.apply(mark, time_ms=stage.now_ms()) == Done()

    stage.now_s = 60.0
    stage.meanwhile = [lost_and_restored_by_another]
    stage.tend()
    assert stage.standing() == WHOLE
    stage.now_s = 120.0
    stage.tend()
    assert stage.inspected().epoch == stage.epochs["acme"]
    assert stage.standing()["acme/tokens/day"] == (450, 550)


def test_one_that_another_keeper_made_ready_under_a_later_epoch_is_left_to_it() -> None:
    stage = Stage(epoch=4, newest_ms=T0_MS)
    stage.tend(is_lost=True)
    stage.now_s = 60.0
    stage.organisation.apply(Ready(organisation="acme", caller_now_ms=stage.now_ms(), epoch=9), time_ms=stage.now_ms())
    stage.tend()
    assert not stage.rebuilder.under_way
    stage.tend()
    assert stage.inspected().epoch == stage.epochs["acme"] == 9
    assert stage.restores == 1


def test_one_that_begins_is_not_ready_where_another_keeper_restores_it() -> None:
    stage = Stage()

    def restored_by_another() -> None:
        stage.organisation = restore(
            "acme", version=1, definitions=DEFINITIONS, epoch=0, time_ms=T0_MS, restored="1 of another"
        )

    stage.meanwhile = [restored_by_another]
    stage.tend(is_lost=True)
    assert stage.restores == 1, "it has an epoch now: the next attempt restores it"
    assert stage.inspected().epoch == 0
    assert stage.standing() == WHOLE


def test_a_store_that_is_emptied_again_and_again_is_left_for_a_second_and_says_so() -> None:
    stage = Stage(epoch=4, newest_ms=T0_MS)
    stage.meanwhile = [stage.flush] * BEGINNINGS_MAX
    with pytest.raises(StoreUnavailable, match="cannot be rebuilt"):
        stage.tend(is_lost=True)
    stage.tend(is_lost=True)
    assert stage.standing() == WHOLE


def test_a_marker_of_a_keeper_of_an_earlier_version_that_named_no_restore_ends_all_the_same() -> None:
    stage = Stage(epoch=4, newest_ms=T0_MS)
    stage.tend(is_lost=True)
    stage.organisation.restored = ""
    stage.rebuilder.begin()
    stage.tend()
    stage.now_s = 60.0
    stage.tend()
    assert stage.inspected().epoch == 5
