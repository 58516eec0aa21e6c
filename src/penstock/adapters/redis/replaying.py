"""What Redis acknowledged and may have lost when it is started anew: kept here, and told again then.

A Redis that is killed loses what it had not yet handed to the system: nothing as a rule, up to two seconds while the
disk is slow (``appendfsync everysec``), and the same at a loss of power or a failover to a replica. What is lost is the
end of its history, so telling the last few seconds again, in order, restores it: every operation is idempotent, and the
ledger has one row of a kind for each reservation.

A Redis that is flushed loses its outbox too, so a charge is kept for as long as its event may be on its way to the
ledger: until the keeper has drained past it. What waits for that is bounded by ``KEPT_MOST`` calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

import msgspec

from penstock.quota.operations import (
    Acquire,
    Call,
    Cancel,
    Done,
    Duplicate,
    Lane,
    Post,
    Published,
    Reassert,
    Reserve,
    Reserved,
    Run,
    Settle,
    Settled,
    State,
    Touch,
    Unknown,
    Void,
)
from penstock.quota.state import LEASE_MS

KEPT_MS: Final = 5_000
KEPT_MOST: Final = 100_000
_GRANTS = frozenset({Reserve, Acquire})
_ENDS = frozenset({Settle, Void})
_OF_RUNS = frozenset({Acquire, Published, Cancel})  # they charge nothing: a job's charge is in its result
_KEPT = _GRANTS | _ENDS | _OF_RUNS | {Post}
_ENDED = frozenset({Settled, Done, Duplicate})
_ACKNOWLEDGED = frozenset({Reserved, Run, Settled, Done})


@dataclass(slots=True)
class _Open:
    """A realtime hold without an end, as its touches left it."""

    reserve: Reserve
    renewed_at_ms: int
    prompt: int = 0
    completion: int = 0
    is_missed: bool = False


class _Kept(msgspec.Struct, frozen=True, gc=False):
    """A call, when it was acknowledged by the caller's clock, and after how many others."""

    number: int
    at_ms: int
    call: Any


@dataclass(slots=True)
class Acknowledged:
    """What a process was promised lately or is not in the ledger yet, and every realtime hold that it has not ended.

    Args:
        open: By reservation.
        recent: Oldest first.
        charges: How many calls that charge something are kept of each organisation.
        number: Of the last call that was kept.
        dropped: How many were forgotten because of ``kept_most``, though their charge may be in no ledger.
    """

    kept_most: int = KEPT_MOST
    open: dict[str, _Open] = field(default_factory=dict)
    recent: deque[_Kept] = field(default_factory=deque)
    charges: dict[str, int] = field(default_factory=dict)
    number: int = 0
    dropped: int = 0

    def note(self, call: Call[Any], answer: object) -> None:
        """Remember a call, if Redis took something over by its answer."""
        kind = type(call)
        if kind is Touch:
            self._renew(cast(Touch, call))
        if kind not in _KEPT:
            return
        now_ms = call.caller_now_ms
        has_ended = kind in _ENDS and type(answer) in _ENDED  # else the store lost it, and is told of the hold again
        hold = self.open.pop(cast(Settle, call).reservation, None) if has_ended else None
        if kind is Post and type(answer) in _ENDED:
            self.open.pop(cast(Post, call).arguments.reservation, None)
        if type(answer) not in _ACKNOWLEDGED and not _is_repeated(kind, answer):
            return
        if kind is Reserve and cast(Reserve, call).lane is Lane.REALTIME:
            self.open[cast(Reserve, call).reservation] = _Open(cast(Reserve, call), now_ms)
            return
        if hold is not None:
            self._keep(hold.reserve, now_ms)  # an end is told after its hold, however old that is
        self._keep(call, now_ms)

    def _keep(self, call: Call[Any], now_ms: int) -> None:
        self.number += 1
        self.recent.append(_Kept(self.number, now_ms, call))
        if type(call) not in _OF_RUNS:
            self.charges[call.organisation] = self.charges.get(call.organisation, 0) + 1
        if len(self.recent) > self.kept_most:
            self._release(self.recent.popleft())
            self.dropped += 1

    def _release(self, kept: _Kept) -> None:
        organisation = kept.call.organisation
        if type(kept.call) not in _OF_RUNS:
            self.charges[organisation] -= 1
            if not self.charges[organisation]:
                del self.charges[organisation]

    def forget(self, now_ms: int, *, through: Mapping[str, int], lost: Collection[str]) -> None:
        """Forget what is older than ``KEPT_MS`` and, if it charges something, is in the ledger.

        Args:
            through: By organisation the number up to which the keeper has drained; nothing of those that it lacks.
            lost: Organisations that are being told again: of those nothing is forgotten.
        """
        kept: list[_Kept] = []
        last = max(through.values(), default=0) if self.charges else self.number  # so nobody pays for what has to wait
        while self.recent and self.recent[0].at_ms < now_ms - KEPT_MS and self.recent[0].number <= last:
            each = self.recent.popleft()
            is_drained = type(each.call) in _OF_RUNS or each.number <= through.get(each.call.organisation, 0)
            if not is_drained or each.call.organisation in lost:
                kept.append(each)
            else:
                self._release(each)
        self.recent.extendleft(reversed(kept))

    def told(self, serves: Callable[[str], bool], now_ms: int) -> None:
        """What is kept of some organisations has been acknowledged again just now: their events are new ones."""
        again = [each for each in self.recent if serves(each.call.organisation)]
        self.recent = deque(each for each in self.recent if not serves(each.call.organisation))
        for each in again:
            self.number += 1
            self.recent.append(_Kept(self.number, now_ms, each.call))

    def is_missing(self, call: Call[Any], answer: object) -> bool:
        """Whether the store does not know a hold that has no end: its state was lost and put back without it.

        True once for each time that a hold is missed, however often it is asked for.
        """
        if type(call) not in (Touch, Settle):
            return False
        hold = self.open.get(cast(Settle, call).reservation)
        if hold is None:
            return False
        was_missed, hold.is_missed = hold.is_missed, type(answer) is Unknown
        return hold.is_missed and not was_missed

    def again(self, now_ms: int) -> Iterator[Call[Any]]:
        """What to tell a Redis that was started anew, in order: first every hold, then what ended some.

        Args:
            now_ms: Unix milliseconds. A lease that passed while Redis was away is not taken again.
        """
        for each in self.recent:
            call = each.call
            if type(call) in _GRANTS and call.reservation not in self.open:
                is_job = call.lane is Lane.QUEUE
                if not is_job:  # it has its end below, and that counts however long it waited
                    call = replace(call, job_deadline_ms=max(call.job_deadline_ms, now_ms + LEASE_MS))
                # a job that runs is claimed again only while its lease lasts
                yield _reassert(call, now_ms, renewed_at_ms=call.caller_now_ms if is_job else now_ms)
        for hold in self.open.values():
            yield _reassert(hold.reserve, now_ms, hold.prompt, hold.completion, renewed_at_ms=hold.renewed_at_ms)
        for each in self.recent:
            if type(each.call) not in _GRANTS:
                yield replace(each.call, caller_now_ms=now_ms)

    def _renew(self, touch: Touch) -> None:
        hold = self.open.get(touch.reservation)
        if hold is not None:
            hold.renewed_at_ms = touch.caller_now_ms
            hold.prompt = max(hold.prompt, touch.prompt)
            hold.completion = max(hold.completion, touch.completion)


def _is_repeated(kind: type, answer: object) -> bool:
    """Whether an end was carried out before, by an attempt whose reply was lost."""
    if not isinstance(answer, Duplicate):
        return False
    return (kind is Settle and answer.state in (State.POSTED, State.LATE)) or (
        kind is Void and answer.state is State.VOIDED
    )


def _reassert(
    call: Reserve | Acquire, now_ms: int, prompt: int = 0, completion: int = 0, *, renewed_at_ms: int
) -> Reassert:
    fields = {name: getattr(call, name) for name in Reserve.__dataclass_fields__}
    return Reassert(
        organisation=call.organisation,
        caller_now_ms=now_ms,
        arguments=Reserve(**fields),
        acquired=isinstance(call, Acquire),
        prompt=prompt,
        completion=completion,
        renewed_at_ms=renewed_at_ms,
    )
