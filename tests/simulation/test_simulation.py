"""Whatever is lost, late, doubled or killed, and in whatever order: nothing accepted is lost, nothing is billed twice.

Each schedule is a cluster on one scheduler in virtual time, drawn from a seed: ``PENSTOCK_SEED=<seed>`` in the
environment makes it the first one. The executor, the keeper and the quota are the real ones.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter as Tally
from collections.abc import Iterator

import pytest

from tests.counts import TORTURE, count
from tests.simulation.streams import Rules
from tests.simulation.world import simulated

SCHEDULES = count(100_000, short=1_000)
SCHEDULES_UNTIL_FOUND = count(20_000, short=2_000)
BROKEN = {
    "a worker acknowledges before the result's publish is confirmed": Rules(worker_acknowledges_last=False),
    "a gateway answers 202 without a confirm": Rules(gateway_waits_for_confirm=False),
    "a collector acknowledges before it has stored": Rules(collector_acknowledges_last=False),
}
if TORTURE:  # found in one of a thousand schedules
    BROKEN["a collector settles what the message says, and not the result that won"] = Rules(winner_is_settled=False)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of warnings of stores that are away say nothing here."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.torture
@pytest.mark.timeout(count(7_200, short=240))
def test_no_schedule_loses_or_bills_twice_what_was_accepted(seed: int) -> None:
    figures: Tally[str] = Tally()
    points: set[str] = set()
    for number in range(seed, seed + SCHEDULES):
        outcome = simulated(number)
        assert outcome.wrong == [], f"PENSTOCK_SEED={number} replays it as the first schedule"
        figures.update(schedules=1, accepted=len(outcome.accepted), calls=len(outcome.calls), kills=outcome.kills)
        points |= outcome.points
    sys.stdout.write(f"seeds {seed} to {number}: {dict(figures)}, {len(points)} points\n")
    assert figures["accepted"] > SCHEDULES
    assert figures["kills"] > SCHEDULES
    assert len(points) >= 19, "every point between two steps was passed"


@pytest.mark.slow
@pytest.mark.torture
@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_found(rule: str) -> None:
    found = (simulated(number, BROKEN[rule]).wrong for number in range(SCHEDULES_UNTIL_FOUND))
    assert any(found), f"nothing was wrong in {SCHEDULES_UNTIL_FOUND} schedules"


@pytest.mark.parametrize("number", range(3))
def test_a_schedule_is_replayed_by_its_seed(number: int) -> None:
    assert simulated(number) == simulated(number)
