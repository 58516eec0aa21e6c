"""``penstock.ports.QuotaStore`` in one process: the model decides, a group commit makes it durable.

What a crash costs. Acknowledged settles, voids, posts, expiries by a sweep and queued jobs' reserves are on the disk
(``synchronous=FULL``: a loss of power is survived too). Windows are rebuilt from the ledger. Opens, touches and
buckets are as of the last group: a realtime reserve made within ``committing.OPEN_COMMIT_S`` and one commit before the
crash may be forgotten, and so charged nothing if its process died with it; its rate's debit alike. Opens that are
known expire when their lease ends, at what their last touch recorded. Learned estimates start empty.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from penstock.adapters.embedded import crash_points
from penstock.adapters.embedded.committing import GroupCommitter
from penstock.adapters.embedded.crash_points import Reached
from penstock.adapters.sql.rows import month_of
from penstock.errors import StoreUnavailable
from penstock.quota.events import Event
from penstock.quota.model import Organisation
from penstock.quota.operations import (
    Acquire,
    Call,
    Cancel,
    Define,
    Lane,
    Post,
    Ready,
    Reassert,
    Reserve,
    Settle,
    Sweep,
    Void,
)

A = TypeVar("A")

_ADMITTING = (Reserve, Acquire)
_NAMING = (Reserve, Acquire, Void, Post, Reassert)  # may write a row of an id that was not known before
_CARRYING = (Post, Reassert)
_AWAITED = (Settle, Void, Post, Cancel, Sweep, Acquire, Ready)


class EmbeddedStore:
    """The quota of every organisation of this process.

    Args:
        organisations: By name, as restored; ``Define`` adds to them.
        now_ms: The clock, Unix milliseconds.
        reached: Called with the name of each point in ``crash_points``.
    """

    def __init__(
        self,
        *,
        organisations: dict[str, Organisation],
        committer: GroupCommitter,
        now_ms: Callable[[], int],
        reached: Reached,
    ) -> None:
        self._organisations = organisations
        self._committer = committer
        self._now_ms = now_ms
        self._reached = reached

    @property
    def organisations(self) -> tuple[str, ...]:
        """Their names, sorted."""
        return tuple(sorted(self._organisations))

    @property
    def failure(self) -> str | None:
        """Why the last commit failed; None while commits work."""
        return self._committer.failure

    async def apply(self, call: Call[A]) -> A:
        """See ``penstock.ports.QuotaStore.apply``; a ``Define`` of a new organisation creates it.

        Raises:
            StoreUnavailable: A commit failed. What was asked is done in memory, and is tried again until it is durable;
                a reserve or acquire while commits fail is refused before anything is done.
            ValueError: A reservation's id does not begin with its time: our own mistake.
        """
        kind = type(call)
        if kind in _ADMITTING and self.failure is not None:
            raise StoreUnavailable(f"the ledger cannot be written: {self.failure}; nothing is admitted until it can")
        if kind in _NAMING:
            month_of(_named(call))  # the writer could not place a row of it, and would fail for everyone, for ever
        organisation = self._organisations.get(call.organisation)
        if organisation is None:
            organisation = Organisation(call.organisation)
        answer = organisation.apply(call, time_ms=self._now_ms())
        if kind is Define and organisation.version:
            self._organisations[call.organisation] = organisation
        self._reached(crash_points.APPLIED)
        if organisation.outbox or organisation.changed or kind in (Ready, Define):
            self._committer.join(organisation, is_redefined=kind is Define)
            self._reached(crash_points.QUEUED)
        if kind in _AWAITED or (isinstance(call, Reserve) and call.lane is Lane.QUEUE):
            await self._committer.durable()
        return answer

    def unwritten(self) -> AbstractAsyncContextManager[list[Event]]:
        """Keep the ledger still, and tell which events it does not have yet; see ``GroupCommitter.still``."""
        return self._committer.still()

    async def close(self) -> None:
        """Commit what is left, and stop writing.

        Raises:
            StoreUnavailable: The last commit failed.
        """
        await self._committer.close()


def _named(call: Call[Any]) -> str:
    arguments: Any = call.arguments if isinstance(call, _CARRYING) else call
    reservation: str = arguments.reservation
    return reservation
