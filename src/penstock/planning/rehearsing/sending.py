"""Sends planned requests as clients do, at their times, and notes what each was told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from penstock.errors import UpstreamError
from penstock.ports import UpstreamClient, UpstreamRequest, UpstreamResponse

ANSWER_BYTES_MAX = 64_000_000
PATIENCE_S = 1_200.0  # longer than the service itself waits: what it gives up is told by its answer
WAIT_S = 30
_ENDS = frozenset({"succeeded", "failed", "cancelled", "expired"})
_NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One request to send.

    Args:
        at_ms: After the start, at speed 1.
        path: Such as ``/v1/chat/completions``.
    """

    at_ms: int
    organisation: str
    model: str
    path: str
    body: bytes
    stream: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one request, as its client saw it.

    Args:
        status: Of the HTTP answer; 0 if there was none.
        refused_by: The limit that refused it, or the error's code.
        failure: Why an admitted request has no complete answer; empty if all is well.
        prompt: Tokens, as the answer's usage says; ``cached`` is a part of it.
    """

    planned: Planned
    status: int = 0
    refused_by: str = ""
    failure: str = ""
    prompt: int = 0
    cached: int = 0
    completion: int = 0

    @property
    def is_admitted(self) -> bool:
        """It was answered, though perhaps not to the end."""
        return self.status == 200


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    """Of an answer; a job has ``cached_tokens`` beside the others."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Error(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _Answer(msgspec.Struct):
    """What is read of a whole answer, or of one event."""

    usage: _Usage | None = None
    error: _Error | None = None


class _Job(msgspec.Struct):
    id: str
    status: str
    reason: str | None = None
    usage: _Usage | None = None


_answers = msgspec.json.Decoder(_Answer)
_jobs = msgspec.json.Decoder(_Job)


def due_s(at_ms: int, speed: float) -> float:
    """When a request is due after the start, ``speed`` times as fast as the trace; 0: at once.

    Example:
        >>> due_s(3000, 2.0), due_s(3000, 0)
        (1.5, 0.0)
    """
    return at_ms / 1000 / speed if speed else 0.0


@dataclass(slots=True, kw_only=True)
class Sender:
    """Sends to one service.

    Args:
        url: Its base, without ``/v1``.
        keys: Each organisation's API key.
        concurrency: Requests at a time, as of clients that wait for their answers.
        speed: Times the trace's own; 0: as fast as ``concurrency`` allows.
        seen: Called with each outcome, for a progress bar.
        as_jobs: Ask with ``Prefer: respond-async``, and wait for the job's end instead of the answer.
    """

    client: UpstreamClient
    url: str
    keys: dict[str, str]
    concurrency: int
    speed: float = 0.0
    as_jobs: bool = False
    seen: Callable[[Outcome], None] = lambda _: None
    outcomes: list[Outcome] = field(default_factory=list)

    async def send_all(self, planned: Sequence[Planned]) -> list[Outcome]:
        """Send every one, each at its time, and wait for all."""
        places = asyncio.Semaphore(self.concurrency)
        loop = asyncio.get_running_loop()
        started_s = loop.time()

        async def one(request: Planned) -> None:
            try:
                outcome = await (self._send_job if self.as_jobs else self._send)(request)
            finally:
                places.release()
            self.outcomes.append(outcome)
            self.seen(outcome)

        async with asyncio.TaskGroup() as group:
            for request in planned:
                wait_s = started_s + due_s(request.at_ms, self.speed) - loop.time()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                await places.acquire()
                group.create_task(one(request))
        return self.outcomes

    def _request(self, planned: Planned, headers: Mapping[str, str] = _NO_HEADERS) -> UpstreamRequest:
        credential = {"authorization": f"Bearer {self.keys[planned.organisation]}", "content-type": "application/json"}
        return UpstreamRequest(
            method="POST",
            url=self.url + planned.path,
            headers={**credential, **headers},
            body=planned.body,
            first_byte_s=PATIENCE_S,
            between_chunks_s=PATIENCE_S,
            total_s=PATIENCE_S,
        )

    async def _send_job(self, planned: Planned) -> Outcome:
        request = self._request(planned, {"prefer": "respond-async"})
        try:
            status, body = await self._asked(request)
            if status != 202:
                return _refused(planned, status, body)
            job = _jobs.decode(body)
            look = msgspec.structs.replace(
                request, method="GET", url=f"{self.url}/v1/jobs/{job.id}?wait={WAIT_S}s", body=b""
            )
            while job.status not in _ENDS:
                status, body = await self._asked(look)
                if status != 200:
                    return _refused(planned, status, body)
                job = _jobs.decode(body)
        except (UpstreamError, msgspec.DecodeError) as error:
            return Outcome(planned=planned, failure=str(error))
        usage = job.usage or _Usage()
        return Outcome(
            planned=planned,
            status=200,
            failure="" if job.status == "succeeded" else f"{job.id} {job.status}: {job.reason}",
            prompt=usage.prompt_tokens,
            cached=usage.cached_tokens,
            completion=usage.completion_tokens,
        )

    async def _asked(self, request: UpstreamRequest) -> tuple[int, bytes]:
        response = await self.client.open(request)
        try:
            return response.status, await response.read(ANSWER_BYTES_MAX)
        finally:
            response.close()

    async def _send(self, planned: Planned) -> Outcome:
        request = self._request(planned)
        try:
            response = await self.client.open(request)
            try:
                if response.status == 200 and planned.stream:
                    return _told(planned, await _events(response), ended_by_done=True)
                body = await response.read(ANSWER_BYTES_MAX)
            finally:
                response.close()
            return _told(planned, [body]) if response.status == 200 else _refused(planned, response.status, body)
        except UpstreamError as error:
            return Outcome(planned=planned, status=error.status or 0, failure=error.message)


async def _events(response: UpstreamResponse) -> list[bytes]:
    """The data of each event that carries more than a piece of text, and ``[DONE]``."""
    found: list[bytes] = []
    rest = b""
    async for chunk in response.chunks():
        *lines, rest = (rest + chunk).split(b"\n")
        found += [line[6:] for line in lines if line.startswith(b"data: ") and _says_something(line)]
    return found


def _says_something(line: bytes) -> bool:
    return b'"usage":{' in line or b'"error":' in line or line.startswith(b"data: [DONE]")


def _told(planned: Planned, bodies: list[bytes], *, ended_by_done: bool = False) -> Outcome:
    usage: _Usage | None = None
    failure = ""
    if ended_by_done:
        if bodies and bodies[-1].startswith(b"[DONE]"):
            bodies = bodies[:-1]
        else:
            failure = "the stream ended without [DONE]"
    for body in bodies:
        try:
            answer = _answers.decode(body)
        except msgspec.DecodeError as error:
            return Outcome(planned=planned, status=200, failure=f"the answer is not what was expected: {error}")
        usage = answer.usage or usage
        if answer.error is not None:
            failure = answer.error.message
    if usage is None:
        return Outcome(planned=planned, status=200, failure=failure or "the answer carries no usage")
    details = usage.prompt_tokens_details
    return Outcome(
        planned=planned,
        status=200,
        failure=failure,
        prompt=usage.prompt_tokens,
        cached=(details.cached_tokens or 0) if details else 0,
        completion=usage.completion_tokens,
    )


def _refused(planned: Planned, status: int, body: bytes) -> Outcome:
    try:
        error = _answers.decode(body).error or _Error()
    except msgspec.DecodeError:
        error = _Error(message=body[:200].decode(errors="replace"))
    if status in (400, 429) and (limit := limit_named_by(error.message)):
        return Outcome(planned=planned, status=status, refused_by=limit)
    if status == 429:
        return Outcome(planned=planned, status=status, refused_by=str(error.code))
    return Outcome(planned=planned, status=status, failure=f"{status}: {error.message}")


def limit_named_by(message: str) -> str:
    """The limit that a refusal's message begins with.

    Example:
        >>> limit_named_by("acme/tokens/day: needs 101 tokens, 20 left; retry in 3600 s")
        'acme/tokens/day'
        >>> limit_named_by("messages: missing")
        ''
    """
    name, colon, _ = message.partition(": ")
    return name if colon and "/" in name and " " not in name else ""
