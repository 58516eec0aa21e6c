"""Answers a request with a job: 202 and where to look, or the answer itself if it comes within the time asked for.

``Prefer: respond-async`` on an endpoint asks for it, and so does the same endpoint under ``/v1/async``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from penstock.api.headers import Headers
from penstock.api.identification import traceparent_of
from penstock.api.preferences import Preference
from penstock.api.services import KeyCheck, Services
from penstock.errors import Forbidden, InvalidRequest, Unauthenticated
from penstock.lanes.accepting import Accepted, AsyncRequest, Relayed, Replayed, read_idempotency_key
from penstock.lanes.credentials import Credential
from penstock.lanes.requests import InferenceRequest
from penstock.ports import JobState
from penstock.quota.operations import Reading

VOUCHED_MS = 30_000


class Deferred(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes
    readings: tuple[Reading, ...]
    headers: Headers


class Deferring:
    """Hands requests to the acceptor."""

    def __init__(self, services: Services) -> None:
        self._acceptor = services.acceptor
        self._jobs = services.jobs
        self._keys = services.keys
        self._credentials = services.credentials
        self._now_ms = services.clock.now_ms

    async def answer(
        self,
        request: InferenceRequest,
        credential: Credential,
        raw: bytes,
        sent: Iterable[tuple[bytes, bytes]],
        preference: Preference,
    ) -> Deferred:
        """Make a job of a request.

        Args:
            sent: The request's headers.

        Raises:
            PenstockError: It was not taken over.
        """
        request.record.lane = "queue"
        if request.stream:
            raise stream_refused()
        headers = dict(sent)
        key = None
        if b"idempotency-key" in headers:
            key = read_idempotency_key(headers[b"idempotency-key"].decode("latin-1"))
            await check_scope(self._keys, request, credential)
        acceptance = await self._acceptor.accept(
            AsyncRequest(
                request=request,
                raw=raw,
                key_macs=credential.macs,
                idempotency_key=key,
                authorization=self._authorization(credential, headers),
                traceparent=traceparent_of(headers.items()),
            )
        )
        if len(credential.macs) > 1:
            await self._keys.check(credential)  # which keeps it under the newest pepper from now on
        match acceptance:
            case Accepted():
                return await self._accepted(request, acceptance, preference)
            case Replayed(job, status, body):
                request.record.reservation = job
                return Deferred(status, body, (), [_location(job)])
            case Relayed(status, body, relayed):
                return Deferred(status, body, (), [(name.encode(), value.encode()) for name, value in relayed])

    def _authorization(self, credential: Credential, headers: Mapping[bytes, bytes]) -> str:
        """What the gateway is shown: the client's key, or our word for a subject, since it verifies no tokens."""
        if credential.scope is None:
            return headers[b"authorization"].decode("latin-1")
        return f"Bearer {self._credentials.vouch(credential, expires_at_ms=self._now_ms() + VOUCHED_MS)}"

    async def _accepted(self, request: InferenceRequest, accepted: Accepted, preference: Preference) -> Deferred:
        headers = [_location(accepted.job), *((name.encode(), value.encode()) for name, value in accepted.headers)]
        state = JobState.QUEUED
        if preference.wait_s:
            job = await self._jobs.wait(request.organisation, accepted.job, preference.wait_s)
            state = job.state
            if state is JobState.SUCCEEDED and job.body is not None:
                headers.append((b"preference-applied", b"wait=%d" % preference.wait_s))
                return Deferred(job.http_status, job.body.encode(), accepted.readings, headers)
        headers.append((b"preference-applied", b"respond-async"))
        request.record.reservation = accepted.job
        request.record.outcome = "accepted"  # the executor's own record says how it went
        told = {"id": accepted.job, "object": "job", "status": state.value, "model": request.model}
        return Deferred(202, msgspec.json.encode(told), accepted.readings, headers)


async def check_scope(keys: KeyCheck, request: InferenceRequest, credential: Credential) -> None:
    """A stored answer is for those only who may ask the question: there no reserve checks that.

    Raises:
        Unauthenticated: The key is not in force.
        Forbidden: Its scope excludes the route or the model.
    """
    key = await keys.check(credential)
    if key is None:
        raise Unauthenticated("the key is not in force")
    if key.routes is not None and request.route not in key.routes:
        raise Forbidden(f"this key's scope excludes {request.route}; use a key whose routes include it")
    if key.models is not None and request.model not in key.models:
        raise Forbidden("this key's scope excludes this model; use a key whose models include it")


def stream_refused() -> InvalidRequest:
    """A job has nobody to stream to."""
    return InvalidRequest(
        "stream: a job is not streamed; leave it out and follow /v1/jobs/{id}/events, or do not ask for respond-async",
        param="stream",
        code="stream_refused",
    )


def _location(job: str) -> tuple[bytes, bytes]:
    return b"location", f"/v1/jobs/{job}".encode()
