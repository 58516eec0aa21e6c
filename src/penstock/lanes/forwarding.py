"""Takes requests over in a cluster: hands them to the queue lane's gateway, and passes on what it answers.

The gateway knows of an idempotency key what the quota store remembers. What that has forgotten the database knows, so
it is asked first: an ended job's answer comes from there, and a key that only the ledger remembers is not used again,
since its job's id would be another job's.

The gateway reads chats, completions and embeddings by itself. What it would have to know of other routes, where a
response becomes a chat and units are counted, was decided here already: it is told by our word, which it can check, and
which holds for this body only.

Nothing of a client's goes along but its credential, its idempotency key, and what ties logs and traces together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from penstock.errors import Conflict, StoreUnavailable, UpstreamError, UpstreamUnreachable
from penstock.lanes.accepting import (
    Acceptance,
    Accepted,
    AsyncRequest,
    Relayed,
    Replayed,
    job_prefix,
    stored_answer,
)
from penstock.lanes.measuring import Measures, measure, model_not_found
from penstock.lanes.models import ServedModel
from penstock.lanes.queueing import unnoticed
from penstock.lanes.requests import InferenceRequest
from penstock.ports import Clock, Jobs, QuotaStore, UpstreamClient, UpstreamRequest
from penstock.quota.events import EventKind
from penstock.quota.operations import Look, LookAnswer, Unknown

CONNECT_S: Final = 1.0
ANSWER_S: Final = 10.0
ANSWER_BYTES_MAX: Final = 2_000_000
CODE: Final = "queue_unavailable"
FORWARDED: Final = "job-forwarded"
CRASH_POINTS: Final = (FORWARDED,)
MEASURED: Final = frozenset({"responses", "infer"})
"""Routes that the gateway takes with our word only."""
WORD_MS: Final = 30_000

_RELAYED: Final = re.compile(
    r"retry-after(-ms)?|x-should-retry|ratelimit(-policy)?|x-ratelimit-(limit|remaining|reset)-(requests|tokens)"
)
_LOCATION: Final = re.compile(r"/v1/jobs/([0-9a-f]{32}(?:-[1-9][0-9]{0,8})?)")


class GatewayAcceptor:
    """Forwards to the gateway.

    Args:
        gateway: Its URL, without a path.
        models: By the name that clients use.
        attest: Turns facts into a word that the gateway believes (``Credentials.attest``).
        reached: Called when the gateway has answered and the client has not been told.
    """

    def __init__(
        self,
        client: UpstreamClient,
        gateway: str,
        jobs: Jobs,
        quota: QuotaStore,
        clock: Clock,
        models: Mapping[str, ServedModel],
        *,
        attest: Callable[[bytes], str],
        reached: Callable[[str], None] = unnoticed,
    ) -> None:
        self._client = client
        self._reached = reached
        self._jobs = jobs
        self._quota = quota
        self._clock = clock
        self._models = models
        self._attest = attest
        self._gateway = gateway.rstrip("/")

    async def accept(self, asked: AsyncRequest) -> Acceptance:
        """See ``penstock.lanes.accepting.Acceptor``.

        Raises:
            StoreUnavailable: The gateway is away. Unless nothing could be sent, it may have accepted all the same.
            RequestError: The idempotency key stands in the way, or the model does not take the request.
        """
        request = asked.request
        model = self._models.get(request.model)
        if model is None:
            raise model_not_found(request.model)
        measures = measure(request, model)
        if asked.idempotency_key is not None:
            answered = await self._answered(request, asked.idempotency_key)
            if answered is not None:
                return answered
        headers = {
            "authorization": asked.authorization,
            "content-type": "application/json",
            "x-request-id": request.record.request_id,
        }
        if asked.idempotency_key is not None:
            headers["idempotency-key"] = f'"{asked.idempotency_key}"'
        traceparent = asked.traceparent if request.record.trace is None else request.record.trace.traceparent
        if traceparent is not None:
            headers["traceparent"] = traceparent
        if request.route in MEASURED:
            headers["x-penstock-measured"] = self._word(request, measures)
        url = f"{self._gateway}/v1/async/{request.route.replace('.', '/')}"
        try:
            response = await self._client.open(
                UpstreamRequest(
                    method="POST", url=url, headers=headers, body=asked.raw,
                    connect_s=CONNECT_S, first_byte_s=ANSWER_S, between_chunks_s=ANSWER_S, total_s=ANSWER_S,
                )
            )  # fmt: skip
            try:
                body = await response.read(ANSWER_BYTES_MAX)
            finally:
                response.close()
        except UpstreamUnreachable as error:
            raise StoreUnavailable("the queue is away, nothing was accepted; send it again", code=CODE) from error
        except UpstreamError as error:
            raise StoreUnavailable(
                "the queue did not answer, and may have accepted the request; send it again with an Idempotency-Key",
                code=CODE,
            ) from error
        self._reached(FORWARDED)
        return _acceptance(response.status, response.headers, body)

    def _word(self, request: InferenceRequest, measures: Measures) -> str:
        facts = {
            "route": request.route,
            "model": request.model,
            "fingerprint": request.fingerprint,
            "expires_at_ms": self._clock.now_ms() + WORD_MS,
            **measures._asdict(),
        }
        return self._attest(msgspec.json.encode(facts))

    async def _answered(self, request: InferenceRequest, key: str) -> Replayed | None:
        """The stored answer of an idempotency key; None if the gateway is to decide."""
        prefix = job_prefix(request.organisation, key)
        last = await self._jobs.last_attempt(request.organisation, prefix)
        if last is None or last.ended is None:
            return None
        if last.ended is not EventKind.VOIDED and last.job is not None:
            return stored_answer(last, request.fingerprint)
        look = Look(
            organisation=request.organisation,
            caller_now_ms=self._clock.now_ms(),
            reservation=f"{prefix}-{last.number}",
        )
        seen: LookAnswer = await self._quota.apply(look)
        if isinstance(seen, Unknown):
            raise Conflict(
                "this Idempotency-Key was used before, so long ago that its answer is deleted; use a new one",
                code="idempotency_key_used",
            )
        return None


def _acceptance(status: int, headers: Mapping[str, str], body: bytes) -> Acceptance:
    relayed = tuple((name, value) for name, value in headers.items() if _RELAYED.fullmatch(name))
    location = _LOCATION.fullmatch(headers.get("location", ""))
    if status == 202 and location is not None:
        return Accepted(location[1], headers=relayed)
    if status >= 400 and _is_error(body):
        return Relayed(status, body, relayed)
    raise StoreUnavailable(f"the queue's gateway answered with status {status}; see its log", code=CODE)


def _is_error(body: bytes) -> bool:
    """In the shape that every error of ours has: what a server in between says is not for clients."""
    try:
        told: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(told, dict) and isinstance(told.get("error"), dict)
