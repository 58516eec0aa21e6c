"""Many schedules, on as many processes as there are cores: ``python -m tests.simulation.running`` runs and sums them.

A schedule is made of nothing but its seed, so which process ran it makes no difference.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.simulation.world import simulated

AT_ONCE = 250
TELL_EVERY_S = 10.0


@dataclass(slots=True)
class Sum:
    """What schedules came to.

    Args:
        points: Between two steps that processes passed, each with the process's name.
        wrong: Seeds of schedules that failed, with the first sentence that is not true.
    """

    figures: Tally[str] = field(default_factory=Tally)
    points: set[str] = field(default_factory=set)
    wrong: dict[int, str] = field(default_factory=dict)

    def add(self, other: Sum) -> None:
        """Take in what others came to."""
        self.figures += other.figures
        self.points |= other.points
        self.wrong |= other.wrong

    def __str__(self) -> str:
        return f"{dict(self.figures)}, {len(self.points)} points, {len(self.wrong)} wrong"


def run_some(seeds: range) -> Sum:
    """Run them one after the other."""
    logging.disable(logging.ERROR)  # thousands of warnings of stores that are away say nothing here
    total = Sum()
    for seed in seeds:
        outcome = simulated(seed)
        total.figures.update(
            schedules=1, accepted=len(outcome.accepted), calls=len(outcome.calls), kills=outcome.kills,
            asked=outcome.asked, answered=outcome.answered, left=outcome.left, spooled=outcome.spooled,
            delivered_after_restart=outcome.delivered_after_restart, rebuilt=outcome.rebuilt,
            restarts=outcome.restarts, **outcome.losses,
        )  # fmt: skip
        total.points |= outcome.points
        if outcome.wrong:
            total.wrong[seed] = outcome.wrong[0]
    return total


def run_many(first: int, count: int, *, processes: int, tell: Callable[[str], None]) -> Sum:
    """Run ``count`` schedules from a seed on; ends early once one is wrong, and tells how far it is."""
    portions = [range(at, min(at + AT_ONCE, first + count)) for at in range(first, first + count, AT_ONCE)]
    if processes == 1:
        return _summed(map(run_some, portions), count, tell)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return _summed(pool.imap_unordered(run_some, portions), count, tell)


def _summed(sums: Iterable[Sum], count: int, tell: Callable[[str], None]) -> Sum:
    total, began_s = Sum(), time.monotonic()
    told_s = began_s
    for each in sums:
        total.add(each)
        now_s = time.monotonic()
        if now_s - told_s >= TELL_EVERY_S:
            told_s, done = now_s, total.figures["schedules"]
            tell(f"{done} of {count} schedules, {done / (now_s - began_s):.0f} per second, {len(total.wrong)} wrong")
        if total.wrong:
            break
    return total


def _told(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Run what the arguments say; 1 if a schedule failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first schedule; the others follow")
    parser.add_argument("--schedules", type=int, default=1_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    total = run_many(given.seed, given.schedules, processes=given.processes, tell=_told)
    _told(f"seeds {given.seed} to {given.seed + given.schedules - 1}: {total}")
    for seed, sentence in sorted(total.wrong.items()):
        _told(f"seed {seed}: {sentence}")
    return 1 if total.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
