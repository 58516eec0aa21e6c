"""What Redis acknowledged and may have lost when it is started anew: kept here, and told again then.

A Redis that is killed loses what it had not yet handed to the system: nothing as a rule, up to two seconds while the
disk is slow (``appendfsync everysec``), and the same at a loss of power or a failover to a replica. What is lost is the
end of its history, so telling the last few seconds again, in order, restores it: every operation is idempotent, and the
ledger has one row of a kind for each reservation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

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

KEPT_MS: Final = 5_000
_GRANTS = frozenset({Reserve, Acquire})
_ENDS = frozenset({Settle, Void})
_KEPT = _GRANTS | _ENDS | {Post, Published, Cancel}
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


@dataclass(slots=True)
class Acknowledged:
    """The last few seconds of what a process was promised, and every realtime hold that it has not ended.

    Args:
        open: By reservation.
        recent: Oldest first, each with the caller's clock when it was acknowledged.
        keeps_all: Nothing is forgotten, since somebody is telling: the store may lose it again meanwhile.
    """

    open: dict[str, _Open] = field(default_factory=dict)
    recent: deque[tuple[int, Any]] = field(default_factory=deque)
    keeps_all: bool = False

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
        if hold is not None:
            self.recent.append((now_ms, hold.reserve))  # an end is told after its hold, however old that is
        if kind is Reserve and cast(Reserve, call).lane is Lane.REALTIME:
            self.open[cast(Reserve, call).reservation] = _Open(cast(Reserve, call), now_ms)
        self.recent.append((now_ms, call))
        while not self.keeps_all and self.recent[0][0] < now_ms - KEPT_MS:
            self.recent.popleft()

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
        for _, call in self.recent:
            if type(call) in _GRANTS and call.reservation not in self.open:
                is_job = call.lane is Lane.QUEUE
                # a realtime one has its end below; a job that runs is claimed again only while its lease lasts
                yield _reassert(call, now_ms, renewed_at_ms=call.caller_now_ms if is_job else now_ms)
        for hold in self.open.values():
            yield _reassert(hold.reserve, now_ms, hold.prompt, hold.completion, renewed_at_ms=hold.renewed_at_ms)
        for _, call in self.recent:
            if type(call) not in _GRANTS:
                yield replace(call, caller_now_ms=now_ms)

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
