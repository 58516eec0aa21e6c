"""The figures that autoscaling goes by, as keepers give them: computed from what waits, the same of each keeper, and
none at all while they cannot be known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil

import pytest

from penstock.adapters.redis.translating import keys_of
from penstock.quota.operations import Done, Lane, Void
from tests.system.clusters import until
from tests.system.keepers import KeeperProgram, World, now_ms
from tests.system.test_keeper import acquire

JOBS = 6
SOON = ("--audit-s", "1", "--figures-s", "0.3")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Services that are prepared, and an empty ledger."""
    world = World(tmp_path_factory.mktemp("world"))
    try:
        world.start()
        yield world
    finally:
        world.stop()


def until_all(keepers: tuple[KeeperProgram, ...], status: int, *, store: str, up: int) -> None:
    """Until every keeper answers so, and shows so."""
    for keeper in keepers:
        until(lambda keeper=keeper: keeper.scaling("m")[0] == status)
        until(lambda keeper=keeper: keeper.series("penstock_store_up")[f'store="{store}"'] == up)


def test_what_waits_becomes_replicas_of_either_keeper_and_a_lost_store_none(world: World) -> None:
    one, other = world.keeper(*SOON), world.keeper(*SOON)
    until(world.is_ready)
    jobs = [replace(world.reserve(), lane=Lane.QUEUE, outputs_bound=3_000) for _ in range(JOBS)]
    held = sum(answer.tokens_held for answer in world.applied(*jobs))
    world.applied(acquire(jobs[0], world.inspected_epoch()))
    for keeper in (one, other):
        until(lambda keeper=keeper: keeper.scaling("m")[1].get("inputs", {}).get("running_jobs") == 1)
        _, figures = keeper.scaling("m")
        inputs = figures["inputs"]
        assert (inputs["waiting_jobs"], inputs["running_jobs"]) == (JOBS - 1, 1)
        assert (inputs["held_tokens"], inputs["backlog_tokens"]) == (held * (JOBS - 1) // JOBS, held)
        assert figures["wanted"] == ceil(max(figures["terms"].values()) / 1000)
        assert figures["replicas"] == min(100, figures["wanted"]) > 0
        assert figures["workers"] == ceil(min(JOBS, figures["replicas"] * 4) / 4)
        assert keeper.series("penstock_scaling_replicas") == {'model="m"': figures["replicas"]}
        assert keeper.scaling("nobody")[0] == 404
    active = one if one.is_active else other
    assert active.series("penstock_queue_backlog_tokens") == {'model="m"': inputs["held_tokens"]}
    assert active.series("penstock_queue_waiting_jobs") == {'model="m"': JOBS - 1}
    until(lambda: active.series("penstock_open_holds") == {'model="m"': JOBS})
    assert active.series("penstock_open_held_tokens") == {'model="m"': held}
    assert active.metric("penstock_overdue_holds") == 0
    assert active.series("penstock_store_up")['store="rabbitmq"'] == 0
    until(lambda: active.series("penstock_audit_differences") == {'organisation="acme"': 0})
    assert active.metric("penstock_audit_last_success_timestamp_seconds") > 0
    for store, lost in (("redis", world.redis), ("postgresql", world.postgresql)):
        lost.kill()
        until_all((one, other), 503, store=store, up=0)
        for keeper in (one, other):
            assert "cannot be known" in keeper.scaling("m")[1]["error"]["message"]
            assert keeper.series("penstock_scaling_replicas") == {}
        lost.start()
        until_all((one, other), 200, store=store, up=1)
    ends = [Void(organisation="acme", caller_now_ms=now_ms(), reservation=job.reservation) for job in jobs]
    assert {type(answer) for answer in world.applied(*ends)} == {Done}
    assert (one.stop(), other.stop()) == (0, 0)


def test_a_counter_that_lost_what_was_used_is_a_difference_in_the_metrics(world: World) -> None:
    keeper = world.keeper(*SOON)
    until(world.is_ready)
    world.settle(2)
    until(lambda: keeper.is_active and world.waiting() == 0)
    until(lambda: keeper.series("penstock_audit_differences") == {'organisation="acme"': 0})
    world.asks("HDEL", keys_of("acme")[0].decode(), "acme/tokens/day")
    until(lambda: keeper.series("penstock_audit_differences").get('organisation="acme"', 0) >= 2 * 15)
    assert keeper.stop() == 0
