"""A fixed amount of work, for counting instructions: requests through API, lane and quota, without a network.

``python -m benchmarks.scenario COUNT`` prepares everything and then forks for each kind of work, so that each child's
count is that of its work alone: ``nothing``; ``request``, answered whole; ``stream``, of 20 chunks; ``baseline``, plain
Python that no change of Penstock touches. It prints each child's process id. The model server is bytes in memory; key,
eight limits, metrics and request log are on. Clock and random numbers are fixed, so that each run does the same.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from penstock.adapters.observing.fan_out import FanOut
from penstock.adapters.observing.lines import LineWriter
from penstock.adapters.observing.metrics import Metrics
from penstock.adapters.observing.request_log import RequestLog
from penstock.adapters.observing.vocabulary import Vocabulary
from penstock.adapters.sql.database import open_engine
from penstock.adapters.sql.job_store import SqlJobs
from penstock.api.application import application
from penstock.api.services import ModelCard, Services
from penstock.api.wire import WIRE
from penstock.errors import StoreUnavailable
from penstock.lanes.accepting import Acceptance, AsyncRequest
from penstock.lanes.credentials import Credential, Credentials, mac, mint
from penstock.lanes.following import Following
from penstock.lanes.models import ServedModel, Upstream
from penstock.lanes.realtime import RealtimeLane
from penstock.lanes.repeating import Repeating
from penstock.ports import UpstreamRequest, UpstreamResponse, UsageQuery, UsageRow
from penstock.quota import Call, Define, Definitions, Key, Kind, Limit, Metric, Model, Organisation, Price, Ready

A = TypeVar("A")

START_MS = 1_762_000_000_000
PEPPER = bytes(32)
TOKEN = mint("acme", "k1", secret=bytes(32))
CHUNKS = 20
WARM_UP = 20
BODY = b'{"model":"m","messages":[{"role":"user","content":"Write one sentence about water."}],"max_tokens":20%s}'
USAGE = b'"usage":{"prompt_tokens":9,"completion_tokens":20,"total_tokens":29}'
WHOLE = (
    b'{"id":"c1","object":"chat.completion","created":1762000000,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"Water flows through the gate and turns the wheel."},"finish_reason":"stop"}],'
    + USAGE
    + b"}"
)
EVENT = b'data: {"id":"c1","object":"chat.completion.chunk","created":1762000000,"model":"m",%s}\n\n'
DELTA = b'"choices":[{"index":0,"delta":{"content":" water"},"finish_reason":%s}],"usage":null'
EVENTS = (
    *[EVENT % (DELTA % b"null")] * (CHUNKS - 1),
    EVENT % (DELTA % b'"stop"'),
    EVENT % (b'"choices":[],' + USAGE),
    b"data: [DONE]\n\n",
)


class Clock:
    """Moves one millisecond each time it is asked for the time of day."""

    def __init__(self) -> None:
        self._now_ms = START_MS

    def now_ms(self) -> int:
        """Unix milliseconds."""
        self._now_ms += 1
        return self._now_ms

    def monotonic_s(self) -> float:
        """Seconds."""
        return self._now_ms / 1000


@dataclass
class Answer:
    """An answer of the model server, all of it there."""

    pieces: tuple[bytes, ...]
    headers: Mapping[str, str]
    status: int = 200
    given: int = 0

    async def read(self, bytes_max: int) -> bytes:
        """The whole body."""
        return b"".join(self.pieces)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, one event at a time."""
        while self.given < len(self.pieces):
            self.given += 1
            yield self.pieces[self.given - 1]

    async def pour(self, take: Callable[[bytes], bool]) -> None:
        """The same, given away."""
        while self.given < len(self.pieces):
            self.given += 1
            if not take(self.pieces[self.given - 1]):
                return

    def close(self) -> None:
        """Nothing is open."""


class ModelServer:
    """Answers at once, from memory."""

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """Answer by what is asked for."""
        if b'"stream":true' in request.body:
            return Answer(EVENTS, {"content-type": "text/event-stream"})
        return Answer((WHOLE,), {"content-type": "application/json"})


class Store:
    """The quota model, with eight limits on each request, and nothing durable behind it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._acme = Organisation("acme")
        window, rate = Kind.WINDOW, Kind.RATE
        limits = (
            Limit(owner="acme", metric=Metric.TOKENS, kind=rate, cap=10**9, period_ms=60_000),
            Limit(owner="acme", metric=Metric.REQUESTS, kind=Kind.STRICT_RATE, cap=10**7, period_ms=60_000),
            Limit(owner="acme", metric=Metric.TOKENS, kind=window, cap=10**12),
            Limit(owner="acme", metric=Metric.COST, kind=window, cap=10**15),
            Limit(owner="acme", metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY, cap=4096),
            Limit(owner="acme", metric=Metric.TOKENS, kind=rate, cap=10**9, period_ms=60_000, model="m"),
            Limit(owner="acme:team:search", metric=Metric.TOKENS, kind=window, cap=10**12),
            Limit(owner="acme:team:search", metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY, cap=2048),
        )
        price = Price(prompt_picos=150_000, cached_picos=75_000, completion_picos=600_000)
        self.key = Key(id="k1", team="search", macs=((mac(TOKEN, PEPPER), 0),))
        definitions = Definitions(
            limits=limits, keys={"k1": self.key}, models={"m": Model(name="m", context=8192, price=price)}
        )
        now_ms = clock.now_ms()
        self._now(Define(organisation="acme", caller_now_ms=now_ms, version=1, definitions=definitions))
        self._now(Ready(organisation="acme", caller_now_ms=now_ms, epoch=1))

    def _now(self, call: Call[A]) -> A:
        return self._acme.apply(call, time_ms=self._clock.now_ms())

    async def apply(self, call: Call[A]) -> A:
        """Carry out one operation; the events go nowhere."""
        answer = self._now(call)
        self._acme.outbox.clear()
        return answer

    async def check(self, credential: Credential) -> Key | None:
        """The one key."""
        return self.key

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        """Nothing is kept."""
        return []

    async def window_sums(self, organisation: str) -> dict[tuple[str, int], int]:
        """Nothing is kept."""
        return {}


class NoQueue:
    """The scenario's requests are answered at once."""

    async def accept(self, asked: AsyncRequest) -> Acceptance:
        """Nothing is taken over."""
        raise StoreUnavailable("there is no queue here")


async def ready() -> tuple[str, ...]:
    """Always."""
    return ()


def services(clock: Clock, writer: LineWriter) -> Services:
    """All that the API calls, in memory."""
    store = Store(clock)
    vocabulary = Vocabulary(organisations=("acme",), models=("m",))
    observer = FanOut(Metrics(vocabulary, version="0"), RequestLog(writer, vocabulary, now_ms=clock.now_ms))
    served = ServedModel(
        name="m", upstreams=(Upstream(url="http://model.test"),), upstream_model="m", context=8192, max_tokens=256
    )
    counted = iter(range(1, 1 << 62))
    lane = RealtimeLane(
        store, ModelServer(), clock, {"m": served}, observer=observer, random_bits=lambda bits: next(counted)
    )
    kept = SqlJobs(open_engine(Path("unused")))
    jobs, once = Following(kept, store, clock), Repeating(lane, kept, store, clock)
    return Services(
        lane=lane, repeating=once, acceptor=NoQueue(), jobs=jobs, quota=store, ledger=store, keys=store,
        credentials=Credentials((PEPPER,)), clock=clock,
        observer=observer, models={"m": ModelCard(id="m")}, readiness=ready,
    )  # fmt: skip


class Client:
    """The server's side of a connection, as ``penstock.api.wire.Wire``, to a client that reads everything."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.status = 0
        self.received_bytes = 0

    def take_body(self) -> bytes | None:
        """All of it is there."""
        return self._body

    def watch(self, departed: Callable[[], None] | None) -> None:
        """It stays."""

    def answer(self, status: int, lines: bytes, body: bytes) -> bool:
        """It reads."""
        self.status = status
        return self.write(body)

    def write(self, piece: bytes) -> bool:
        """It reads on."""
        self.received_bytes += len(piece)
        return True

    async def receive(self) -> MutableMapping[str, Any]:
        """Nothing comes after the body."""
        raise RuntimeError("the body was there")

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """What does not go through the methods above."""
        self.status = message.get("status", self.status)
        self.received_bytes += len(message.get("body", b""))


async def ask(app: Callable[..., Any], body: bytes) -> int:
    """Send one request as a server would; gives the bytes of its answer.

    Raises:
        RuntimeError: The answer is not a 200, or is not whole: the count would be of something else.
    """
    scope: MutableMapping[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions", "query_string": b"", "root_path": "",
        "headers": [
            (b"host", b"penstock.test"), (b"authorization", b"Bearer " + TOKEN.encode()),
            (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
            (b"user-agent", b"scenario"), (b"accept", b"*/*"),
        ],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
    }  # fmt: skip
    client = Client(body)
    scope[WIRE] = client
    await app(scope, client.receive, client.send)
    if client.status != 200:
        raise RuntimeError(f"answered with {client.status}")
    return client.received_bytes


async def work(app: Callable[..., Any], count: int, *, stream: bool) -> None:
    """Send ``count`` requests, one after another."""
    body = BODY % (b',"stream":true' if stream else b"")
    bytes_min = CHUNKS * 100 if stream else len(WHOLE) // 2
    for _ in range(count):
        if await ask(app, body) < bytes_min:
            raise RuntimeError("the answer is too short")


def baseline(count: int) -> int:
    """Plain Python of the usual mix: calls, objects, dictionaries, integers, text and bytes."""
    total = 0
    for turn in range(count):
        held = {f"limit-{index}": index * turn for index in range(50)}
        for name in sorted(held, reverse=True):
            row = {"name": name, "held": held[name]}
            total += len(row) + held[name] % 7 + len(name.encode().upper().split(b"-"))
        total += len(",".join(held).replace("limit", "l"))
    return total


def main() -> None:
    """Prepare, warm up, and do each kind of work in a child of its own."""
    count = int(sys.argv[1])
    app = application(services(Clock(), LineWriter(os.open(os.devnull, os.O_WRONLY))))
    kinds: dict[str, Callable[[int], object]] = {
        "nothing": lambda count: None,
        "request": lambda count: asyncio.run(work(app, count, stream=False)),
        "stream": lambda count: asyncio.run(work(app, count, stream=True)),
        "baseline": baseline,
    }
    for do in kinds.values():
        do(WARM_UP)
    gc.collect()
    for kind, do in kinds.items():
        child = os.fork()
        if not child:
            do(count)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise SystemExit(f"{kind} failed")
        print(kind, child, flush=True)


if __name__ == "__main__":
    main()
