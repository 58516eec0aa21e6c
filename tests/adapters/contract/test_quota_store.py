"""A quota store answers any history as the model does, call for call, and its ledger carries the model's events."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from penstock.quota import Call, Event, Inspected, Organisation, Post, Reassert, reservation_id
from tests.adapters.contract.backends import BACKENDS, Open, StoppedClock
from tests.quota.histories import ORGANISATIONS, T0_MS, history

pytestmark = pytest.mark.slow  # real services: left out of the quick check

CALLS = 600
C = TypeVar("C", bound=Call[Any])


def timed(text: str) -> str:
    """A history's short id as one that begins with a time; the order of ids is kept.

    Example:
        >>> timed("acme-00001") < timed("acme-00002")
        True
    """
    return reservation_id(T0_MS, int.from_bytes(text.encode().ljust(10, b"\0")))


def renamed(call: C) -> C:
    """The call, of reservations whose ids begin with a time."""
    if isinstance(call, Post):
        before = call.already_charged
        return replace(
            call,
            arguments=renamed(call.arguments),
            already_charged=before and replace(before, reservation=timed(before.reservation)),
        )
    if isinstance(call, Reassert):
        return replace(call, arguments=renamed(call.arguments))
    if hasattr(call, "reservation"):
        return replace(call, reservation=timed(call.reservation))  # type: ignore[call-arg]
    return call


def first_of_each(events: Iterable[Event]) -> dict[tuple[str, str], Event]:
    """By (reservation, kind). Histories use ids again after they were forgotten; nothing else does."""
    found: dict[tuple[str, str], Event] = {}
    for event in events:
        found.setdefault((event.reservation, event.kind.value), event)
    return found


async def _compare(open_backend: Open, place: Path, seed: int) -> None:
    clock = StoppedClock(T0_MS)
    model = {each: Organisation(each) for each in ORGANISATIONS}
    expected: list[Event] = []
    async with open_backend(place, clock) as backend:
        for number, (call, time_ms) in enumerate(history(seed, CALLS)):
            clock.now_ms = time_ms
            here = renamed(call)
            organisation = model[here.organisation]
            answer = organisation.apply(here, time_ms=time_ms)
            expected += organisation.outbox
            organisation.outbox.clear()
            assert await backend.store.apply(here) == answer, f"seed {seed}, call {number}: {here}"
        async with backend.drained() as events:
            assert first_of_each(events) == first_of_each(expected)


@pytest.mark.parametrize("history_seed", range(1, 9))
@pytest.mark.parametrize("backend", BACKENDS)
def test_answers_and_ledger_are_those_of_the_model(backend: str, history_seed: int, tmp_path: Path) -> None:
    asyncio.run(_compare(BACKENDS[backend], tmp_path, history_seed))


@pytest.mark.parametrize("backend", BACKENDS)
def test_answers_and_ledger_are_those_of_the_model_on_a_new_history(backend: str, seed: int, tmp_path: Path) -> None:
    asyncio.run(_compare(BACKENDS[backend], tmp_path, seed))


def test_a_comparison_sees_more_than_refusals() -> None:
    kinds = {type(answer) for answer in _answers(1)}
    assert Inspected in kinds
    assert len(kinds) > 10


def _answers(seed: int) -> Iterable[Any]:
    model = {each: Organisation(each) for each in ORGANISATIONS}
    for call, time_ms in history(seed, CALLS):
        here = renamed(call)
        yield model[here.organisation].apply(here, time_ms=time_ms)
