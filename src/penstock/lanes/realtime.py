"""The realtime lane: a request is answered in the connection that it came by.

::

    reserve -> call -> (whole answer | events) -> settle -> last byte
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Mapping
from typing import Final

from penstock.errors import InvalidRequest, NotFound, StoreUnavailable, UpstreamError
from penstock.lanes.admission import Admission
from penstock.lanes.bodies import ANSWER_BYTES_MAX, output_tokens_max, read_answer, upstream_body
from penstock.lanes.calling import Called, Caller
from penstock.lanes.counting import Bounds
from penstock.lanes.generic import ROUTE, read_inference
from penstock.lanes.leases import Leases
from penstock.lanes.models import ServedModel
from penstock.lanes.refusals import refusal_error
from penstock.lanes.requests import InferenceRequest, Reply, StreamReply
from penstock.lanes.settling import RetryInProcess, Settling
from penstock.lanes.streaming import AnswerStream
from penstock.lanes.tracing import nonce_of
from penstock.lanes.upstreams import Verdict
from penstock.ports import Clock, Observer, QuotaStore, Spool, UpstreamClient
from penstock.quota.definitions import Overrun
from penstock.quota.estimate import BODY_UNBOUNDED
from penstock.quota.events import Usage
from penstock.quota.identity import reservation_id
from penstock.quota.operations import Denied, Lane, Reserve, Reserved, Void

SETTLE_MARGIN_S: Final = 30.0  # between the upstream's last moment and the reservation's deadline


class RealtimeLane:
    """Answers requests and accounts for them. ``caller`` and ``models`` serve the queue lane of this process too.

    Args:
        models: By the name that clients use.
        spool: Takes what the store does not acknowledge; by default it is tried again in this process.
        overrun: An organisation's policy for streams that outgrow a hold that was an estimate.
        random_bits: For reservation ids, which must differ and are no secret.
    """

    def __init__(
        self,
        quota: QuotaStore,
        client: UpstreamClient,
        clock: Clock,
        models: Mapping[str, ServedModel],
        *,
        observer: Observer,
        spool: Spool | None = None,
        overrun: Callable[[str], Overrun] = lambda organisation: Overrun.STOP,
        random_bits: Callable[[int], int] | None = None,
    ) -> None:
        self._quota = quota
        self._clock = clock
        self.models = models
        self._overrun = overrun
        self._random_bits = random_bits or random.Random(secrets.randbits(256)).getrandbits
        self.caller = Caller(client, clock, observer, models.values())
        self._retries = RetryInProcess(quota)
        self._settling = Settling(quota, self._retries if spool is None else spool)
        self.leases = Leases(quota, clock)

    async def start(self) -> None:
        """Begin to renew leases."""
        await self.leases.start()

    async def close(self) -> None:
        """Call it when no request is in flight: waits until each settle is with the store or the spool."""
        await self.leases.close()
        await self._settling.close()
        await self._retries.close()

    async def answer(self, request: InferenceRequest) -> Reply | StreamReply:
        """Answer one request. Cancelling this disconnects the model server and charges what it produced.

        Raises:
            RequestError: The model does not exist, or the key does not allow the request.
            QuotaDenied: A limit refused.
            StoreUnavailable: The quota cannot be asked.
            UpstreamError: The model server failed, or refused. ``status`` is set if the client is to see it.
        """
        model = self.models.get(request.model)
        if model is None:
            raise NotFound(
                f"the model {request.model[:200]!r} does not exist; GET /v1/models lists those that do",
                param="model",
                code="model_not_found",
            )
        if model.units is not None or request.route == ROUTE:
            _count_units(request, model)
        body = upstream_body(request, model)
        admission = await self._admit(request, model)
        try:
            called = await self.caller.open(model, request.route, body, request.record)
        except UpstreamError as error:
            raise await admission.fail(error) from error
        except asyncio.CancelledError:
            await admission.settle(admission.local(0))
            raise
        admission.called = called
        if admission.is_cancelled:  # while nobody had answered yet
            called.response.close()
        if request.stream:
            stream = AnswerStream(admission, called, self._quota, self._overrun(request.organisation))
            await stream.begin()
            return StreamReply(stream, request.readings, stream.pour)
        return await self._whole(admission, called)

    async def _whole(self, admission: Admission, called: Called) -> Reply:
        try:
            data = await called.response.read(ANSWER_BYTES_MAX)
            body, usage = _read(admission, data)
        except UpstreamError as error:
            raise await admission.fail(error) from error
        except asyncio.CancelledError:
            admission.release(Verdict.NOTHING)
            await admission.settle(admission.local(0))
            raise
        admission.release(Verdict.WORKED)
        await admission.finish(usage, body)
        return Reply(200, body, admission.request.readings)

    async def _admit(self, request: InferenceRequest, model: ServedModel) -> Admission:
        reserve = self._reserve_call(request, model)
        try:
            answer = await self._quota.apply(reserve)
        except (StoreUnavailable, asyncio.CancelledError):  # it may have been granted: void it when possible
            void = Void(
                organisation=reserve.organisation,
                caller_now_ms=self._clock.now_ms(),
                reservation=reserve.reservation,
                reason="the answer to its reserve was lost",
            )
            self._settling.void_later(void, reserve)
            raise
        record = request.record
        record.reserved_ms = (self._clock.monotonic_s() - record.received_at_s) * 1000
        if not isinstance(answer, Reserved):
            if isinstance(answer, Denied):
                record.denied_by = answer.limit
            raise refusal_error(answer)
        record.reservation = reserve.reservation
        record.tokens_held = answer.tokens_held
        request.readings = answer.readings
        admission = Admission(
            request=request,
            model=model,
            reserve=reserve,
            tokens_held=answer.tokens_held,
            bounds=Bounds(
                prompt=model.context * max(1, request.prompts),
                completion=reserve.outputs_bound,
                prompt_bytes=request.body_bytes,
            ),
            clock=self._clock,
            caller=self.caller,
            settling=self._settling,
            leases=self.leases,
        )
        admission.begin()
        return admission

    def _reserve_call(self, request: InferenceRequest, model: ServedModel) -> Reserve:
        now_ms = self._clock.now_ms()
        random_bits = self._random_bits(80)
        reservation = request.reservation or reservation_id(now_ms, random_bits)
        return Reserve(
            organisation=request.organisation,
            caller_now_ms=now_ms,
            reservation=reservation,
            nonce=nonce_of(request.record.trace, random_bits),
            fingerprint=request.fingerprint,
            key=request.key,
            key_mac=request.key_mac,
            route=request.route,
            model=model.name,
            body_bytes=BODY_UNBOUNDED if model.units and request.prompt_tokens is None else request.body_bytes,
            prompt_tokens=request.prompt_tokens,
            prompts=request.prompts,
            outputs_bound=request.outputs * output_tokens_max(request, model),
            lane=Lane.REALTIME,
            job_deadline_ms=now_ms + int((model.connect_s + model.total_s + SETTLE_MARGIN_S) * 1000),
        )


def _count_units(request: InferenceRequest, model: ServedModel) -> None:
    """Find out what a generic model's request holds; a model of one protocol does not answer the other's requests."""
    units = model.units
    if units is None or request.route != ROUTE:
        fix = "POST /v2/models/{name}/infer" if units else "one of /v1, such as POST /v1/chat/completions"
        raise InvalidRequest(f"the model does not answer this endpoint, but {fix}", param="model")
    known = request.prompt_tokens = units.known(request.body, request.body_bytes)
    if known is not None and known > model.context:
        raise InvalidRequest(f"the request has {known} units, and this model takes {model.context} in one; send less")


def _read(admission: Admission, data: bytes) -> tuple[bytes, Usage]:
    """A whole answer as the client sees it, and what it is charged."""
    model, bounds = admission.model, admission.bounds
    if model.units is not None:
        known = admission.request.prompt_tokens
        body, usage = read_inference(data, model.name, model.units, known, most=bounds.prompt)
        return body, usage or admission.local(0)
    answer = read_answer(data, bounds, model.bytes_per_token)
    usage = admission.local(answer.tokens) if answer.usage is None else answer.usage
    return answer.body(model.name, usage), usage
