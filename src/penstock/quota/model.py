"""The quota of one organisation, as an executable specification.

Pure: an operation and an instant go in, an answer and a changed state come out. Nothing here reads a clock, opens a
socket or draws a random number, so that every twin of it can be compared with it on the same history.

A reservation's life::

    ABSENT -> OPEN -> POSTED | VOIDED | EXPIRED        EXPIRED -> LATE        ABSENT -> VOIDED

While open, a request of the realtime lane runs; a job of the queue lane is

    queued -> running -> published                     running -> queued when its lease passes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from penstock.quota import operations
from penstock.quota.acquiring import acquire, reassert
from penstock.quota.admitting import extend, reserve
from penstock.quota.expiring import sweep
from penstock.quota.finishing import post, settle, void
from penstock.quota.governing import define, inspect, look, ready
from penstock.quota.leasing import cancel, published, touch
from penstock.quota.operations import Call
from penstock.quota.state import Account

A = TypeVar("A")

_OPERATIONS: dict[type, Callable[[Any, Any, int], Any]] = {
    operations.Reserve: reserve,
    operations.Settle: settle,
    operations.Void: void,
    operations.Touch: touch,
    operations.Acquire: acquire,
    operations.Published: published,
    operations.Cancel: cancel,
    operations.Extend: extend,
    operations.Sweep: sweep,
    operations.Define: define,
    operations.Ready: ready,
    operations.Reassert: reassert,
    operations.Post: post,
    operations.Inspect: inspect,
    operations.Look: look,
}


class Organisation(Account):
    """One organisation's quota. Not for several threads at once."""

    __slots__ = ()

    def apply(self, call: Call[A], *, time_ms: int) -> A:
        """Carry out one operation.

        Args:
            time_ms: The store's clock, Unix milliseconds. It may jump: the organisation's own clock never goes back.

        Raises:
            ValueError: The call is for another organisation. Our own mistake, so nothing else is refused this way.

        Example:
            >>> acme = Organisation("acme")
            >>> acme.apply(operations.Inspect(organisation="acme", caller_now_ms=0), time_ms=0)
            NotReady()
        """
        if call.organisation != self.name:
            raise ValueError(f"a call for {call.organisation} was given to {self.name}")
        answer: A = _OPERATIONS[type(call)](self, call, time_ms)
        return answer
