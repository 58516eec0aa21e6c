"""The keeper as a process, killed, frozen and doubled: each event is in the ledger once, and counters agree with it."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select

from penstock.adapters.postgresql.crash_points import CRASH_POINTS, DRAIN_COMMITTED, EVENTS_INSERTED
from penstock.adapters.sql.job_tables import results
from penstock.lanes.keeping import UNSETTLED_MAX
from penstock.quota.events import Usage
from penstock.quota.operations import Acquire, Duplicate, Gone, Lane, Reserve, Run, Settle, Settled, State, Touch, Wait
from tests.adapters.redis.test_losses import log_of
from tests.counts import TORTURE, count
from tests.system.clusters import until
from tests.system.keepers import World, now_ms

KILLED_S = 30.0
SOON_MS = 5_000

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


def acquire(job: Reserve, epoch: int) -> Acquire:
    """What a worker asks before it begins."""
    return Acquire(**{name: getattr(job, name) for name in Reserve.__dataclass_fields__}, epoch=epoch)


def settle_of(job: Reserve) -> Settle:
    return Settle(
        organisation=job.organisation, caller_now_ms=job.caller_now_ms, reservation=job.reservation, usage=Usage(10, 5)
    )


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


def test_a_keeper_outlives_a_database_that_is_read_only(world: World) -> None:
    keeper = world.keeper()
    until(world.is_ready)
    world.restart_postgresql("default_transaction_read_only=on")  # as a standby is until it is promoted
    world.settle(5)
    until(lambda: "cannot do this now" in keeper.log.read_text())
    assert world.events() == []
    world.restart_postgresql()
    world.assert_whole()
    assert len(world.events()) == 5
    assert keeper.stop() == 0


@pytest.mark.torture
@pytest.mark.parametrize("point", CRASH_POINTS if TORTURE else [EVENTS_INSERTED])
def test_a_keeper_frozen_between_two_writes_while_another_leads_writes_nothing_when_it_wakes(
    world: World, point: str
) -> None:
    first = world.keeper()
    until(world.is_ready)
    assert first.stop() == 0
    old = world.keeper("--lease-s", "3", crash_at=f"{point}:1:freeze")
    until(lambda: old.is_active)
    frozen_at, settled = time.monotonic(), 20
    frozen = old.process
    assert frozen is not None
    world.settle(settled)
    until(lambda: stopped(frozen.pid))
    new = world.keeper("--lease-s", "3")
    until(lambda: new.is_active)
    world.settle(settled)
    world.assert_whole()
    until(lambda: time.monotonic() - frozen_at > count(30, short=4))
    fence, before = world.fence(), world.events()
    frozen.send_signal(signal.SIGCONT)
    until(lambda: "the keeper stands by" in old.log.read_text())
    assert new.is_active
    assert (world.fence(), world.events()) == (fence, before), f"it wrote after {point}"
    assert len(before) == 2 * settled
    world.settle(settled)
    world.assert_whole()
    assert (old.stop(), new.stop()) == (0, 0)


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_results_that_can_never_be_settled_stop_no_keeper_and_no_other_result(world: World) -> None:
    keeper = world.keeper()
    until(world.is_ready)
    at_ms, job, unknown = now_ms(), replace(world.reserve(), lane=Lane.QUEUE), world.reserve()
    world.applied(job)
    row: dict[str, Any] = {
        "organisation": "acme", "model": "m", "route": "chat.completions", "status": "succeeded", "http_status": 200,
        "reason": "", "prompt_tokens": 10, "cached_tokens": 0, "completion_tokens": 5, "usage_source": "upstream",
        "attempts": 1, "started_at_ms": at_ms, "finished_at_ms": at_ms - 60_000, "arguments": {"no": "reserve"},
        "settled": False,
    }  # fmt: skip
    nobodys = [row | {"job": f"{number:032x}", "organisation": "nobody"} for number in range(2 * UNSETTLED_MAX)]
    mine = [row | {"job": each.reservation, "finished_at_ms": at_ms - 20_000} for each in (job, unknown)]
    with world.engine.begin() as connection:
        connection.execute(insert(results), [*nobodys, *mine])

    def are_settled() -> bool:
        with world.engine.connect() as connection:
            return not connection.execute(select(results.c.job).where(~results.c.settled)).first()

    until(are_settled)
    world.until_drained()
    assert [event.reservation for event in world.events() if event.charge.requests] == [job.reservation]
    assert keeper.stop() == 0


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


def test_a_charge_that_redis_lost_and_nobody_tells_again_is_billed_once_when_its_hold_expires(world: World) -> None:
    keeper = world.keeper()
    until(world.is_ready)
    world.asks("CONFIG", "SET", "appendfsync", "always")  # so that the log has what was answered
    world.settle(3)
    world.assert_whole()
    request = world.reserve()
    request = replace(request, job_deadline_ms=request.caller_now_ms + SOON_MS)
    touch = Touch(organisation="acme", caller_now_ms=now_ms(), reservation=request.reservation, prompt=1, completion=1)
    world.applied(request, touch)
    kept_bytes = log_of(world.redis).stat().st_size
    (settled,) = world.applied(settle_of(request))
    assert settled.state is State.POSTED, "within its lease"
    world.settled.append(request.reservation)
    world.assert_whole()
    assert keeper.stop() == 0
    world.redis.kill()
    with log_of(world.redis).open("r+b") as file:
        file.truncate(kept_bytes)
    world.redis.start()
    dying = world.keeper(crash_at=f"{DRAIN_COMMITTED}:1")  # its hold has expired, and Redis is not told its charge yet
    assert dying.process is not None
    assert dying.process.wait(KILLED_S) == -signal.SIGKILL
    last = world.keeper()
    until(lambda: last.metric("penstock_keeper_repeated_events_total") >= 2)  # expired, and late
    world.assert_whole()
    assert last.stop() == 0


def test_accepted_jobs_hold_what_they_held_after_a_loss_and_are_charged_once(world: World) -> None:
    keeper = world.keeper("--rebuild-s", "0")
    until(world.is_ready)
    jobs = [replace(world.reserve(), lane=Lane.QUEUE) for _ in range(3)]
    queued, begun, ended = jobs
    epoch = world.inspected_epoch()
    world.applied(*jobs, acquire(begun, epoch), acquire(ended, epoch), settle_of(ended))
    world.until_drained()
    before = world.inspected()
    world.asks("FLUSHALL")
    until(world.is_ready)
    after = world.inspected()
    assert before is not None
    assert after is not None
    assert {hold.reservation for hold in after.holds} == {queued.reservation, begun.reservation}
    held = {limit.limit: limit.held for limit in after.limits if limit.metric == "tokens" and limit.kind == "window"}
    assert held == {limit.limit: limit.held for limit in before.limits if limit.limit in held}
    *taken, gone = world.applied(*(acquire(each, epoch) for each in jobs))
    assert {type(answer) for answer in taken} <= {Run, Wait}, "rates begin empty, and fill"
    assert gone == Gone()
    answers = world.applied(settle_of(queued), settle_of(begun), settle_of(ended))
    assert [type(answer) for answer in answers] == [Settled, Settled, Duplicate]
    world.until_drained()
    charged = Counter(event.reservation for event in world.events() if event.charge.requests)
    assert charged == Counter(job.reservation for job in jobs)
    assert keeper.stop() == 0


def test_a_result_whose_charge_redis_lost_before_the_ledger_had_it_is_charged_after_the_rebuild(world: World) -> None:
    keeper = world.keeper("--rebuild-s", "1")
    until(world.is_ready)
    job, charged = (replace(world.reserve(), lane=Lane.QUEUE) for _ in range(2))
    world.applied(job, charged, settle_of(charged))
    world.until_drained()
    row: dict[str, Any] = {
        "organisation": "acme", "model": "m", "route": "chat.completions", "status": "succeeded", "http_status": 200,
        "reason": "", "prompt_tokens": 10, "cached_tokens": 0, "completion_tokens": 5, "usage_source": "upstream",
        "attempts": 1, "started_at_ms": now_ms() - 30_000, "finished_at_ms": now_ms() - 20_000, "arguments": {},
        "settled": True,
    }  # fmt: skip
    with world.engine.begin() as connection:
        connection.execute(insert(results), [row | {"job": each.reservation} for each in (job, charged)])
    world.asks("FLUSHALL")
    until(world.is_ready)
    until(lambda: job.reservation in {event.reservation for event in world.events() if event.charge.requests})
    world.until_drained()
    counted = Counter(event.reservation for event in world.events() if event.charge.requests)
    assert counted == Counter((job.reservation, charged.reservation))
    assert keeper.stop() == 0


def test_an_operator_rebuilds_what_was_lost_and_is_refused_what_was_not(world: World) -> None:
    keeper = world.keeper()
    until(world.is_ready)
    world.settle(30)
    world.assert_whole()
    before = world.inspected()
    assert before is not None
    assert "stop every `penstock keeper`" in world.command("rebuild", "--force", expect=1)
    assert keeper.stop() == 0
    assert "Redis has the state of every organisation; add --force" in world.command("rebuild", expect=1)
    assert "acme: Redis has its state, in epoch 1; add --force" in world.command("rebuild", "acme", expect=1)
    assert "no such organisation; there are acme" in world.command("rebuild", "nobody", expect=1)
    world.settle(2)  # still in the outbox
    for epoch, options in ((2, ["acme", "--force"]), (3, [])):
        if epoch == 3:
            world.asks("FLUSHALL")
        told = world.command("rebuild", *options, "--rebuild-s", "0")
        assert "acme: adding up the ledger" in told
        assert "admissions begin: acme" in told
        after = world.inspected()
        assert after is not None
        assert after.epoch == epoch
        used = {limit.limit: limit.used for limit in after.limits}
        assert used["acme/tokens/day"] == 32 * 15
    world.assert_whole()


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
