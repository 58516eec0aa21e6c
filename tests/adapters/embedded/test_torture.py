"""Killed under load at a named point, again and again on one database, the service loses nothing it acknowledged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter as Tally
from pathlib import Path

import pytest

from penstock.adapters.embedded import CRASH_POINTS
from penstock.adapters.embedded.crash_points import APPLIED, QUEUED
from penstock.quota import Event, EventKind, Inspected
from penstock.wiring.crash import VARIABLE
from tests.adapters.embedded.counter import MINUTE_MS, START_MS, Counter, held, run
from tests.counts import count

ROOT = Path(__file__).parents[3]
KILLS = count(50, short=len(CRASH_POINTS))
LIFE_MS = 20_000  # how far the clock is put ahead for each life; longer than one takes
ENDS = (EventKind.POSTED, EventKind.VOIDED, EventKind.EXPIRED)


def _kills(seed: int) -> list[str]:
    """``point:n`` for each life: every point equally often, in an order and at a count that the seed draws."""
    draw = random.Random(seed)
    points = [CRASH_POINTS[number % len(CRASH_POINTS)] for number in range(KILLS)]
    draw.shuffle(points)
    return [
        f"{point}:{draw.randrange(20, 600) if point in (APPLIED, QUEUED) else draw.randrange(3, 25)}"
        for point in points
    ]


def _live(path: Path, start_ms: int, seed: int, crash_at: str) -> list[list[str]]:
    """One life under load, ended by a kill; what it acknowledged."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.adapters.embedded.load", str(path), str(start_ms), str(seed)],
        cwd=ROOT,
        env={**os.environ, VARIABLE: crash_at},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, f"{crash_at}: {ended.stderr}"
    return [line.split() for line in ended.stdout.splitlines()]


def _missing(acknowledged: list[list[str]], ledger: list[Event], inspected: Inspected) -> list[str]:
    """What was acknowledged, and is not in the ledger, or among the open, as it was acknowledged."""
    ends = {event.reservation: event for event in ledger if event.kind in ENDS}
    open_now = {hold.reservation for hold in inspected.holds}
    missing = []
    for what, reservation, *tokens in acknowledged:
        end = ends.get(reservation)
        if what == "queued":
            kept = reservation in open_now or end is not None
        else:
            kept = end is not None and end.kind.value == what and tokens in ([], [str(end.charge.tokens)])
        if not kept:
            missing.append(f"{what} {reservation}")
    return missing


@pytest.mark.slow
@pytest.mark.torture
@pytest.mark.timeout(1_800)
def test_a_service_killed_at_any_point_loses_nothing_it_acknowledged(path: Path, seed: int) -> None:
    acknowledged: list[list[str]] = []
    counter = Counter(path)

    async def inspect(crash_at: str) -> None:
        async with counter.opened():
            inspected = await counter.inspect()
            ledger = counter.ledger()
            assert await counter.differences() == [], crash_at
            assert _missing(acknowledged, ledger, inspected) == [], crash_at
            ended = Tally(event.reservation for event in ledger if event.kind in ENDS)
            assert max(ended.values(), default=1) == 1, crash_at

    async def outlive() -> None:
        async with counter.opened():
            counter.now_ms += 20 * MINUTE_MS
            assert (await counter.sweep()).count > 0
            assert held(await counter.inspect()) == {}
            assert await counter.differences() == []

    for number, crash_at in enumerate(_kills(seed)):
        counter.now_ms = START_MS + number * LIFE_MS
        acknowledged += _live(path, counter.now_ms, seed + number, crash_at)
        counter.now_ms += LIFE_MS - 1
        run(lambda crash_at=crash_at: inspect(crash_at))  # type: ignore[misc]
    assert len(acknowledged) > 20 * KILLS
    run(outlive)


def test_every_point_is_drawn() -> None:
    assert {kill.partition(":")[0] for kill in _kills(1)} == set(CRASH_POINTS)
