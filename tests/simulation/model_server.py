"""A model server of a simulated system: it takes its time, is too busy, breaks off, or forgets to say what it used."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.errors import UpstreamBroken, UpstreamUnreachable
from penstock.ports import UpstreamRequest
from tests.lanes.stage import delta
from tests.simulation.scheduling import Faults, Life


@dataclass(slots=True)
class Produced:
    """What was done for one request. ``tokens_at_s``: when each token of its answer was sent."""

    prompt: int
    tokens_at_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Work:
    """Everything that model servers did."""

    calls: list[str] = field(default_factory=list)
    produced: dict[str, Produced] = field(default_factory=dict)


@dataclass(slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    life: Life

    async def read(self, bytes_max: int) -> bytes:
        return self.body

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self.body

    async def pour(self, take: Callable[[bytes], bool]) -> None:
        take(self.body)

    def close(self) -> None:
        return


class Streamed:
    """An answer token by token."""

    def __init__(self, life: Life, produced: Produced) -> None:
        self.status = 200
        self.headers: Mapping[str, str] = {"content-type": "text/event-stream"}
        self._life = life
        self._produced = produced
        self._is_closed = False
        self._events = self._sent()

    async def read(self, bytes_max: int) -> bytes:
        return b"".join([piece async for piece in self._events])

    def chunks(self) -> AsyncGenerator[bytes, None]:
        return self._events

    async def pour(self, take: Callable[[bytes], bool]) -> None:
        async for piece in self._events:
            if not take(piece):
                return

    def close(self) -> None:
        self._is_closed = True

    async def _sent(self) -> AsyncGenerator[bytes, None]:
        faults, life = self._life.faults, self._life
        count, gap_s = faults.random.randrange(1, 50), faults.random.choice((0.05, 0.3, 1.0))
        breaks_at = faults.random.randrange(count) if faults.happens(0.1) else -1
        for number in range(count):
            await life.wait(gap_s)
            if self._is_closed or number == breaks_at:
                raise UpstreamBroken("the connection was lost")
            self._produced.tokens_at_s.append(life.faults.now_s())
            yield _event(delta(" t"))
            life.point("streams", share=0.1)
        yield _event(delta(None, "stop"))
        if not faults.happens(0.1):
            usage = {"prompt_tokens": self._produced.prompt, "completion_tokens": count}
            yield _event({**delta(None), "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"


def _event(data: Any) -> bytes:
    return b"data: %s\n\n" % json.dumps(data, separators=(",", ":")).encode()


@dataclass(slots=True)
class Server:
    """What one process reaches of the model servers."""

    faults: Faults
    life: Life
    work: Work

    async def open(self, request: UpstreamRequest) -> Answer | Streamed:
        faults = self.faults
        if faults.happens(0.05):
            raise UpstreamUnreachable("nobody listens")
        name = request.headers["x-request-id"]
        self.work.calls.append(name)
        await self.life.wait(faults.random.choice((0.2, 1.0, 9.0, 30.0)))
        self.life.point("model server called")
        if faults.happens(0.05):
            raise UpstreamBroken("the connection was lost")
        if faults.happens(0.05):
            return Answer(503, {"retry-after": "2"}, b"", self.life)
        produced = self.work.produced[name] = Produced(faults.random.randrange(1, 60))
        if b'"stream":true' in request.body and self.life.name == "api":
            return Streamed(self.life, produced)
        count = faults.random.randrange(1, 50)
        produced.tokens_at_s += [faults.now_s()] * count
        usage = {"prompt_tokens": produced.prompt, "completion_tokens": count}
        choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
        body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        return Answer(200, {"content-type": "application/json"}, json.dumps(body).encode(), self.life)
