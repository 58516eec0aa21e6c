"""A realtime lane with the real quota model and real sockets, and a model server that each test writes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from penstock.adapters.http import HttpClient
from penstock.errors import StoreUnavailable
from penstock.lanes.models import ServedModel, Upstream
from penstock.lanes.realtime import RealtimeLane
from penstock.lanes.requests import InferenceRequest, StreamReply
from penstock.ports import RequestRecord
from penstock.quota.definitions import Definitions, Key, Kind, Limit, Metric, Model, Overrun, Price, ReservePolicy
from penstock.quota.events import Event, EventKind
from penstock.quota.model import Organisation
from penstock.quota.operations import Call, Define, Inspect, Inspected, Ready
from tests.adapters.http.servers import Server, read_request, serving

A = TypeVar("A")
ANSWER = Callable[[asyncio.StreamWriter, dict[str, Any]], Awaitable[None]]
NOW_MS = 1_700_000_000_000
CAP = 1_000_000


class ManualClock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.ms = NOW_MS

    def now_ms(self) -> int:
        return self.ms

    def monotonic_s(self) -> float:
        return self.ms / 1000


class ModelStore:
    """The quota model as a store. ``refusing`` kinds of call find it unavailable; ``seen`` lists all calls."""

    def __init__(self, clock: ManualClock) -> None:
        self.organisation = Organisation("acme")
        self.clock = clock
        self.seen: list[Call[Any]] = []
        self.refusing: tuple[type, ...] = ()
        self.waits_for: asyncio.Event | None = None

    async def apply(self, call: Call[A]) -> A:
        self.seen.append(call)
        if self.waits_for is not None:
            await self.waits_for.wait()
        if isinstance(call, self.refusing):
            raise StoreUnavailable("the store is switched off by the test")
        return self.organisation.apply(call, time_ms=self.clock.ms)

    def now(self, call: Call[A]) -> A:
        return self.organisation.apply(call, time_ms=self.clock.ms)

    def inspect(self) -> Inspected:
        found = self.now(Inspect(organisation="acme", caller_now_ms=self.clock.ms))
        assert isinstance(found, Inspected)
        return found

    def ends(self) -> list[Event]:
        """Every event that ended a reservation."""
        return [event for event in self.organisation.outbox if event.kind is not EventKind.RESERVED]


class Health:
    """The part of an observer that a lane calls."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, bool]] = []
        self.begun = 0
        self.records: list[RequestRecord] = []

    def started(self, record: RequestRecord) -> None:
        self.begun += 1

    def finished(self, record: RequestRecord) -> None:
        self.records.append(record)

    def upstream_changed(self, model: str, upstream: str, healthy: bool) -> None:
        self.changes.append((upstream, healthy))


def definitions(**changes: Any) -> Definitions:
    """One key without a secret, one model, a budget of a million tokens."""
    fields: dict[str, Any] = {
        "limits": (
            Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.WINDOW, period_ms=86_400_000, cap=CAP),
            Limit(owner="acme", metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY, cap=100),
        ),
        "keys": {"k1": Key(id="k1", verified=True)},
        "models": {
            "chat": Model(name="chat", context=1000, price=Price(prompt_picos=1_000_000, completion_picos=2_000_000))
        },
    }
    return Definitions(**(fields | changes))


def ready_store(clock: ManualClock | None = None, governed: Definitions | None = None) -> ModelStore:
    """The quota of an organisation that has done nothing."""
    store = ModelStore(clock or ManualClock())
    store.now(Define(organisation="acme", caller_now_ms=NOW_MS, version=1, definitions=governed or definitions()))
    store.now(Ready(organisation="acme", caller_now_ms=NOW_MS, epoch=1))
    return store


class Stage:
    """A lane, and what it plays with."""

    def __init__(self, lane: RealtimeLane, store: ModelStore, servers: list[Server], health: Health) -> None:
        self.lane = lane
        self.store = store
        self.servers = servers
        self.health = health
        self.clock = store.clock
        self.received: list[dict[str, Any]] = []
        self.models: dict[str, ServedModel] = {}

    def lane_upstream(self) -> str:
        return f"http://127.0.0.1:{self.servers[0].port}"

    def lower_cap(self, cap: int) -> None:
        """Leave the budget this much in all."""
        limit = Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.WINDOW, period_ms=86_400_000, cap=cap)
        self.store.now(
            Define(
                organisation="acme",
                caller_now_ms=self.clock.ms,
                version=2,
                definitions=definitions(limits=(limit,), **LEARNED),
            )
        )

    def used(self) -> int:
        """Tokens posted to the budget."""
        return next(limit.used for limit in self.store.inspect().limits if limit.metric == "tokens")

    def assert_nothing_is_held(self) -> None:
        assert self.store.inspect().holds == ()
        assert self.lane.leases.held == 0


def request(*, stream: bool = False, route: str = "chat.completions", **changes: Any) -> InferenceRequest:
    """A request as the API hands it over; its prompt estimates to 7 tokens."""
    body: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "twelve bytes"}]}
    if stream:
        body["stream"] = True
    fields: dict[str, Any] = {
        "organisation": "acme",
        "key": "k1",
        "key_mac": "",
        "route": route,
        "model": "chat",
        "body": body,
        "fingerprint": "f",
        "body_bytes": 80,
        "prompts": 1,
        "outputs": 0 if route == "embeddings" else 1,
        "max_tokens": None,
        "stream": stream,
        "include_usage": False,
        "record": RequestRecord(request_id="r1", received_at_s=NOW_MS / 1000),
    }
    return InferenceRequest(**(fields | changes))


@asynccontextmanager
async def staged(
    *answers: ANSWER,
    governed: Definitions | None = None,
    overrun: Overrun = Overrun.STOP,
    addresses: tuple[str, ...] = (),
    **model: Any,
) -> AsyncIterator[Stage]:
    """A lane whose model has one server for each of ``answers``, after those at ``addresses``."""
    clock = ManualClock()
    store = ready_store(clock, governed)
    client = HttpClient(rest_s=0.0)  # these servers keep what they say
    health = Health()
    async with AsyncExitStack() as stack:
        received: list[dict[str, Any]] = []
        servers = [await stack.enter_async_context(serving(_handler(answer, received))) for answer in answers]
        urls = (*addresses, *(f"http://127.0.0.1:{server.port}" for server in servers))
        fields: dict[str, Any] = {
            "name": "chat",
            "upstreams": tuple(Upstream(url=url, headers={"authorization": "Bearer up"}) for url in urls),
            "upstream_model": "org/real-model",
            "context": 1000,
            "max_tokens": 50,
        }
        models = {"chat": ServedModel(**(fields | model))}
        lane = RealtimeLane(store, client, clock, models, observer=health, overrun=lambda organisation: overrun)
        stage = Stage(lane, store, servers, health)
        stage.received = received
        stage.models = models
        try:
            yield stage
        finally:
            await lane.close()
            await client.close()


def _handler(answer: ANSWER, received: list[dict[str, Any]]) -> Any:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, body = await read_request(reader)
            received.append(json.loads(body))
            await answer(writer, received[-1])
            await writer.drain()

    return handle


# --- what model servers send ---------------------------------------------------------------------------------


def whole(body: Any, status: str = "200 OK", headers: str = "") -> bytes:
    """A whole HTTP answer with a JSON body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(data)}\r\n{headers}\r\n".encode() + data


def completion(usage: Any = None, text: str = "hello") -> dict[str, Any]:
    """A chat completion."""
    body: dict[str, Any] = {
        "id": "c1", "object": "chat.completion", "created": 1, "model": "org/real-model",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
    }  # fmt: skip
    if usage is not None:
        body["usage"] = usage
    return body


def usage(prompt: Any = 7, completion_tokens: Any = 3) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion_tokens, "total_tokens": 10}


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(data: Any) -> bytes:
    """One server-sent event as an HTTP chunk."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return http_chunk(f"data: {text}\n\n".encode())


def delta(text: str | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """One event's content of a streamed chat completion."""
    changed = {} if text is None else {"content": text}
    return {
        "id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "org/real-model",
        "choices": [{"index": 0, "delta": changed, "finish_reason": finish}], **more,
    }  # fmt: skip


def tokens(count: int) -> bytes:
    """Events with one token each."""
    return b"".join(event(delta(f" t{index}")) for index in range(count))


def ending(usage: Any = None) -> bytes:
    """The last events of a stream, and the end of its body."""
    last = event(delta(None, "stop"))
    if usage is not None:
        last += event({**delta(None), "choices": [], "usage": usage})
    return last + event("[DONE]") + STREAM_END


def sends(*parts: bytes, disconnect: bool = False) -> ANSWER:
    """A server that answers each request with these bytes."""

    async def answer(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        writer.write(b"".join(parts))
        if disconnect:
            await writer.drain()
            writer.close()

    return answer


async def collect(reply: Any) -> list[Any]:
    """All events of a stream, decoded; text stays text."""
    assert isinstance(reply, StreamReply)
    shown = b"".join([events async for events in reply.events])
    return [_decoded(part) for part in shown.decode().split("\n\n") if part]


def _decoded(part: str) -> Any:
    assert part.startswith("data: ")
    return part[6:] if part == "data: [DONE]" else json.loads(part[6:])


def text_of(events: list[Any]) -> str:
    """The text of a stream's events."""
    return "".join(
        choice["delta"].get("content", "")
        for event in events
        if isinstance(event, dict)
        for choice in event.get("choices", ())
    )


LEARNED = {"reserve": ReservePolicy.LEARNED}
