"""Answers a request with an idempotency key once, however often it is sent.

The key names the reservation (``<hash>-<attempt>``), and the answer is stored under that name before it is settled::

    reserve -> call -> answer stored -> settle -> last byte

So a kill at any moment neither bills twice nor loses the answer in silence. Before the answer is stored, the hold
expires, and the same key is told that the outcome is unknown. After it, the same key is given the answer, and its usage
is settled with what the model server reported, late if the hold has expired: by whoever asks again, by the next start,
or by the keeper, whoever comes first.

Stored are answers that came to their end. A request that failed and cost nothing is the next attempt's; one that cost
something and has no answer (the client left, the model server broke off) is not repeated: that would bill twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Final, Protocol

import msgspec

from penstock.errors import AlreadyReserved, Conflict, Mismatched, StoreUnavailable
from penstock.lanes.accepting import (
    ATTEMPTS_AT_ONCE_MAX,
    STORED_ANSWER_BYTES_MAX,
    job_prefix,
    other_body,
    outcome_unknown,
    under_way,
)
from penstock.lanes.posting import Posting
from penstock.lanes.queueing import unnoticed
from penstock.lanes.requests import InferenceRequest, Reply, StreamReply
from penstock.ports import Answers, Clock, JobState, QuotaStore, StoredResult
from penstock.quota.events import EventKind, Usage
from penstock.quota.operations import Done, Duplicate, Reserve, Settle, Settled, State, Unknown

log = logging.getLogger("penstock.lanes")

STORED: Final = "answer-stored"
CRASH_POINTS: Final = (STORED,)
TOO_LARGE: Final = "the answer is larger than is stored"


class Lane(Protocol):
    """The realtime lane."""

    async def answer(self, request: InferenceRequest) -> Reply | StreamReply:
        """See ``penstock.lanes.realtime.RealtimeLane``."""
        ...


class Repeating:
    """Stands before the realtime lane for requests with an idempotency key.

    Args:
        is_alone: No keeper sees to what the quota store no longer knows.
        bytes_max: Of an answer that is kept.
        reached: Called at each crash point.
    """

    def __init__(
        self,
        lane: Lane,
        answers: Answers,
        quota: QuotaStore,
        clock: Clock,
        *,
        is_alone: bool = False,
        bytes_max: int = STORED_ANSWER_BYTES_MAX,
        reached: Callable[[str], None] = unnoticed,
    ) -> None:
        self._is_alone = is_alone
        self.bytes_max = bytes_max
        self._reached = reached
        self._lane = lane
        self._answers = answers
        self._quota = quota
        self._clock = clock
        self._posting = Posting(quota, clock, answers.events)
        self._under_way: set[asyncio.Task[None]] = set()

    async def settle_stored(self) -> None:
        """Settle what an earlier process stored and had no time to settle. In a cluster the keeper does."""
        for result in await self._answers.unsettled():
            await self._settle(result)

    async def close(self) -> None:
        """Wait for what is under way."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    async def answer(self, request: InferenceRequest, idempotency_key: str) -> Reply | StreamReply:
        """Answer a request, or give the answer that it was given before.

        Raises:
            Conflict: It is under way, or ended without an answer that was kept.
            Mismatched: The key came with another body.
            PenstockError: As ``RealtimeLane.answer``.
        """
        prefix = job_prefix(request.organisation, idempotency_key)
        last = await self._answers.last_attempt(request.organisation, prefix)
        number = 1
        if last is not None:
            number = last.number
            if last.ended is EventKind.VOIDED:
                number += 1
            else:
                found = await self._stored(request, f"{prefix}-{number}", last.ended)
                if found is not None:
                    return found
        for attempt in range(number, number + ATTEMPTS_AT_ONCE_MAX):
            reservation = f"{prefix}-{attempt}"
            try:
                return await self._attempt(request, reservation)
            except AlreadyReserved as error:
                if error.state == State.VOIDED.value:
                    continue
                ended = None if error.state == State.OPEN.value else EventKind(error.state)
                found = await self._stored(request, reservation, ended)
                if found is None:
                    raise under_way(reservation) from None
                return found
            except Mismatched:
                raise other_body() from None
        raise Conflict("this Idempotency-Key failed too often; use another", code="too_many_attempts")

    async def _attempt(self, request: InferenceRequest, reservation: str) -> Reply | StreamReply:
        kept = _Kept(self, request, reservation)
        request.reservation = reservation
        request.keep = kept.keep
        reply = await self._lane.answer(request)
        if isinstance(reply, StreamReply):
            return StreamReply(_Collected(reply.events, kept), reply.readings)
        kept.told()
        return reply

    async def _stored(
        self, request: InferenceRequest, reservation: str, ended: EventKind | None
    ) -> Reply | StreamReply | None:
        """The answer under this name; None if there is none, and the request may still be under way."""
        result = await self._answers.result(reservation)
        if result is None or result.organisation != request.organisation:
            if ended is EventKind.EXPIRED:
                raise outcome_unknown(reservation)
            if ended in (EventKind.POSTED, EventKind.LATE):
                raise Conflict(
                    "the request with this Idempotency-Key was charged, and its answer was not kept: the client left "
                    "before its end, the model server broke off, or it is too long ago; use a new key to send it again",
                    code="answer_not_kept",
                )
            return None
        if result.arguments["fingerprint"] != request.fingerprint:
            raise other_body()
        if result.body is None:
            code = "answer_too_large" if result.reason == TOO_LARGE else "outcome_unknown"
            why = result.reason or "it has none"
            raise Conflict(
                f"this Idempotency-Key was answered already, and the answer cannot be repeated: {why}; "
                "use a new key to send it again",
                code=code,
            )
        self._go_on(self._settle(result))
        request.record.reservation = reservation
        request.record.extra["repeated"] = 1
        return _replayed(request, result)

    async def _settle(self, result: StoredResult) -> None:
        """Charge what a stored answer cost, unless that was done."""
        if result.settled or result.usage is None:
            return
        call = Settle(
            organisation=result.organisation,
            caller_now_ms=self._clock.now_ms(),
            reservation=result.job,
            usage=result.usage,
        )
        try:
            answer: Any = await self._quota.apply(call)
            if isinstance(answer, Unknown) and self._is_alone:  # a crash may leave an answer whose reserve was not kept
                answer = await self._posting.post(msgspec.convert(result.arguments, Reserve), result.usage)
            if isinstance(answer, Settled | Done | Duplicate):
                await self._answers.mark_settled(result.job)
        except StoreUnavailable as error:
            log.warning("a stored answer is not settled yet", extra={"reservation": result.job, "why": error.message})

    async def store(self, result: StoredResult) -> None:
        """Keep an answer; without it the request is answered all the same, and cannot be repeated."""
        try:
            await self._answers.store(result)
            self._reached(STORED)
        except StoreUnavailable as error:
            log.warning("an answer is not kept", extra={"reservation": result.job, "why": error.message})

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return self._clock.now_ms()

    def settled_later(self, reservation: str) -> None:
        """Note, beside the answer, that it was settled."""
        self._go_on(self._mark(reservation))

    async def _mark(self, reservation: str) -> None:
        try:
            await self._answers.mark_settled(reservation)
        except StoreUnavailable as error:  # settled once more, which changes nothing
            log.info("an answer is not noted as settled", extra={"reservation": reservation, "why": error.message})

    def _go_on(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)


class _Kept:
    """Collects one answer as the client sees it, and stores it before it is settled."""

    def __init__(self, repeating: Repeating, request: InferenceRequest, reservation: str) -> None:
        self._repeating = repeating
        self._request = request
        self._reservation = reservation
        self._began_ms = repeating.now_ms()
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._is_stored = False

    def add(self, piece: bytes) -> None:
        """More of a stream."""
        self._bytes += len(piece)
        if self._bytes <= self._repeating.bytes_max:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    async def keep(self, last: bytes, usage: Usage, reserve: Reserve) -> None:
        """Store the whole answer, which ends in ``last``."""
        self.add(last)
        is_small = self._bytes <= self._repeating.bytes_max
        await self._repeating.store(
            StoredResult(
                job=self._reservation,
                organisation=reserve.organisation,
                model=reserve.model,
                route=reserve.route,
                state=JobState.SUCCEEDED,
                http_status=200,
                body=b"".join(self._pieces).decode("utf-8", "replace") if is_small else None,
                reason="" if is_small else TOO_LARGE,
                usage=usage,
                attempts=max(1, self._request.record.attempts),
                started_at_ms=self._began_ms,
                finished_at_ms=self._repeating.now_ms(),
                arguments=msgspec.to_builtins(reserve),
            )
        )
        self._is_stored = True

    def told(self) -> None:
        """It was settled, if it was stored."""
        if self._is_stored:
            self._is_stored = False
            self._repeating.settled_later(self._reservation)


class _Collected(AsyncGenerator[bytes, None]):
    """A stream's events on their way to the client, collected."""

    def __init__(self, events: AsyncGenerator[bytes, None], kept: _Kept) -> None:
        self._events = events
        self._kept = kept

    def __anext__(self) -> Coroutine[Any, Any, bytes]:
        return self.asend(None)

    async def asend(self, value: None) -> bytes:
        """See ``AsyncGenerator``; the value is not used."""
        try:
            piece = await anext(self._events)
        except StopAsyncIteration:
            self._kept.told()
            raise
        self._kept.add(piece)
        return piece

    async def athrow(self, *error: Any) -> bytes:
        """See ``AsyncGenerator``: closes, then raises."""
        await self.aclose()
        raise error[0]

    async def aclose(self) -> None:
        """The client wants no more."""
        await self._events.aclose()
        self._kept.told()


def _replayed(request: InferenceRequest, result: StoredResult) -> Reply | StreamReply:
    body = (result.body or "").encode()
    return StreamReply(_events(body)) if request.stream else Reply(result.http_status, body)


async def _events(body: bytes) -> AsyncGenerator[bytes, None]:
    for event in body.split(b"\n\n"):
        if event:
            yield event + b"\n\n"
