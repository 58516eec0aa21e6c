"""Bento with one of our streams, as a child process on free ports; and the cluster of services that streams need."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.request import Request, urlopen

import pytest

from penstock.adapters.http.client import HttpClient
from penstock.adapters.rabbitmq.management import ManagementApi, prepare
from penstock.adapters.rabbitmq.topology import Bounds, fill, queue_name
from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.client import RedisClient
from penstock.adapters.redis.cluster import find_primaries
from penstock.adapters.redis.library import load_library
from penstock.adapters.redis.store import open_store
from penstock.lanes.credentials import mac, mint
from penstock.quota.definitions import Definitions, Key, Kind, Limit, Metric, Model, Price
from penstock.quota.operations import Call, Define, Inspect, Inspected, Ready
from tests.system.programs import answers_200
from tests.system.services import STOP_S, RabbitMQ, Redis, free_port, wait_until

ROOT: Final = Path(__file__).parents[2]
CONFIGURATIONS: Final = ROOT / "config" / "bento"
RESOURCES: Final = CONFIGURATIONS / "resources" / "*.yaml"
PEPPER: Final = "a pepper that is thirty-two bytes"
VHOST: Final = "penstock"
SHARDS: Final = 2
CHAT: Final = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
A = TypeVar("A")


def found_bento() -> str:
    """Our distribution, as `make bento` leaves it; without it the test is skipped, and fails in CI."""
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock" / "bento"
    if not place.exists():
        pytest.skip("our Bento is not built: `make bento` builds it")
    return str(place)


class Bento:
    """One stream. ``environment`` is what its header asks for; ports are added."""

    def __init__(self, folder: Path, stream: str, environment: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.stream = stream
        self.log = folder / f"{stream}.log"
        self.operations_port = free_port()
        self._environment = {**environment, "PENSTOCK_OPERATIONS_ADDRESS": f"127.0.0.1:{self.operations_port}"}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, is_up: Callable[[], bool] | None = None) -> None:
        """Start, and wait until it is up: ready, unless said otherwise."""
        command = [
            *(found_bento(), "-t", str(CONFIGURATIONS / "templates" / "*.yaml")),
            *("-r", str(RESOURCES), "-c", str(CONFIGURATIONS / f"{self.stream}.yaml")),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **self._environment},
            )  # fmt: skip
        wait_until(is_up or self.is_ready, self.process, self.log, bound_s=30)

    def is_ready(self) -> bool:
        return answers_200(f"http://127.0.0.1:{self.operations_port}/ready")

    def publishes(self) -> bool:
        """Whether a gateway has the broker; being ready does not show it."""
        return Bento.is_ready(self) and self.metric("amqp_publish_connected") == 1

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_S)

    def kill(self) -> None:
        process, self.process = self.process, None
        assert process is not None, f"{self.stream} is not running"
        process.kill()
        process.wait(STOP_S)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a counter's series that have these labels."""
        with urlopen(f"http://127.0.0.1:{self.operations_port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        found = [line for line in lines if line.startswith((f"{name}{{", f"{name} "))]
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found if all(one in line for one in wanted))


class Cluster:
    """Redis with our library and RabbitMQ with our topology; organisations are defined by tests."""

    MODELS: Final = {
        "m": {"max_tokens": 50, "context": 4096},
        "org/m": {"max_tokens": 8, "context": 100},
        "g": {"max_tokens": 1, "context": 500, "infers": True},
    }

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.redis = Redis(folder)
        self.broker = RabbitMQ(folder)

    def start(self) -> None:
        self.redis.start()
        self.broker.start()
        asyncio.run(self._prepare())

    def stop(self) -> None:
        self.broker.stop()
        self.redis.stop()

    async def _prepare(self) -> None:
        for primary in await find_primaries(read_address(self.redis.url)):
            client = RedisClient(primary, name="test")
            await load_library(client)
            await client.close()
        template = (ROOT / "config" / "rabbitmq" / "definitions.json").read_text()
        bounds, users = Bounds(ready_bytes_max=50_000_000, deliveries=5), self.passwords
        definitions = fill(template, vhost=VHOST, models=self.MODELS, shards=SHARDS, bounds=bounds, users=users)
        await self._managed(lambda api: prepare(api, definitions, self.passwords))

    async def _managed(self, work: Callable[[ManagementApi], Awaitable[A]]) -> A:
        http = HttpClient()
        try:
            broker = self.broker
            return await work(
                ManagementApi(http, broker.management_url, username=broker.user, password=broker.password)
            )
        finally:
            await http.close()

    def manage(self, method: str, *path: str, body: Any = None) -> Any:
        """One call of the management API; its answer."""
        return asyncio.run(self._managed(lambda api: api.ask(method, *path, body=body)))[1]

    @property
    def passwords(self) -> dict[str, str]:
        return {f"penstock_{role}": f"secret-of-{role}" for role in ("gateway", "worker", "collector", "monitor")}

    @property
    def environment(self) -> dict[str, str]:
        """What the gateway is given; others take their part of it."""
        models = {name: {**model, "queue": queue_name(name)} for name, model in self.MODELS.items()}
        return {
            "PENSTOCK_REDIS_URL": self.redis.url,
            "PENSTOCK_PEPPER": PEPPER,
            "PENSTOCK_MODELS": json.dumps(models),
        }

    def amqp_url(self, role: str) -> str:
        user = f"penstock_{role}"
        return f"amqp://{user}:{self.passwords[user]}@127.0.0.1:{self.broker.port}/{VHOST}"

    def apply(self, call: Call[A]) -> A:
        """Ask the quota."""

        async def ask() -> A:
            async with open_store(self.redis.url) as store:
                return await store.apply(call)

        return asyncio.run(ask())

    def define(
        self, organisation: str, *limits: tuple[Metric, Kind, int, int], shard: int = 0, version: int = 1, **key: Any
    ) -> str:
        """An organisation with the cluster's models, these limits (metric, kind, period_ms, cap) and a key; the key."""
        token = mint(organisation, "k1", secret=bytes(32))
        models = {
            name: Model(name=name, context=model["context"], price=Price(prompt_picos=1_000, completion_picos=2_000))
            for name, model in self.MODELS.items()
        }
        definitions = Definitions(
            limits=tuple(
                Limit(owner=organisation, metric=metric, kind=kind, period_ms=period_ms, cap=cap)
                for metric, kind, period_ms, cap in limits
            ),
            keys={
                "k1": Key(id="k1", macs=((mac(token, PEPPER.encode()), 0),), **key),
                "jwt.corp": Key(id="jwt.corp", verified=True),
            },
            models=models,
            shard=shard,
        )
        now_ms = time.time_ns() // 1_000_000
        self.apply(Define(organisation=organisation, caller_now_ms=now_ms, version=version, definitions=definitions))
        self.apply(Ready(organisation=organisation, caller_now_ms=now_ms, epoch=1))
        return token

    def inspect(self, organisation: str) -> Inspected:
        found = self.apply(Inspect(organisation=organisation, caller_now_ms=time.time_ns() // 1_000_000))
        assert isinstance(found, Inspected)
        return found

    def take(self, queue: str, count_max: int = 1000) -> list[dict[str, Any]]:
        """Take messages out of a queue; each with ``payload`` and ``properties``."""
        body = {"count": count_max, "ackmode": "ack_requeue_false", "encoding": "auto"}
        taken: list[dict[str, Any]] = self.manage("POST", "queues", VHOST, queue, "get", body=body)
        return taken


class Answer:
    """What came back over HTTP; header names in lower case."""

    def __init__(self, status: int, headers: Mapping[str, str], raw: bytes) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.raw = raw

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


def send(url: str, body: bytes | None, method: str = "POST", **headers: str) -> Answer:
    """One HTTP request; underscores in the names of headers become hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = Request(url, data=body, headers=named, method=method)
    try:
        with urlopen(request, timeout=30) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except OSError as error:
        if not hasattr(error, "headers"):
            raise
        return Answer(error.code, error.headers, error.read())  # type: ignore[attr-defined]


class Gateway(Bento):
    """The gateway, and requests to it."""

    def __init__(self, folder: Path, cluster: Cluster, **environment: str) -> None:
        self.port = free_port()
        super().__init__(
            folder,
            "gateway",
            {
                **cluster.environment,
                "PENSTOCK_RABBITMQ_URL": cluster.amqp_url("gateway"),
                "PENSTOCK_GATEWAY_ADDRESS": f"127.0.0.1:{self.port}",
                **environment,
            },
        )

    def is_ready(self) -> bool:
        """It listens before it has reached the broker, and says meanwhile that the queue took no job."""
        return self.publishes()

    def url(self, path: str = "chat/completions") -> str:
        return f"http://127.0.0.1:{self.port}/v1/async/{path}"

    def post(self, key: str, body: bytes = CHAT, path: str = "chat/completions", **headers: str) -> Answer:
        named = {"authorization": f"Bearer {key}", "content_type": "application/json", **headers}
        return send(self.url(path), body, **named)
