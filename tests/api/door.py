"""The API under a real uvicorn on a free loopback port, in front of the real quota model and a lane of a few lines."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TypeVar

import uvloop

from penstock.api.application import application
from penstock.api.server import bind, serve
from penstock.api.services import Bounds, ModelCard, Services, TokenReader
from penstock.errors import Forbidden, InvalidRequest, PenstockError, QuotaDenied, StoreUnavailable, Unauthenticated
from penstock.lanes.credentials import Credential, Credentials, mac, mint
from penstock.lanes.following import Following
from penstock.lanes.repeating import Repeating
from penstock.lanes.requests import InferenceRequest, Reply, StreamReply
from penstock.ports import RequestRecord
from penstock.quota.admitting import is_valid
from penstock.quota.definitions import Definitions, Key, Kind, Limit, Metric, Model, Price
from penstock.quota.events import Usage
from penstock.quota.identity import reservation_id
from penstock.quota.model import Organisation
from penstock.quota.operations import (
    Call,
    Define,
    Denied,
    Inspect,
    Inspected,
    Lane,
    NoKey,
    OutOfScope,
    Ready,
    Reserve,
    Reserved,
    Settle,
)
from tests.api.shelf import Kept, Rows, Shelf

A = TypeVar("A")
PEPPER, OLD_PEPPER = b"a pepper of at least 32 bytes, new", b"a pepper of at least 32 bytes, old"
NOW_MS = 1_762_000_000_000  # 2025-11-01T12:26:40Z
TOKEN = mint("acme", "k1", secret=bytes(32))
TEAM_TOKEN = mint("acme", "k2", secret=bytes([1]) * 32)
NARROW_TOKEN = mint("acme", "k3", secret=bytes([2]) * 32)
OLD_TOKEN = mint("acme", "k4", secret=bytes([3]) * 32)
MODEL_TOKEN = mint("acme", "k5", secret=bytes([5]) * 32)
OTHER_TOKEN = mint("globex", "k1", secret=bytes([4]) * 32)
WRONG_TOKENS = {
    "of an unknown organisation": mint("nobody", "k1", secret=bytes(32)),
    "of an unknown id": mint("acme", "k9", secret=bytes(32)),
    "with a wrong secret": mint("acme", "k1", secret=bytes([9]) * 32),
    "revoked": mint("acme", "revoked", secret=bytes(32)),
    "expired": mint("acme", "expired", secret=bytes(32)),
    "cut": TOKEN[:-1],
    "of another maker": "sk-1234",
}


def a_key(token: str, *, pepper: bytes = PEPPER, **more: object) -> Key:
    return Key(id=token.split("_")[2], macs=((mac(token, pepper), 0),), **more)  # type: ignore[arg-type]


def a_limit(metric: Metric, kind: Kind, cap: int, period_ms: int = 0, *, owner: str = "acme") -> Limit:
    return Limit(owner=owner, metric=metric, kind=kind, cap=cap, period_ms=period_ms)


LIMITS = (
    a_limit(Metric.TOKENS, Kind.RATE, 200_000, 60_000),
    a_limit(Metric.REQUESTS, Kind.STRICT_RATE, 600, 60_000),
    a_limit(Metric.TOKENS, Kind.WINDOW, 50_000_000),
    a_limit(Metric.COST, Kind.WINDOW, 300 * 10**9),
    a_limit(Metric.CONCURRENCY, Kind.CONCURRENCY, 32),
    a_limit(Metric.TOKENS, Kind.WINDOW, 20_000_000, owner="acme:team:search"),
)
MODELS = {
    name: Model(
        name=name, context=8192, template_tokens=64, price=Price(prompt_picos=150_000, completion_picos=600_000)
    )
    for name in ("chat-small", "meta-llama/Llama-3.1-8B-Instruct")
}
KEYS = (
    a_key(TOKEN),
    a_key(TEAM_TOKEN, team="search"),
    a_key(NARROW_TOKEN, models=frozenset({"chat-small"}), routes=frozenset({"chat.completions", "models"})),
    a_key(OLD_TOKEN, pepper=OLD_PEPPER),
    a_key(MODEL_TOKEN, models=frozenset({"chat-small"})),
    a_key(WRONG_TOKENS["revoked"], revoked=True),
    a_key(WRONG_TOKENS["expired"], expires_at_ms=1),
)


class Clock:
    """Stands still for the quota, runs for durations."""

    def now_ms(self) -> int:
        return NOW_MS

    def monotonic_s(self) -> float:
        return time.monotonic()


class ModelStore:
    """The quota model, behind the port."""

    def __init__(self, limits: tuple[Limit, ...] = LIMITS) -> None:
        self.is_down = False
        self.organisations = {name: Organisation(name) for name in ("acme", "globex")}
        for name, keys in (("acme", KEYS), ("globex", (a_key(OTHER_TOKEN),))):
            own = limits if name == "acme" else ()
            definitions = Definitions(limits=own, keys={key.id: key for key in keys}, models=MODELS)
            self._now(Define(organisation=name, caller_now_ms=NOW_MS, version=1, definitions=definitions))
            self._now(Ready(organisation=name, caller_now_ms=NOW_MS, epoch=1))

    def add_keys(self, organisation: str, *keys: Key) -> None:
        """Define more keys."""
        definitions = self.organisations[organisation].definitions
        more = replace(definitions, keys={**definitions.keys, **{key.id: key for key in keys}})
        self._now(Define(organisation=organisation, caller_now_ms=NOW_MS, version=2, definitions=more))

    def _now(self, call: Call[A]) -> A:
        return self.organisations[call.organisation].apply(call, time_ms=NOW_MS)

    async def apply(self, call: Call[A]) -> A:
        if self.is_down:
            raise StoreUnavailable("the quota store does not answer", retry_after_ms=1500)
        if call.organisation not in self.organisations:
            return NoKey()  # type: ignore[return-value] # what a store without such an organisation answers
        return self._now(call)

    def inspected(self) -> Inspected:
        answer = self._now(Inspect(organisation="acme", caller_now_ms=NOW_MS))
        assert isinstance(answer, Inspected)
        return answer

    async def check(self, credential: Credential) -> Key | None:
        """The ``KeyCheck`` of the pages, over the same definitions."""
        organisation = self.organisations.get(credential.organisation)
        definitions = organisation.definitions if organisation is not None else None
        key = definitions.key(credential.key) if definitions is not None else None
        if key is None or not any(is_valid(key, each, NOW_MS) for each in credential.macs):
            return None
        return credential.narrowed(key)


class ShortLane:
    """Reserves, says ``words``, settles: enough of a lane to stand behind the API.

    Args:
        fault: Raised after the reservation.
        pause: Awaited after the reservation, and in a stream before each word but the first.
    """

    def __init__(self, store: ModelStore) -> None:
        self.store = store
        self.words = ["one ", "two ", "three"]
        self.fault: Exception | None = None
        self.pause: Callable[[], Awaitable[None]] | None = None
        self.seen: list[InferenceRequest] = []
        self.stopped = threading.Event()
        self._count = 0

    async def answer(self, request: InferenceRequest) -> Reply | StreamReply:
        self.seen.append(request)
        reservation, reserved = await self.reserve(request)
        request.readings = reserved.readings
        if self.fault is not None:
            await self._settle(request, reservation, 0)
            raise self.fault
        if request.stream:
            return StreamReply(self._events(request, reservation), reserved.readings)
        try:
            if self.pause is not None:
                await self.pause()
        except asyncio.CancelledError:
            await self._settle(request, reservation, 0)
            self.stopped.set()
            raise
        await self._settle(request, reservation, len(self.words))
        message = {"role": "assistant", "content": "".join(self.words)}
        body: dict[str, object] = {"id": reservation, "object": "chat.completion", "model": request.model}
        if request.route == "embeddings":
            body["data"] = [{"object": "embedding", "index": at, "embedding": [0.5]} for at in range(request.prompts)]
        else:
            body["choices"] = [{"index": 0, "message": message, "text": "".join(self.words), "finish_reason": "stop"}]
        return Reply(200, json.dumps(body).encode(), reserved.readings)

    async def _events(self, request: InferenceRequest, reservation: str) -> AsyncGenerator[bytes, None]:
        said = 0
        try:
            for word in self.words:
                if said and self.pause is not None:
                    await self.pause()
                said += 1
                choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                yield b"data: %s\n\n" % json.dumps({"id": reservation, "choices": [choice]}).encode()
        finally:
            await self._settle(request, reservation, said)
            self.stopped.set()
        yield b"data: [DONE]\n\n"

    async def reserve(self, request: InferenceRequest) -> tuple[str, Reserved]:
        self._count += 1
        reservation = reservation_id(NOW_MS, self._count)
        answer = await self.store.apply(
            Reserve(
                organisation=request.organisation,
                caller_now_ms=NOW_MS,
                reservation=reservation,
                nonce="1",
                fingerprint=request.fingerprint,
                key=request.key,
                key_mac=request.key_mac,
                route=request.route,
                model=request.model,
                body_bytes=request.body_bytes,
                prompts=request.prompts,
                outputs_bound=request.outputs * (request.max_tokens or 100),
                lane=Lane.REALTIME,
                job_deadline_ms=NOW_MS + 600_000,
            )
        )
        if isinstance(answer, Denied):
            raise QuotaDenied(f"{answer.limit}: needs {answer.amount}, {answer.available} left", denied=answer)
        if isinstance(answer, NoKey):
            raise Unauthenticated("no such key")
        if isinstance(answer, OutOfScope):
            raise Forbidden(f"this key's scope excludes this {answer.what}")
        if not isinstance(answer, Reserved):
            raise InvalidRequest("the quota store refuses this")
        request.record.reservation = reservation
        return reservation, answer

    async def _settle(self, request: InferenceRequest, reservation: str, completion: int) -> None:
        await self.store.apply(
            Settle(
                organisation=request.organisation,
                caller_now_ms=NOW_MS,
                reservation=reservation,
                usage=Usage(prompt=10, completion=completion),
            )
        )


class Watcher:
    """An observer that keeps what it saw."""

    def __init__(self) -> None:
        self.begun: list[RequestRecord] = []
        self.ended: list[RequestRecord] = []
        self.upstreams: list[tuple[str, bool]] = []
        self._changed = threading.Condition()

    def started(self, record: RequestRecord) -> None:
        with self._changed:
            self.begun.append(record)
            self._changed.notify_all()

    def finished(self, record: RequestRecord) -> None:
        with self._changed:
            self.ended.append(record)
            self._changed.notify_all()

    def upstream_changed(self, model: str, upstream: str, healthy: bool) -> None:
        self.upstreams.append((model, healthy))

    def last(self, count: int = 1) -> RequestRecord:
        """The newest finished record, once ``count`` have finished."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.ended) >= count, timeout=10)
            return self.ended[-1]

    def wait_begun(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.begun) >= count, timeout=10)


@dataclass
class Door:
    """One API and what stands behind it."""

    store: ModelStore = field(default_factory=ModelStore)
    watcher: Watcher = field(default_factory=Watcher)
    ledger: Rows = field(default_factory=Rows)
    reasons: tuple[str, ...] = ()
    bounds: Bounds = field(default_factory=Bounds)
    port: int = 0
    subjects: TokenReader | None = None

    def __post_init__(self) -> None:
        self.lane = ShortLane(self.store)
        self.shelf = Shelf(self.store, now_ms=NOW_MS, key_mac=mac(TOKEN, PEPPER))

    def services(self) -> Services:
        async def readiness() -> tuple[str, ...]:
            return self.reasons

        return Services(
            lane=self.lane,
            repeating=Repeating(self.lane, Kept(), self.store, Clock()),
            acceptor=self.shelf,
            jobs=Following(self.shelf, self.store, Clock()),
            quota=self.store,
            ledger=self.ledger,
            keys=self.store,
            credentials=Credentials((PEPPER, OLD_PEPPER)),
            clock=Clock(),
            observer=self.watcher,
            models={name: ModelCard(id=name, created_s=1, context=model.context) for name, model in MODELS.items()},
            readiness=readiness,
            bounds=self.bounds,
            subjects=self.subjects,
        )

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def begin(self, **more: object) -> socket.socket:
        """Send a chat request, and read nothing."""
        body = json.dumps(chat_body(**more)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n"
        connection = self.connect()
        connection.sendall(
            f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        )
        return connection

    def raw(self, request: bytes) -> Answer:
        """Send bytes and read one answer."""
        with self.connect() as connection:
            connection.sendall(request)
            return read_answer(connection)

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = TOKEN,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> Answer:
        """One request with a JSON body."""
        lines = [f"{method} {path} HTTP/1.1", "host: penstock", *(f"{name}: {value}" for name, value in headers)]
        if token is not None:
            lines.append(f"authorization: Bearer {token}")
        content = b""
        if body is not None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            if not any(name == "content-type" for name, _ in headers):
                lines.append("content-type: application/json")
            lines.append(f"content-length: {len(content)}")
        return self.raw("\r\n".join([*lines, "", ""]).encode() + content)

    def chat(self, **more: object) -> Answer:
        """One chat request; ``more`` goes into its body."""
        return self.ask("POST", "/v1/chat/completions", chat_body(**more))


def chat_body(**more: object) -> dict[str, object]:
    return {"model": "chat-small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10} | more


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, object]:
        decoded = json.loads(self.body)
        assert isinstance(decoded, dict)
        return decoded

    def error(self) -> dict[str, str | None]:
        error = self.json()["error"]
        assert isinstance(error, dict)
        assert set(error) == {"message", "type", "param", "code"}
        return error


def read_answer(connection: socket.socket) -> Answer:
    """One answer with a content-length or in chunks."""
    with connection.makefile("rb") as file:
        status = int(file.readline().split(b" ")[1])
        headers: dict[str, str] = {}
        while line := file.readline().rstrip(b"\r\n"):
            name, _, value = line.decode("latin-1").partition(": ")
            assert name not in headers, f"{name} twice"
            headers[name] = value
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while length := int(file.readline(), 16):
                body += file.read(length)
                file.readline()
            file.readline()
        else:
            body = file.read(int(headers.get("content-length", "0")))
        return Answer(status, headers, body)


@contextmanager
def listening(
    app: Callable[..., object],
    *,
    around: Callable[[], AbstractAsyncContextManager[object]] = nullcontext,
    **options: float,
) -> Iterator[tuple[int, Callable[[], None]]]:
    """Run ``serve`` in a thread, within ``around``; gives its port, and a function that stops it and waits."""
    ready = threading.Event()
    found: dict[str, object] = {}

    async def main() -> None:
        stop = asyncio.Event()
        found["stop"] = stop
        found["loop"] = asyncio.get_running_loop()

        listener = bind("127.0.0.1", 0)
        found["port"] = listener.getsockname()[1]
        async with around():
            await serve(app, listener, stop=stop, started=ready.set, **options)  # type: ignore[arg-type]

    thread = threading.Thread(target=lambda: uvloop.run(main()))
    thread.start()
    assert ready.wait(10)

    def stop() -> None:
        loop, event = found["loop"], found["stop"]
        assert isinstance(loop, asyncio.AbstractEventLoop)
        assert isinstance(event, asyncio.Event)
        if thread.is_alive():
            loop.call_soon_threadsafe(event.set)
        thread.join(20)
        assert not thread.is_alive()

    port = found["port"]
    assert isinstance(port, int)
    try:
        yield port, stop
    finally:
        stop()


@contextmanager
def open_door(door: Door | None = None, *, head_s: float = 10.0) -> Iterator[Door]:
    """The API, listening."""
    door = door or Door()
    with listening(application(door.services()), head_s=head_s) as (door.port, _):
        yield door


def failing(error: PenstockError) -> Door:
    """A door whose lane fails after the reservation."""
    door = Door()
    door.lane.fault = error
    return door
