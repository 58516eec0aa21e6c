"""Tells a Redis that was started anew, or that lost an organisation, what this process had been acknowledged.

::

    started anew --what is acknowledged is told, before anything else is asked--> as it was
    an organisation is not ready, or is back without a hold --its calls wait, until it is put back--> told

What is remembered, and in which order it is told, is decided in ``replaying``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from penstock.adapters.redis.replaying import Acknowledged
from penstock.errors import StoreUnavailable
from penstock.quota.operations import Call, Inspected, NotReady, Post, Reassert, Reserved

log = logging.getLogger("penstock.adapters.redis")

AT_ONCE: Final = 200
TELL_EVERY_S: Final = 0.5
TELL_FOR_MS: Final = 120_000


class Retelling:
    """What one process tells again.

    Args:
        apply: Carries out one call as ``QuotaStore.apply``; its answers are noted here again.
        now_ms: The clock, Unix milliseconds.
    """

    def __init__(self, apply: Callable[[Call[Any]], Awaitable[Any]], now_ms: Callable[[], int]) -> None:
        self._apply = apply
        self._now_ms = now_ms
        self._acknowledged = Acknowledged()
        self._losses: dict[str, asyncio.Task[None]] = {}
        self._lost_again: set[str] = set()
        self._epochs: dict[str, int] = {}

    def note(self, call: Call[Any], answer: object) -> None:
        """Remember what was acknowledged, or notice that an organisation's state is gone."""
        self._acknowledged.note(call, answer)
        is_lost = type(answer) is NotReady or self._acknowledged.is_missing(call, answer)
        if isinstance(answer, Reserved | Inspected):
            known = self._epochs.get(call.organisation, 0)
            is_lost = known not in (0, answer.epoch)  # put back since the last answer, and nobody was told NotReady
            self._epochs[call.organisation] = answer.epoch
        if is_lost:
            self._notice_loss(call.organisation)

    async def tell(self, send: Callable[[Call[Any]], Awaitable[str]], serves: Callable[[str], bool]) -> None:
        """Restore what a Redis that was started anew may have lost, before anything else is asked of it.

        Args:
            send: Sends a call at once, in order; gives its answer's name.
            serves: Which organisations this Redis has.
        """
        calls = [call for call in self._acknowledged.again(self._now_ms()) if serves(call.organisation)]
        answers: Counter[str] = Counter()
        for first in range(0, len(calls), AT_ONCE):
            told = calls[first : first + AT_ONCE]
            for call, name in zip(told, await asyncio.gather(*map(send, told)), strict=True):
                answers[f"{type(call).__name__}: {name}"] += 1
                if name == NotReady.__name__:
                    self._notice_loss(call.organisation)
        _log_told(answers)

    async def close(self) -> None:
        """Tell nothing more."""
        for task in tuple(self._losses.values()):
            task.cancel()
            await asyncio.wait([task])

    def _notice_loss(self, organisation: str) -> None:
        """An organisation's state is gone: keep what it had acknowledged here, and tell it once it is put back."""
        if organisation in self._losses:
            self._lost_again.add(organisation)
            return
        calls = self._acknowledged_of(organisation)
        if calls:
            task = asyncio.create_task(self._tell_when_back(organisation, calls))
            self._losses[organisation] = task
            self._acknowledged.keeps_all = True
            task.add_done_callback(lambda task: self._told(organisation, is_closing=task.cancelled()))

    def _told(self, organisation: str, *, is_closing: bool) -> None:
        del self._losses[organisation]
        self._acknowledged.keeps_all = bool(self._losses)
        if organisation in self._lost_again and not is_closing:
            self._lost_again.discard(organisation)
            self._notice_loss(organisation)

    def _acknowledged_of(self, organisation: str) -> list[Call[Any]]:
        return [call for call in self._acknowledged.again(self._now_ms()) if call.organisation == organisation]

    async def _tell_when_back(self, organisation: str, calls: list[Call[Any]]) -> None:
        """A rebuild waits one lease for what processes still hold; after two, every lease has passed.

        Lost again on the way, all is told from the start, with what was acknowledged since.
        """
        until_ms = self._now_ms() + TELL_FOR_MS
        answers: Counter[str] = Counter()
        place = 0
        while place < len(calls) and self._now_ms() < until_ms:
            answer: object = None
            with suppress(StoreUnavailable):
                answer = await self._apply(replace(calls[place], caller_now_ms=self._now_ms()))
            if answer is None or isinstance(answer, NotReady):
                place = 0
                await asyncio.sleep(TELL_EVERY_S)
                continue
            answers[f"{type(calls[place]).__name__}: {type(answer).__name__}"] += 1
            place += 1
            if place == len(calls) and organisation in self._lost_again:
                self._lost_again.discard(organisation)
                calls, place = _each_once([*calls, *self._acknowledged_of(organisation)]), 0
        _log_told(answers)


def _each_once(calls: list[Call[Any]]) -> list[Call[Any]]:
    """The last of each kind and reservation, where the first one stood: what was told is acknowledged, and so again."""
    found: dict[tuple[type, str], Call[Any]] = {}
    for call in calls:
        about: Any = call.arguments if isinstance(call, Post | Reassert) else call
        found[type(call), about.reservation] = call
    return list(found.values())


def _log_told(answers: Counter[str]) -> None:
    if answers:
        log.warning("Redis was told again what it had acknowledged", extra={"answers": dict(answers)})
