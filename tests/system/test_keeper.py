"""The keeper as a process, killed, frozen and doubled: each event is in the ledger once, and counters agree with it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.adapters.postgresql.crash_points import CRASH_POINTS
from tests.system.clusters import until
from tests.system.keepers import World

KILLED_S = 30.0

pytestmark = pytest.mark.slow


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Services that are prepared, and an empty ledger."""
    world = World(tmp_path)
    try:
        world.start()
        yield world
    finally:
        world.stop()


def test_a_keeper_killed_between_any_two_writes_writes_each_event_once(world: World) -> None:
    first = world.keeper()
    until(world.is_ready)
    assert first.stop() == 0
    for point in CRASH_POINTS:  # each begins with what the one before it left half done
        world.settle(5)
        dying = world.keeper(crash_at=f"{point}:1")
        assert dying.process is not None
        assert dying.process.wait(KILLED_S) == -signal.SIGKILL, f"it went past {point}"
    world.settle(5)
    last = world.keeper()
    world.assert_whole()
    assert last.stop() == 0
    assert len(world.events()) == 5 * (len(CRASH_POINTS) + 1)


def test_a_frozen_keeper_is_replaced_and_refused_when_it_wakes(world: World) -> None:
    old, new = world.keeper("--lease-s", "3"), world.keeper("--lease-s", "3")
    until(world.is_ready)
    if new.is_active:
        old, new = new, old
    until(lambda: old.is_active)
    fence = world.fence()
    assert old.process is not None
    old.process.send_signal(signal.SIGSTOP)
    world.settle(20)
    until(lambda: new.is_active)
    assert world.fence() == fence + 1
    world.assert_whole()
    old.process.send_signal(signal.SIGCONT)
    world.settle(20)
    until(lambda: not old.is_active)
    assert "the keeper stands by" in old.log.read_text()
    assert new.is_active
    world.assert_whole()
    assert (old.stop(), new.stop()) == (0, 0)


def test_what_redis_lost_is_rebuilt_from_the_ledger(world: World) -> None:
    keeper = world.keeper("--rebuild-s", "1")
    until(world.is_ready)
    world.settle(30)
    world.assert_whole()
    before = world.inspected()
    world.asks("FLUSHALL")
    assert world.inspected() is None
    until(world.is_ready)
    after = world.inspected()
    assert before is not None
    assert after is not None
    assert after.epoch == before.epoch + 1
    used = {limit.limit: limit.used for limit in after.limits}
    assert used == {limit.limit: limit.used for limit in before.limits}
    assert used["acme/tokens/day"] == 30 * 15
    world.assert_whole()
    assert keeper.stop() == 0


def test_events_wait_while_postgresql_is_away(world: World) -> None:
    keeper = world.keeper("--lease-s", "3")
    until(world.is_ready)
    world.settle(3)
    world.assert_whole()
    world.postgresql.kill()
    world.settle(3)
    until(lambda: keeper.metric("penstock_keeper_failures_total") > 0)
    assert world.waiting() == 3
    world.postgresql.start()
    until(lambda: keeper.is_active)
    world.assert_whole()
    assert keeper.metric("penstock_keeper_events_total") == 6
    assert keeper.stop() == 0
