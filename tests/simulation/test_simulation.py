"""Whatever is lost, late, doubled or killed, and in whatever order: nothing accepted is lost, nothing is billed twice.

Each schedule is a cluster on one scheduler in virtual time, drawn from a seed: ``PENSTOCK_SEED=<seed>`` in the
environment makes it the first one. The lanes, the executor, the keeper, the spool, the quota, its rebuild and the
telling again after a loss are the real ones.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator

import pytest

from tests.counts import TORTURE, count
from tests.simulation.running import run_many
from tests.simulation.streams import Rules
from tests.simulation.world import simulated

SCHEDULES = count(100_000, short=1_000)
SCHEDULES_UNTIL_FOUND = count(20_000, short=1_000)
BROKEN = {
    "a worker acknowledges before the result's publish is confirmed": Rules(worker_acknowledges_last=False),
    "a gateway answers 202 without a confirm": Rules(gateway_waits_for_confirm=False),
    "a collector acknowledges before it has stored": Rules(collector_acknowledges_last=False),
    "a spool is lost with its process": Rules(spool_survives=False),
    "a settle that comes twice is posted twice": Rules(settles_once=False),
    "a process does not tell a store again what that lost": Rules(holds_are_told_again=False),
    "a rebuild forgets what the ledger sums to": Rules(rebuild_forgets="sums"),
    "a rebuild forgets what has ended": Rules(rebuild_forgets="ended"),
    "what ends a second time is billed beside the first": Rules(first_end_stands=False),
}
if TORTURE:  # found in one of a thousand schedules
    BROKEN["a result whose reservation expired is not settled again"] = Rules(what_expired_is_settled_again=False)
    BROKEN["a collector settles what the message says, and not the result that won"] = Rules(winner_is_settled=False)
SEEN = {
    "answered": SCHEDULES // 3,  # requests of the realtime lane, whole
    "left": SCHEDULES // 10,  # clients that went away
    "spooled": SCHEDULES // 20,  # ends that the store did not take
    "delivered_after_restart": SCHEDULES // 50,  # found in the spool by the next process
    "flushed": SCHEDULES // 10,
    "cut": SCHEDULES // 10,  # the end of the log was lost
    "rebuilt": SCHEDULES // 10,  # admissions began again under a new epoch
}
REALTIME_POINTS = {
    "Reserve sent", "Reserve answered", "Touch sent", "Touch answered", "Settle sent", "Settle answered", "Void sent",
    "Reassert sent", "Reassert answered", "model server called", "streams", "started", "spool half written",
    "spool synced", "spool-applied",
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of warnings of stores that are away say nothing here."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.torture
@pytest.mark.timeout(count(14_400, short=240))
def test_no_schedule_loses_or_bills_twice_what_was_accepted(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    def tell(line: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"{line}\n")

    total = run_many(seed, SCHEDULES, processes=(os.cpu_count() or 1) if TORTURE else 1, tell=tell)
    sys.stdout.write(f"seeds from {seed}: {total}\n")
    assert not total.wrong, f"PENSTOCK_SEED={min(total.wrong)} replays it as the first schedule"
    figures = total.figures
    assert figures["schedules"] == SCHEDULES
    assert figures["accepted"] > SCHEDULES
    assert figures["kills"] > SCHEDULES
    assert {name: figures[name] for name, least in SEEN.items() if figures[name] < least} == {}, "too seldom"
    passed = {point.removeprefix("api: ") for point in total.points if point.startswith("api: ")}
    assert passed >= REALTIME_POINTS, "every point of the realtime lane between two steps was passed"
    assert len(total.points - {f"api: {each}" for each in passed}) >= 19, "and every one of the queue lane"


@pytest.mark.slow
@pytest.mark.torture
@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_found(rule: str) -> None:
    found = (simulated(number, BROKEN[rule]).wrong for number in range(SCHEDULES_UNTIL_FOUND))
    assert any(found), f"nothing was wrong in {SCHEDULES_UNTIL_FOUND} schedules"


@pytest.mark.parametrize("number", range(3))
def test_a_schedule_is_replayed_by_its_seed(number: int) -> None:
    assert simulated(number) == simulated(number)
