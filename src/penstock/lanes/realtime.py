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

from penstock.errors import StoreUnavailable, UpstreamError
from penstock.lanes.admission import Admission
from penstock.lanes.bodies import ANSWER_BYTES_MAX, upstream_body
from penstock.lanes.calling import Called, Caller
from penstock.lanes.leases import Leases
from penstock.lanes.measuring import Measures, measure, model_not_found, read_whole
from penstock.lanes.models import ServedModel
from penstock.lanes.refusals import refusal_error
from penstock.lanes.requests import InferenceRequest, Reply, StreamReply
from penstock.lanes.settling import RetryInProcess, Settling
from penstock.lanes.streaming import AnswerStream
from penstock.lanes.tracing import nonce_of
from penstock.lanes.upstreams import Verdict
from penstock.ports import Clock, Observer, QuotaStore, Spool, UpstreamClient
from penstock.quota.definitions import Overrun
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
            raise model_not_found(request.model)
        measures = measure(request, model)
        body = upstream_body(request, model)
        admission = await self._admit(request, model, measures)
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
            body, usage = read_whole(data, admission.request, admission.model, admission.bounds)
        except UpstreamError as error:
            raise await admission.fail(error) from error
        except asyncio.CancelledError:
            admission.release(Verdict.NOTHING)
            await admission.settle(admission.local(0))
            raise
        admission.release(Verdict.WORKED)
        await admission.finish(usage, body)
        return Reply(200, body, admission.request.readings)

    async def _admit(self, request: InferenceRequest, model: ServedModel, measures: Measures) -> Admission:
        reserve = self._reserve_call(request, model, measures)
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
            bounds=measures.bounds(model),
            clock=self._clock,
            caller=self.caller,
            settling=self._settling,
            leases=self.leases,
        )
        admission.begin()
        return admission

    def _reserve_call(self, request: InferenceRequest, model: ServedModel, measures: Measures) -> Reserve:
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
            body_bytes=measures.body_bytes,
            prompt_tokens=measures.prompt_tokens,
            prompts=measures.prompts,
            outputs_bound=measures.outputs_bound,
            lane=Lane.REALTIME,
            job_deadline_ms=now_ms + int((model.connect_s + model.total_s + SETTLE_MARGIN_S) * 1000),
        )
