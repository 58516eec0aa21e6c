"""Tells a Redis that was started anew, or that lost an organisation, what this process had been acknowledged.

::

    started anew --what is acknowledged is told, before anything else is asked--> as it was
    an organisation is not ready, or is back without a hold --its calls wait, until it is put back--> told
    what is acknowledged --older than the time kept, and drained to the ledger--> forgotten

What is remembered, and in which order it is told, is decided in ``replaying``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from penstock.adapters.redis.positions import EntryId, Position
from penstock.adapters.redis.replaying import KEPT_MOST, Acknowledged
from penstock.adapters.redis.wire import Refusal
from penstock.errors import StoreUnavailable
from penstock.quota.operations import Call, ClockSkew, Inspected, NotReady, Reserved

log = logging.getLogger("penstock.adapters.redis")

AT_ONCE: Final = 200
TELL_EVERY_S: Final = 0.5
LOOK_EVERY_S: Final = 1.0

_NOT_TAKEN = (NotReady, ClockSkew, Refusal)
"""Answers that say nothing of the call: it is told again."""
Look = Callable[[Collection[str]], Awaitable[Mapping[str, Position]]]


class Retelling:
    """What one process tells again.

    Args:
        apply: Carries out one call as ``QuotaStore.apply``; its answers are noted here again.
        now_ms: The clock, Unix milliseconds.
        look: How far the outboxes of some organisations are drained; see ``find_positions``.
        kept_most: Calls that are remembered at most.
        tell_every_s: How soon what was not taken is told again.
    """

    def __init__(
        self,
        apply: Callable[[Call[Any]], Awaitable[Any]],
        now_ms: Callable[[], int],
        look: Look,
        *,
        kept_most: int = KEPT_MOST,
        tell_every_s: float = TELL_EVERY_S,
    ) -> None:
        self._apply = apply
        self._now_ms = now_ms
        self._look = look
        self._tell_every_s = tell_every_s
        self._acknowledged = Acknowledged(kept_most)
        self._looking: asyncio.Task[None] | None = None
        self._marks: dict[str, tuple[int, EntryId]] = {}
        self._through: dict[str, int] = {}
        self._dropped = 0
        self._is_dropping = False
        self._blind_because = ""
        self._losses: dict[str, asyncio.Task[None]] = {}
        self._telling: dict[str, Call[Any]] = {}
        self._lost_again: set[str] = set()
        self._epochs: dict[str, int] = {}

    def note(self, call: Call[Any], answer: object) -> None:
        """Remember what was acknowledged, or notice that an organisation's state is gone."""
        if self._losses and call is self._telling.get(call.organisation):
            return  # it is kept already
        self._acknowledged.note(call, answer)
        if self._looking is None and self._acknowledged.recent:
            self._looking = asyncio.create_task(self._look_while_kept())
        is_lost = type(answer) is NotReady or self._acknowledged.is_missing(call, answer)
        if isinstance(answer, Reserved | Inspected):
            known = self._epochs.get(call.organisation, 0)
            is_lost = known not in (0, answer.epoch)  # put back since the last answer, and nobody was told NotReady
            self._epochs[call.organisation] = answer.epoch
        if is_lost:
            self._notice_loss(call.organisation)

    async def tell(self, send: Callable[[Call[Any]], Awaitable[object]], serves: Callable[[str], bool]) -> None:
        """Restore what a Redis that was started anew may have lost, before anything else is asked of it.

        Args:
            send: Sends a call at once, in order; gives its answer, or what Redis refused it with.
            serves: Which organisations this Redis has.
        """
        calls = [call for call in self._acknowledged.again(self._now_ms()) if serves(call.organisation)]
        answers: Counter[str] = Counter()
        for first in range(0, len(calls), AT_ONCE):
            told = calls[first : first + AT_ONCE]
            for call, answer in zip(told, await asyncio.gather(*map(send, told)), strict=True):
                answers[_named(call, answer)] += 1
                if isinstance(answer, _NOT_TAKEN):
                    self._notice_loss(call.organisation)
        self._acknowledged.told(lambda name: serves(name) and name not in self._losses, self._now_ms())
        _log_told(answers)

    async def close(self) -> None:
        """Tell nothing more."""
        looking = () if self._looking is None else (self._looking,)
        for task in (*looking, *self._losses.values()):
            task.cancel()
            await asyncio.wait([task])

    async def _look_while_kept(self) -> None:
        while self._acknowledged.recent:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.forget()
            except StoreUnavailable as away:
                if self._blind_because != (why := str(away)):
                    log.warning("nothing that was acknowledged is forgotten: %s", why)
                self._blind_because = why
            else:
                self._blind_because = ""
        self._looking = None

    def _tell_of_dropped(self) -> None:
        dropped, self._dropped = self._dropped, self._acknowledged.dropped
        is_dropping, self._is_dropping = self._is_dropping, self._dropped > dropped
        if self._is_dropping and not is_dropping:
            log.error("the oldest charges are forgotten before a keeper drained them: see that one runs")

    @property
    def remembered(self) -> int:
        """How many calls are kept, to be told again."""
        return len(self._acknowledged.recent)

    async def forget(self) -> None:
        """Forget what is old, and has gone to the ledger if it charges something.

        Raises:
            StoreUnavailable: Redis does not say what has; so nothing is forgotten.
        """
        self._tell_of_dropped()
        asked_after = self._acknowledged.number
        names = [name for name in self._acknowledged.charges if name not in self._losses]
        found = await self._look(names) if names else {}
        for name, position in found.items():
            if name not in self._losses and not self._is_lost(name, position.epoch):
                self._measure(name, position, asked_after)
        self._acknowledged.forget(self._now_ms(), through=self._through, lost=self._losses.keys())
        self._through = {name: self._through[name] for name in found.keys() & self._through.keys()}
        self._marks = {name: self._marks[name] for name in found.keys() & self._marks.keys()}

    def _is_lost(self, organisation: str, epoch: int) -> bool:
        """Whether an epoch is not the one that this process knows; it learns it if it knows none."""
        known = self._epochs.setdefault(organisation, epoch)
        is_lost = epoch == 0 or known not in (0, epoch)
        if is_lost:
            self._notice_loss(organisation)
        if epoch:
            self._epochs[organisation] = epoch
        return is_lost

    def _measure(self, organisation: str, position: Position, asked_after: int) -> None:
        """What was acknowledged before it was asked is drained, once the newest entry of then is."""
        number, newest = self._marks.get(organisation, (0, position.newest))
        if position.oldest is None:
            self._through[organisation] = asked_after
        elif position.oldest > newest:
            self._through[organisation] = number
        if position.oldest is None or position.oldest > newest or organisation not in self._marks:
            self._marks[organisation] = (asked_after, position.newest)

    def _notice_loss(self, organisation: str) -> None:
        """An organisation's state is gone: keep what it had acknowledged here, and tell it once it is put back."""
        if organisation in self._losses:
            self._lost_again.add(organisation)
            return
        calls = self._acknowledged_of(organisation)
        if calls:
            task = asyncio.create_task(self._tell_when_back(organisation, calls))
            self._losses[organisation] = task
            task.add_done_callback(lambda task: self._told(organisation, is_closing=task.cancelled()))

    def _told(self, organisation: str, *, is_closing: bool) -> None:
        del self._losses[organisation]
        self._telling.pop(organisation, None)
        if organisation in self._lost_again and not is_closing:
            self._lost_again.discard(organisation)
            self._notice_loss(organisation)

    def _acknowledged_of(self, organisation: str) -> list[Call[Any]]:
        return [call for call in self._acknowledged.again(self._now_ms()) if call.organisation == organisation]

    async def _tell_when_back(self, organisation: str, calls: list[Call[Any]]) -> None:
        """However long that takes: it is tried until all is told.

        Lost again on the way, all is told from the start, with what was acknowledged since.
        """
        answers: Counter[str] = Counter()
        place, is_away = 0, False
        while place < len(calls):
            answer: object = None
            call = self._telling[organisation] = replace(calls[place], caller_now_ms=self._now_ms())
            with suppress(StoreUnavailable):
                answer = await self._apply(call)
            if answer is None or isinstance(answer, _NOT_TAKEN):
                place, is_away = 0, True
                await asyncio.sleep(self._tell_every_s)
                continue
            answers[_named(call, answer)] += 1
            place += 1
            if is_away or (place == len(calls) and organisation in self._lost_again):
                is_away = False
                self._lost_again.discard(organisation)
                calls, place = self._acknowledged_of(organisation), 0
        self._acknowledged.told(lambda name: name == organisation, self._now_ms())
        _log_told(answers)


def _named(call: Call[Any], answer: object) -> str:
    said = answer.code if isinstance(answer, Refusal) else type(answer).__name__
    return f"{type(call).__name__}: {said}"


def _log_told(answers: Counter[str]) -> None:
    if answers:
        log.warning("Redis was told again what it had acknowledged", extra={"answers": dict(answers)})
