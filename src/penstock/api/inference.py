"""The hot path: the endpoints that reserve, call a model and settle.

Bare ASGI, since a framework's request and response objects cost more here than the quota does. One request::

    head -> credential -> body -> shape -> lane.answer -> whole answer | events
              401 415       413      400     429 503 502 ...

The client is watched from the moment its body is complete; when it leaves, the task is cancelled, which cancels the
work upstream and settles what was produced.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from hashlib import blake2b

from penstock.api.bodies import READERS, UNBOUNDED_BYTES, Shape, decode
from penstock.api.deferring import Deferring, check_scope
from penstock.api.departure import Receive
from penstock.api.exchange import Exchange, Scope, Send
from penstock.api.failures import BUG, STOPPING, failure
from penstock.api.generic import inferred_model, read_inference_request
from penstock.api.headers import rate_headers
from penstock.api.identification import request_id, traceparent_of
from penstock.api.permissions import ASYNC_PREFIX
from penstock.api.preferences import read_preference
from penstock.api.responses import read_response
from penstock.api.services import Services
from penstock.errors import (
    MethodNotAllowed,
    PenstockError,
    RequestError,
    TooLarge,
    TooSlow,
    Unauthenticated,
    UnsupportedMedia,
)
from penstock.lanes.accepting import read_idempotency_key
from penstock.lanes.credentials import Credential
from penstock.lanes.generic import ROUTE
from penstock.lanes.requests import InferenceRequest, Reply, StreamReply
from penstock.ports import RequestRecord

_log = logging.getLogger("penstock.api")
_EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
_BEARER = b"bearer "
_READERS: dict[str, Callable[..., Shape]] = {**READERS, "responses": read_response}
GONE_STATUS = 499  # nobody reads it; nginx's name for a client that left


class ClientGone(Exception):
    """The client left before its body was complete."""


class Inference:
    """Serves the hot paths."""

    def __init__(self, services: Services) -> None:
        self._lane = services.lane
        self._repeating = services.repeating
        self._keys = services.keys
        self._credentials = services.credentials
        self._subjects = services.subjects
        self._observer = services.observer
        self._monotonic_s = services.clock.monotonic_s
        self._now_ms = services.clock.now_ms
        self._bounds = services.bounds
        self._deferring = Deferring(services)
        self._tracer = services.tracer

    async def __call__(self, route: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request to ``route``, one of ``_READERS``; the observer sees it start and finish once."""
        received_at_s = self._monotonic_s()
        authorization = content_type = asked_id = None
        content_bytes = prefer = b""
        repeat_key = None
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value
            elif name == b"content-type":
                content_type = value
            elif name == b"content-length":
                content_bytes = value
            elif name == b"x-request-id":
                asked_id = value
            elif name == b"idempotency-key":
                repeat_key = value
            elif name == b"prefer":
                prefer = value if not prefer else prefer + b"," + value
        record = RequestRecord(request_id=request_id(asked_id), route=route, received_at_s=received_at_s)
        exchange = Exchange(scope, receive, send, record)
        exchange.repeat_key = repeat_key
        if self._tracer is not None:
            record.trace = self._tracer.begin(record, traceparent_of(scope["headers"]))
        self._observer.started(record)
        try:
            await self._guarded(exchange, authorization, content_type, content_bytes, prefer)
        finally:
            exchange.ignore_departure()
            record.total_ms = (self._monotonic_s() - received_at_s) * 1000
            self._observer.finished(record)

    async def _guarded(
        self,
        exchange: Exchange,
        authorization: bytes | None,
        content_type: bytes | None,
        content_bytes: bytes,
        prefer: bytes,
    ) -> None:
        """Whatever goes wrong becomes an answer; a bug is logged with the request's id and survived."""
        record = exchange.record
        request: InferenceRequest | None = None
        try:
            credential = self._check_head(exchange, authorization, content_type, content_bytes)
            if credential is None:
                credential = await self._subject(record, authorization)
            raw = exchange.wire.take_body() if exchange.wire is not None else None
            raw = await self._read(exchange.receive) if raw is None else self._bounded([raw])
            request = self._request(exchange, credential, raw)
            exchange.watch_departure()
            if prefer or exchange.scope["path"].startswith(ASYNC_PREFIX):
                preference = read_preference(prefer)
                if preference.responds_async or exchange.scope["path"].startswith(ASYNC_PREFIX):
                    sent = exchange.scope["headers"]
                    deferred = await self._deferring.answer(request, credential, raw, sent, preference)
                    if exchange.answering is not None and deferred.status == 200:  # of a key that was answered at once
                        told = self._in_its_words(exchange.answering, Reply(200, deferred.body), request)
                        assert type(told) is Reply
                        deferred = deferred._replace(body=told.body)
                    await exchange.whole(*deferred)
                    return
            if exchange.repeat_key is None:
                reply = await self._answer(self._lane.answer, request, credential)
            else:
                reply = await self._repeat(exchange.repeat_key, request, credential)
            if exchange.answering is not None:
                reply = self._in_its_words(exchange.answering, reply, request)
            if type(reply) is Reply:
                await exchange.whole(reply.status, reply.body, reply.readings, [])
            else:
                assert isinstance(reply, StreamReply)
                await self._stream(exchange, reply)
        except PenstockError as error:
            record.error = "" if isinstance(error, RequestError) else error.message
            await exchange.fail(failure(error), request.readings if request is not None else ())
        except ClientGone:
            record.status, record.outcome = GONE_STATUS, "client_gone"
        except asyncio.CancelledError:
            await self._cancelled(exchange)
        except Exception as error:  # noqa: BLE001 - a bug must end one request only
            _log.exception("request %s: a bug ended it", record.request_id)
            record.error = type(error).__name__
            await exchange.fail(BUG)

    async def _cancelled(self, exchange: Exchange) -> None:
        """The client left, or the service stops and did not wait any longer."""
        departure = exchange.departure
        if departure is not None and departure.happened:
            departure.forgive()
            exchange.record.outcome = "client_gone"
            if not exchange.started:
                exchange.record.status = GONE_STATUS
            return
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        await exchange.fail(STOPPING)

    def _check_head(
        self, exchange: Exchange, authorization: bytes | None, content_type: bytes | None, content_bytes: bytes
    ) -> Credential | None:
        """The key that was shown; None if it is none, but may be a token."""
        if exchange.scope["method"] != "POST":
            raise MethodNotAllowed("this endpoint answers POST only", param="POST")
        credential = None
        if authorization is not None and authorization[:7].lower() == _BEARER:
            credential = self._credentials.read(authorization[7:].strip())
        if credential is not None:
            exchange.record.organisation = credential.organisation
            exchange.record.key = credential.key
        elif self._subjects is None:
            raise Unauthenticated("no well-formed key")
        if content_type != b"application/json" and (
            content_type is None or content_type.partition(b";")[0].strip().lower() != b"application/json"
        ):
            raise UnsupportedMedia("the body must be declared as content-type: application/json")
        if content_bytes and int(content_bytes) > self._bounds.body_bytes_max:
            raise self._too_large()
        return credential

    async def _subject(self, record: RequestRecord, authorization: bytes | None) -> Credential:
        """Whose token was shown."""
        credential = None
        if self._subjects is not None and authorization is not None and authorization[:7].lower() == _BEARER:
            credential = await self._subjects.read(authorization[7:].strip())
        if credential is None:
            raise Unauthenticated("neither a well-formed key nor a token in force")
        record.organisation = credential.organisation
        record.key = credential.key
        return credential

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"the body is larger than {self._bounds.body_bytes_max} bytes; send less", code="body_too_large"
        )

    async def _read(self, receive: Receive) -> bytes:
        """The whole body; most come in one piece."""
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        if not message.get("more_body", False):
            return self._bounded([message["body"]])
        try:
            async with asyncio.timeout(self._bounds.body_s):
                return await self._read_rest(receive, message["body"])
        except TimeoutError:
            raise TooSlow(f"the body did not arrive within {self._bounds.body_s:g} s; send it again") from None

    async def _read_rest(self, receive: Receive, first: bytes) -> bytes:
        pieces = [first]
        read_bytes = len(first)
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            read_bytes += len(piece)
            if read_bytes > self._bounds.body_bytes_max:
                raise self._too_large()
            pieces.append(piece)
            if not message.get("more_body", False):
                return b"".join(pieces)

    def _bounded(self, pieces: list[bytes]) -> bytes:
        (body,) = pieces
        if len(body) > self._bounds.body_bytes_max:
            raise self._too_large()
        return body

    def _request(self, exchange: Exchange, credential: Credential, raw: bytes) -> InferenceRequest:
        record = exchange.record
        body = decode(raw, depth_max=self._bounds.json_depth_max)
        hashed = raw
        if record.route == ROUTE:
            model = inferred_model(exchange.scope["path"]) or ""
            shape = read_inference_request(body, model=model)
            hashed = b"%s\n%s" % (model.encode(), raw)
        else:
            shape = _READERS[record.route](body, prompts_max=self._bounds.prompts_max)
        exchange.answering = shape.answering
        record.model = shape.model
        record.stream = shape.stream
        if credential.scope is not None:
            credential.scope.check(record.route, shape.model)
        return InferenceRequest(
            organisation=credential.organisation,
            key=credential.key,
            key_mac=credential.macs[0],
            route=record.route,
            model=shape.model,
            body=body,
            fingerprint=blake2b(hashed, digest_size=16).hexdigest(),
            body_bytes=max(len(raw), shape.bytes_least) if shape.bytes_bound else UNBOUNDED_BYTES,
            prompts=shape.prompts,
            outputs=shape.outputs,
            max_tokens=shape.max_tokens,
            stream=shape.stream,
            include_usage=shape.include_usage,
            record=record,
        )

    def _in_its_words(
        self, answering: Callable[..., Reply | StreamReply], reply: Reply | StreamReply, request: InferenceRequest
    ) -> Reply | StreamReply:
        now_s = self._now_ms() // 1000
        return answering(reply, reservation=request.record.reservation, model=request.model, now_s=now_s)

    async def _repeat(self, header: bytes, request: InferenceRequest, credential: Credential) -> Reply | StreamReply:
        """Answer what may have been answered before."""
        key = read_idempotency_key(header.decode("latin-1"))
        await check_scope(self._keys, request, credential)
        return await self._answer(partial(self._repeating.answer, idempotency_key=key), request, credential)

    async def _answer(
        self,
        ask: Callable[[InferenceRequest], Awaitable[Reply | StreamReply]],
        request: InferenceRequest,
        credential: Credential,
    ) -> Reply | StreamReply:
        """Ask, under each live pepper in turn: a key minted under the older one still passes."""
        for mac in credential.macs[:-1]:
            request.key_mac = mac
            try:
                return await ask(request)
            except Unauthenticated:
                continue
        request.key_mac = credential.macs[-1]
        reply = await ask(request)
        if len(credential.macs) > 1:
            await self._keys.check(credential)  # which keeps it under the newest pepper from now on
        return reply

    async def _stream(self, exchange: Exchange, reply: StreamReply) -> None:
        """Send each event at once; ``send`` waits while the client reads more slowly than the model writes."""
        events = reply.events
        send = exchange.send
        try:
            await exchange.start(200, rate_headers(reply.readings) + _EVENTS)
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
                if exchange.wire is not None and reply.pour is not None:
                    await reply.pour(exchange.wire.write)
            exchange.ignore_departure()
            await send({"type": "http.response.body", "body": b""})
        finally:
            exchange.ignore_departure()
            await events.aclose()
