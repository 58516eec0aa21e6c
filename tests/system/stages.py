"""Where the commands of the documentation run: each stage starts what its pages speak of, and tells where it is.

A stage is a context that yields environment variables for its commands. A component adds its own here.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import openai

from penstock.adapters.redis import apply_users, load_library, open_store
from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.client import RedisClient
from penstock.quota import (
    Define,
    Definitions,
    Key,
    Kind,
    Lane,
    Limit,
    Metric,
    Model,
    Price,
    Ready,
    Reserve,
    Reserved,
    Settle,
    Usage,
    reservation_id,
)
from tests.system.bento import Cluster, Gateway, found_bento
from tests.system.clusters import until
from tests.system.keepers import World
from tests.system.programs import Announced, SimulatedModel
from tests.system.restoring import Archived
from tests.system.services import Redis

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"


@contextmanager
def redis(place: Path) -> Iterator[dict[str, str]]:
    """A Redis with a user for each role, in which acme has settled one request and holds another: ``REDIS_URL``."""
    service = Redis(place, configuration=CONFIG / "redis/redis.conf")
    (service.folder / "users.acl").touch()
    try:
        service.start()
        asyncio.run(_fill(service.url))
        yield {"REDIS_URL": service.url, "FAKETTY": "1"}  # redis-cli then prints as it does in a terminal
    finally:
        service.stop()


async def _fill(url: str) -> None:
    client = RedisClient(read_address(url))
    await load_library(client)
    template = (CONFIG / "redis/users.acl").read_text()
    roles = ("api", "keeper", "gateway", "worker", "collector")
    await apply_users(client, template=template, passwords=dict.fromkeys(roles, "secret"))
    await client.close()
    now_ms = int(time.time() * 1000)
    limits = (
        Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.RATE, period_ms=60_000, cap=200_000),
        Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.WINDOW, cap=50_000_000),
        Limit(owner="acme", metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY, cap=32),
    )
    price = Price(prompt_picos=150_000, completion_picos=600_000)
    definitions = Definitions(
        limits=limits,
        keys={"k1": Key(id="k1", macs=(("ab12", 0),))},
        models={"chat-small": Model(name="chat-small", context=8192, price=price)},
    )
    async with open_store(url) as store:
        await store.apply(Define(organisation="acme", caller_now_ms=now_ms, version=1, definitions=definitions))
        await store.apply(Ready(organisation="acme", caller_now_ms=now_ms, epoch=1))
        for number in (1, 2):
            reserve = Reserve(
                organisation="acme", caller_now_ms=now_ms, reservation=reservation_id(now_ms, number), nonce="n",
                fingerprint="f", key="k1", key_mac="ab12", route="chat.completions", model="chat-small",
                body_bytes=400, outputs_bound=256, lane=Lane.REALTIME, job_deadline_ms=now_ms + 600_000,
            )  # fmt: skip
            answer = await store.apply(reserve)
            assert isinstance(answer, Reserved)
        settle = Settle(
            organisation="acme", caller_now_ms=now_ms, reservation=reservation_id(now_ms, 1), usage=Usage(97, 42)
        )
        await store.apply(settle)


@contextmanager
def serve(place: Path) -> Iterator[dict[str, str]]:
    """``penstock serve`` with the example configuration, its model simulated, after one request of acme's."""
    model = SimulatedModel(place / "model", "--model", "smollm2-135m", "--tokens", "12")
    address, data, backup = place / "address.yaml", place / "data", place / "backup"
    backup.mkdir()
    address.write_text(f"models: {{smollm2-135m: {{upstream: '{model.url}'}}}}\n")
    service = Announced(place / "service", data, "-c", str(ROOT / "penstock.yaml"), "-c", str(address))
    try:
        model.start()
        service.start()
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0) as client:
            client.chat.completions.create(model="smollm2-135m", messages=[{"role": "user", "content": "What is it?"}])
        yield {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PENSTOCK_DATA": str(data),
            "API_URL": service.url,
            "API_KEY": service.key,
            "OPERATIONS_URL": service.running["operations_url"],
            "BACKUP": str(backup),
        }
    finally:
        for program in (service, model):
            if program.process is not None:
                program.stop()


@contextmanager
def queue(place: Path) -> Iterator[dict[str, str]]:
    """RabbitMQ with our topology, Redis with acme, and the gateway, after one job: addresses, and acme's ``KEY``."""
    cluster = Cluster(place)
    gateway = Gateway(place, cluster)
    try:
        cluster.start()
        key = cluster.define("acme")
        gateway.start()
        assert gateway.post(key).status == 202
        commands = cluster.broker.rabbitmqctl()
        (commands.parent / "bento").symlink_to(found_bento())
        login = f"://{cluster.broker.user}:{cluster.broker.password}@"
        yield {
            "PATH": f"{commands.parent}:{os.environ['PATH']}",
            "KEY": key,
            "GATEWAY_URL": f"http://127.0.0.1:{gateway.port}",
            "OPERATIONS_URL": f"http://127.0.0.1:{gateway.operations_port}",
            "GATEWAY_LOG": str(gateway.log),
            "MANAGEMENT_URL": cluster.broker.management_url.replace("://", login),
            "BACKUP": str(place),
        }
    finally:
        gateway.stop()
        cluster.stop()


@contextmanager
def keeper(place: Path) -> Iterator[dict[str, str]]:
    """A keeper that has drained three settled requests of acme: its operations port and ``DATABASE``."""
    world = World(place)
    try:
        world.start()
        program = world.keeper()
        until(world.is_ready)
        world.settle(3)
        world.assert_whole()
        until(lambda: program.metric("penstock_keeper_events_total") == 3)
        secret = world.postgresql.password
        database = world.database.replace("//", f"//penstock:{secret}@")
        yield {"DATABASE": database, "KEEPER": program.url, "PAGER": "cat"}
    finally:
        world.stop()


@contextmanager
def backup(place: Path) -> Iterator[dict[str, str]]:
    """A PostgreSQL that archives its log, with three requests in the ledger: its own variables, and ``BACKUP``."""
    world = World(place)
    world.postgresql = server = Archived(place / "archived")
    folder = place / "backup"
    folder.mkdir()
    try:
        world.start()
        world.keeper()
        until(world.is_ready)
        world.settle(3)
        world.assert_whole()
        server.archive_log()
        yield {
            "PATH": f"{server.programs}:{os.environ['PATH']}",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(server.port),
            "PGUSER": "penstock",
            "PGPASSWORD": server.password,
            "PGDATABASE": "penstock",
            "ARCHIVE": str(server.archive),
            "BACKUP": str(folder),
        }
    finally:
        world.stop()


@contextmanager
def files(place: Path) -> Iterator[dict[str, str]]:
    """No service: the project's own files, and ``penstock``."""
    yield {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(place)}


@contextmanager
def scaling(place: Path) -> Iterator[dict[str, str]]:
    """A keeper, and six jobs of acme's that wait for a model without a worker: ``KEEPER``."""
    world = World(place)
    try:
        world.start()
        program = world.keeper()
        until(world.is_ready)
        world.applied(*(replace(world.reserve(), lane=Lane.QUEUE, outputs_bound=3_000) for _ in range(6)))
        until(lambda: program.scaling("m")[1].get("inputs", {}).get("waiting_jobs") == 6)
        yield {"KEEPER": program.url}
    finally:
        world.stop()


Stage = Callable[[Path], AbstractContextManager[dict[str, str]]]
STAGES: dict[str, Stage] = {
    "backup": backup,
    "files": files,
    "keeper": keeper,
    "queue": queue,
    "redis": redis,
    "scaling": scaling,
    "serve": serve,
}
