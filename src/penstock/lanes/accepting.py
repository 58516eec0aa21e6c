"""Takes requests over that are answered later, and says which job each became.

Apart from running them, since in a cluster somebody else does both: there the request is forwarded to the gateway
(``penstock.lanes.forwarding``). Here, in the embedded default::

    reserve (durable) -> into the queue (durable) -> the client is told

What a crash in between leaves is a hold that nobody queued, which the next start voids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Protocol, TypeVar

import msgspec

from penstock.errors import Conflict, InvalidRequest, Mismatched, StoreUnavailable
from penstock.lanes.bodies import bound_outputs
from penstock.lanes.jobs import TRANSLATED, Job, write_job
from penstock.lanes.measuring import Measures, measure, model_not_found
from penstock.lanes.models import ServedModel
from penstock.lanes.queueing import QUEUED, RESERVED, Queue, unnoticed
from penstock.lanes.refusals import refusal_error
from penstock.lanes.requests import InferenceRequest
from penstock.lanes.settling import Settling
from penstock.lanes.tracing import nonce_of
from penstock.ports import Attempt, Clock, Jobs, QuotaStore
from penstock.quota.events import EventKind
from penstock.quota.identity import reservation_id
from penstock.quota.operations import (
    Denied,
    Duplicate,
    Lane,
    Mismatch,
    NoKey,
    Reading,
    Reserve,
    ReserveAnswer,
    Reserved,
    State,
    Void,
)

STORED_ANSWER_BYTES_MAX: Final = 1_000_000
KEY_CHARACTERS_MAX: Final = 255
ATTEMPTS_AT_ONCE_MAX: Final = 100

T = TypeVar("T")
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncRequest:
    """A request that was parsed and found well-formed, and is to be answered later.

    Args:
        raw: Its body as received, to be forwarded.
        key_macs: The key's HMAC under each live pepper; any may be the right one.
        idempotency_key: Unquoted; None if the client sent none.
        authorization: The header as received, to be forwarded.
        traceparent: The same.
    """

    request: InferenceRequest
    raw: bytes
    key_macs: tuple[str, ...]
    idempotency_key: str | None
    authorization: str
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class Accepted:
    """It is a job now, and safe. ``headers`` are to be passed on, with lower-case names."""

    job: str
    readings: tuple[Reading, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Replayed:
    """Its idempotency key's job has ended: this is what was answered."""

    job: str
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Relayed:
    """Somebody else answered, and this is passed on. ``headers`` have lower-case names."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...]


Acceptance = Accepted | Replayed | Relayed


class Acceptor(Protocol):
    """Takes requests over."""

    async def accept(self, asked: AsyncRequest) -> Acceptance:
        """Take one over. A client that leaves meanwhile does not undo it.

        Raises:
            PenstockError: It was not taken over, and holds nothing; or its idempotency key stands in the way.
        """
        ...


def job_prefix(organisation: str, idempotency_key: str) -> str:
    """What the ids of all jobs of an idempotency key begin with; a hyphen and the attempt's number follow.

    Twelve zeros stand where other ids carry their time.

    Example:
        >>> job_prefix("acme", "order-7")
        '000000000000a48cf02af522454dd468'
    """
    return "0" * 12 + sha256(f"{organisation}\n{idempotency_key}".encode()).hexdigest()[:20]


def read_idempotency_key(header: str) -> str:
    """The key of an ``Idempotency-Key`` header, bare or quoted.

    Raises:
        InvalidRequest: It is empty, too long, or not printable.
    """
    key = header[1:-1] if len(header) >= 2 and header[0] == header[-1] == '"' else header
    if not 0 < len(key) <= KEY_CHARACTERS_MAX or not key.isascii() or not key.isprintable():
        raise InvalidRequest(
            f"Idempotency-Key: must be 1 to {KEY_CHARACTERS_MAX} printable ASCII characters, bare or in double quotes",
            param="Idempotency-Key",
        )
    return key


class QueueAcceptor:
    """Accepts into this process's own queue.

    Args:
        deadline_ms: How long after its acceptance a job may still begin and end.
        random_bits: For ids, which must differ and are no secret.
        reached: Called at each crash point.
    """

    def __init__(
        self,
        quota: QuotaStore,
        jobs: Jobs,
        queue: Queue,
        settling: Settling,
        clock: Clock,
        models: Mapping[str, ServedModel],
        *,
        deadline_ms: int,
        random_bits: Callable[[int], int],
        reached: Callable[[str], None] = unnoticed,
    ) -> None:
        self._quota = quota
        self._jobs = jobs
        self._queue = queue
        self._settling = settling
        self._clock = clock
        self._models = models
        self._deadline_ms = deadline_ms
        self._random_bits = random_bits
        self._reached = reached
        self._under_way: set[asyncio.Task[Any]] = set()

    async def accept(self, asked: AsyncRequest) -> Acceptance:
        """See ``Acceptor.accept``."""
        request = asked.request
        model = self._models.get(request.model)
        if model is None:
            raise model_not_found(request.model)
        measures = measure(request, model)
        bound_outputs(request, model)
        if asked.idempotency_key is not None:
            return await self._finished(self._accept_keyed(asked, measures, asked.idempotency_key))
        job = reservation_id(self._clock.now_ms(), self._random_bits(80))
        return await self._finished(self._accept_new(asked, measures, job))

    async def close(self) -> None:
        """Wait for what is under way."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    async def _finished(self, work: Coroutine[Any, Any, T]) -> T:
        """Let it come to its end even if the client leaves: half of it would leave a hold behind."""
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _accept_new(self, asked: AsyncRequest, measures: Measures, job: str) -> Accepted:
        reserve, answer = await self._reserve(asked, measures, job)
        if not isinstance(answer, Reserved):
            raise refusal_error(answer)
        return await self._enqueue(asked, measures, reserve, answer)

    async def _accept_keyed(self, asked: AsyncRequest, measures: Measures, key: str) -> Acceptance:
        """The first attempt that was not voided decides; what the quota has forgotten, the ledger knows."""
        prefix = job_prefix(asked.request.organisation, key)
        last = await self._jobs.last_attempt(asked.request.organisation, prefix)
        number = 1
        if last is not None:
            number = last.number
            if last.ended is not None and (last.ended is EventKind.VOIDED or last.job is None):
                number += 1  # charged nothing, or so long ago that its answer was forgotten
            elif last.ended is not None:
                return stored_answer(last, asked.request.fingerprint)
        for attempt in range(number, number + ATTEMPTS_AT_ONCE_MAX):
            reserve, answer = await self._reserve(asked, measures, f"{prefix}-{attempt}")
            match answer:
                case Reserved():
                    return await self._enqueue(asked, measures, reserve, answer)
                case Duplicate(State.VOIDED):
                    continue
                case Duplicate(State.OPEN):
                    raise under_way(reserve.reservation)
                case Duplicate(State.EXPIRED):
                    raise outcome_unknown(reserve.reservation)
                case Duplicate():  # it ended between the two questions
                    last = await self._jobs.last_attempt(asked.request.organisation, prefix)
                    if last is not None and last.ended is not None:
                        return stored_answer(last, asked.request.fingerprint)
                    raise under_way(reserve.reservation)
                case Mismatch():
                    raise other_body()
                case _:
                    raise refusal_error(answer)
        raise Conflict("this Idempotency-Key was cancelled too often; use another", code="too_many_attempts")

    async def _reserve(self, asked: AsyncRequest, measures: Measures, job: str) -> tuple[Reserve, ReserveAnswer]:
        request = asked.request
        answer: ReserveAnswer = NoKey()
        began_s = self._clock.monotonic_s()
        nonce = nonce_of(request.record.trace, self._random_bits(80))
        for mac in asked.key_macs:
            request.key_mac = mac
            reserve = self._reserve_call(request, measures, job, nonce)
            try:
                answer = await self._quota.apply(reserve)
            except StoreUnavailable:  # it may have been granted
                self._settling.void_later(self._void(reserve, "the answer to its reserve was lost"), reserve)
                raise
            if not isinstance(answer, NoKey):
                break
        record = request.record
        record.reserved_ms = (self._clock.monotonic_s() - began_s) * 1000
        if isinstance(answer, Denied):
            record.denied_by = answer.limit
        if isinstance(answer, Reserved):
            self._reached(RESERVED)
            record.reservation = job
            record.tokens_held = answer.tokens_held
            request.readings = answer.readings
        return reserve, answer

    def _reserve_call(self, request: InferenceRequest, measures: Measures, job: str, nonce: str) -> Reserve:
        now_ms = self._clock.now_ms()
        return Reserve(
            organisation=request.organisation,
            caller_now_ms=now_ms,
            reservation=job,
            nonce=nonce,
            fingerprint=request.fingerprint,
            key=request.key,
            key_mac=request.key_mac,
            route=request.route,
            model=request.model,
            body_bytes=measures.body_bytes,
            prompt_tokens=measures.prompt_tokens,
            prompts=measures.prompts,
            outputs_bound=measures.outputs_bound,
            lane=Lane.QUEUE,
            job_deadline_ms=now_ms + self._deadline_ms,
        )

    async def _enqueue(self, asked: AsyncRequest, measures: Measures, reserve: Reserve, answer: Reserved) -> Accepted:
        request = asked.request
        job = Job(
            job=reserve.reservation,
            organisation=request.organisation,
            epoch=answer.epoch,
            route=request.route,
            model=reserve.model,
            request_id=request.record.request_id,
            accepted_at_ms=reserve.caller_now_ms,
            reserve=reserve,
            request=_decode(asked.raw) if request.route in TRANSLATED else request.body,
            received_bytes=measures.received_bytes,
        )
        try:
            await self._queue.put(job.job, job.organisation, job.model, write_job(job))
        except StoreUnavailable:
            self._settling.void_later(self._void(reserve, "it could not be queued"), reserve)
            raise
        self._reached(QUEUED)
        return Accepted(job.job, answer.readings)

    def _void(self, reserve: Reserve, reason: str) -> Void:
        return Void(
            organisation=reserve.organisation,
            caller_now_ms=self._clock.now_ms(),
            reservation=reserve.reservation,
            reason=reason,
        )


def stored_answer(last: Attempt, fingerprint: str) -> Replayed:
    """What the ended job of an idempotency key answered; ``last.job`` is there.

    Raises:
        Mismatched: It was asked with another body.
        Conflict: There is no answer, or it is too large to be repeated.
    """
    job = last.job
    assert job is not None
    if last.fingerprint is not None and last.fingerprint != fingerprint:
        raise other_body()
    if last.ended is EventKind.EXPIRED or job.body is None:
        raise outcome_unknown(job.id)
    body = job.body.encode()
    if len(body) > STORED_ANSWER_BYTES_MAX:
        raise Conflict(
            f"this Idempotency-Key was answered already, with {len(body)} bytes, more than are repeated here; "
            f"GET /v1/jobs/{job.id} has the answer",
            code="answer_too_large",
        )
    return Replayed(job.id, job.http_status, body)


def under_way(job: str) -> Conflict:
    """For a key whose request has not ended."""
    return Conflict(
        f"the request with this Idempotency-Key is under way; send it again later, or, if it is a job, follow it: "
        f"GET /v1/jobs/{job}",
        code="request_under_way",
    )


def outcome_unknown(job: str) -> Conflict:
    """For a key whose request ended, and nobody can say how."""
    return Conflict(
        f"the request with this Idempotency-Key ({job}) ended without an answer, and may have been charged; "
        "use a new key to send it again",
        code="outcome_unknown",
    )


def other_body() -> Mismatched:
    """For a key that stands for another request."""
    return Mismatched(
        "this Idempotency-Key came with another body before; use a new key for a new request",
        param="Idempotency-Key",
        code="idempotency_mismatch",
    )
