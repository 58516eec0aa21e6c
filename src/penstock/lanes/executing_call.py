"""A job's call to its model: asked again while that is harmless, counted as it goes, charged as the realtime lane does.

Apart from the executor, which knows when to stop it: this knows at every moment what stopping it would cost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from penstock.errors import UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from penstock.lanes.assembling import Assembly, may_stream
from penstock.lanes.bodies import ANSWER_BYTES_MAX, error_body, upstream_body
from penstock.lanes.calling import CLIENTS_FAULT, Called, Caller, was_sent
from penstock.lanes.chunks import Chunks, RefusedInStream
from penstock.lanes.counting import reported_usage
from penstock.lanes.event_stream import EventSplitter
from penstock.lanes.generic import ROUTE
from penstock.lanes.jobs import Job, JobStatus
from penstock.lanes.measuring import Measures, check_protocol, local_charge, read_whole
from penstock.lanes.models import ServedModel
from penstock.lanes.requests import InferenceRequest, Reply
from penstock.lanes.streaming import drain
from penstock.lanes.upstreams import Verdict
from penstock.ports import Clock, RequestRecord
from penstock.quota.events import Usage

RETRY_FIRST_MS: Final = 1_000
RETRY_MOST_MS: Final = 30_000
FAULTS_MAX: Final = 3
"""How often a model server may fail before any token for a reason that is neither load nor absence."""

Sleep = Callable[[float], Awaitable[None]]
Translation = tuple[dict[str, Any], Callable[..., Any]]
Translations = Mapping[str, Callable[[dict[str, Any]], Translation]]
"""By route: what makes the model's request of a client's, and with it what makes the client's answer of the model's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a job ended, whoever ended it.

    Args:
        body: JSON; null where there is nothing to show.
        usage: To be charged; None: void.
    """

    status: JobStatus
    http_status: int
    body: bytes = b"null"
    reason: str = ""
    usage: Usage | None = None


class ModelCall:
    """One job's call. Cancelling ``answer`` disconnects the model server; then ``usage`` says what it produced.

    Raises:
        InvalidRequest: The model is not what it was when the job was accepted, and does not take it any more.
    """

    def __init__(
        self,
        job: Job,
        model: ServedModel,
        caller: Caller,
        clock: Clock,
        record: RequestRecord,
        sleep: Sleep,
        translations: Translations,
    ) -> None:
        check_protocol(job.route, model)
        self._caller = caller
        self._clock = clock
        self._record = record
        self._sleep = sleep
        self._model = model
        body = job.request
        self._answering: Callable[..., Any] | None = None
        if job.route in translations:
            body, self._answering = translations[job.route](body)
        self._request = _request(job, body, model, record)
        self._body = upstream_body(self._request, model)
        reserve = job.reserve
        measures = Measures(reserve.body_bytes, reserve.prompts, reserve.prompt_tokens, reserve.outputs_bound)
        self._bounds = measures.bounds(model)
        self._chunks: Chunks | None = None
        self._was_sent = False
        self.last_error = ""

    @property
    def usage(self) -> Usage | None:
        """What is to be charged if it ends now; None: nothing that counts was sent."""
        if not self._was_sent:
            return None
        return self._reported() or self._local(0 if self._chunks is None else self._chunks.tokens)

    def progress(self) -> tuple[int, int]:
        """Prompt tokens if the model server counted them, else 0, and completion tokens so far."""
        reported = self._reported()
        if reported is not None:
            return reported.prompt, reported.completion
        return 0, 0 if self._chunks is None else min(self._chunks.tokens, self._bounds.completion)

    async def answer(self) -> Ending:
        """Ask until there is an answer, or a failure that asking again would not mend; waits as servers ask."""
        backoff_ms, faults = RETRY_FIRST_MS, 0
        while True:
            self._was_sent = True  # while nobody can say that it was not
            self._chunks = None
            try:
                return await self._asked()
            except UpstreamError as error:
                failed = error
            self._was_sent = self._has_cost(failed)
            if self._was_sent or failed.status in CLIENTS_FAULT:
                return self._failed(failed)
            if failed.retry_after_ms is not None:
                wait_ms = failed.retry_after_ms
            else:
                faults += not isinstance(failed, UpstreamUnreachable | UpstreamTimeout)
                if faults == FAULTS_MAX:
                    return self._failed(failed)
                wait_ms, backoff_ms = backoff_ms, min(RETRY_MOST_MS, 2 * backoff_ms)
            self.last_error = failed.message
            await self._sleep(wait_ms / 1000)

    # --- one attempt -----------------------------------------------------------------------------------------

    async def _asked(self) -> Ending:
        called = await self._caller.open(self._model, self._request.route, self._body, self._record)
        verdict = Verdict.NOTHING
        try:
            is_stream = called.response.headers.get("content-type", "").startswith("text/event-stream")
            answer, usage = await (self._streamed(called) if is_stream else self._whole(called))
            verdict = Verdict.WORKED
        except UpstreamError:
            verdict = Verdict.FAILED
            raise
        finally:
            self._caller.release(called, verdict)
        if self._answering is not None:
            now_s, reservation = self._clock.now_ms() // 1000, self._record.reservation
            reply = self._answering(Reply(200, answer), reservation=reservation, model=self._model.name, now_s=now_s)
            answer = reply.body
        return Ending(status=JobStatus.SUCCEEDED, http_status=200, body=answer, usage=usage)

    async def _whole(self, called: Called) -> tuple[bytes, Usage]:
        data = await called.response.read(ANSWER_BYTES_MAX)
        return read_whole(data, self._request, self._model, self._bounds)

    async def _streamed(self, called: Called) -> tuple[bytes, Usage]:
        chunks = self._chunks = Chunks(
            name=self._model.name, include_usage=False, bytes_per_token=self._model.bytes_per_token
        )
        splitter = EventSplitter()
        assembly = Assembly(self._request.route)
        received_bytes = 0
        pieces = called.response.chunks()
        while not chunks.is_done:
            try:
                piece = await anext(pieces)
            except StopAsyncIteration:
                assembly.add(chunks.end(splitter.rest()))
                break
            received_bytes += len(piece)
            if received_bytes > ANSWER_BYTES_MAX:
                raise UpstreamBroken(f"the model server's answer has more than {ANSWER_BYTES_MAX} bytes")
            assembly.add(chunks.feed(splitter.feed(piece)))
            self._note(chunks)
            if chunks.failure is not None:
                raise chunks.failure
        await drain(pieces)
        usage = self.usage
        assert usage is not None
        return assembly.whole(usage), usage

    def _note(self, chunks: Chunks) -> None:
        record = self._record
        if record.chunks == 0 and chunks.events:
            record.first_token_ms = (self._clock.monotonic_s() - record.received_at_s) * 1000
        record.chunks = chunks.events

    # --- charging --------------------------------------------------------------------------------------------

    def _failed(self, error: UpstreamError) -> Ending:
        usage = self.usage
        status, code = 502, "upstream_error"
        if isinstance(error, UpstreamTimeout):
            status, code = 504, "upstream_timeout"
        elif error.status is not None:
            status = error.status
        body = error.body or error_body(error.message, code)
        return Ending(status=JobStatus.FAILED, http_status=status, body=body, reason=error.message, usage=usage)

    def _has_cost(self, error: UpstreamError) -> bool:
        if self._chunks is not None and self._chunks.tokens:
            return True
        return was_sent(error) and not isinstance(error, RefusedInStream)

    def _reported(self) -> Usage | None:
        return None if self._chunks is None else reported_usage(self._chunks.usage, self._bounds)

    def _local(self, completion: int) -> Usage:
        return local_charge(self._request, self._model, self._bounds, completion)


def _request(job: Job, body: dict[str, Any], model: ServedModel, record: RequestRecord) -> InferenceRequest:
    """The job as the realtime lane would see it; never more output than was reserved.

    Args:
        body: As its model gets it.
    """
    reserve = job.reserve
    is_stream = False
    if job.route != ROUTE:
        body = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
        is_stream = job.route != "embeddings" and may_stream(body)
    if is_stream:
        body["stream"] = True
    outputs = 0
    if job.route not in (ROUTE, "embeddings"):
        outputs = max(1, reserve.prompts) * max(_count(body, "n"), _count(body, "best_of"))
    tokens_max = reserve.outputs_bound // max(1, outputs)
    asked = body.get("max_completion_tokens", body.get("max_tokens"))
    return InferenceRequest(
        organisation=job.organisation,
        key=reserve.key,
        key_mac=reserve.key_mac,
        route=job.route,
        model=model.name,
        body=body,
        fingerprint=reserve.fingerprint,
        body_bytes=job.received_bytes or reserve.body_bytes,
        prompts=reserve.prompts,
        outputs=outputs,
        max_tokens=min(asked, tokens_max) if type(asked) is int else tokens_max,
        stream=is_stream,
        include_usage=False,
        record=record,
        prompt_tokens=reserve.prompt_tokens,
    )


def _count(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    return max(1, value) if type(value) is int else 1
