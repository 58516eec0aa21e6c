"""The queue lane as its streams see it: services with the real accounts of each role, an executor, and jobs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Engine, make_url, text

from penstock.adapters.postgresql.database import open_engine
from penstock.adapters.postgresql.preparing import prepare
from penstock.adapters.rabbitmq.topology import queue_name, shard_name
from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.client import RedisClient
from penstock.adapters.redis.outbox import Outbox
from penstock.adapters.redis.users import apply_users
from penstock.lanes.jobs import Job, JobResult, JobStatus, write_job, write_result
from penstock.quota import Definitions, Key, Kind, Lane, Limit, Metric, Model, Price, Usage, reservation_id
from penstock.quota.events import Event, EventKind
from penstock.quota.operations import Define, Look, Ready, Reserve, Reserved, Seen, Settle, Void
from penstock.wiring.crash import VARIABLE
from tests import polling
from tests.system.bento import ROOT, SHARDS, VHOST, Bento, Cluster
from tests.system.programs import Program, SimulatedModel, answers_200
from tests.system.services import PostgreSQL, Redis, free_port

BOUND_S = 40.0
until = partial(polling.until, bound_s=BOUND_S)
QUEUE = shard_name("m", 0)
SECRET = "canary-of-a-prompt"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Executor(Program):
    """``penstock execute`` with the worker's account of Redis and one model, ``m``."""

    def __init__(
        self, folder: Path, redis_url: str, model_url: str, *, port: int | None = None, crash_at: str = ""
    ) -> None:
        self.port, operations_port = port or free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        scheme, _, rest = redis_url.partition("://")
        place, account = rest.split("@")[::-1]
        password = account.partition(":")[2]
        folder.mkdir(parents=True)
        (folder / "penstock.yaml").write_text(
            f"models: {{m: {{upstream: '{model_url}', context: 4096}}}}\n"
            "plans: {p: {limits: [1M tokens/day]}}\n"
            "organisations: {acme: {plan: p}}\n"
            "server: {data_directory: data, shutdown: 1s}\n"
            f"stores: {{redis: {{url: '{scheme}://{place}', accounts: {{worker: {{env: WORKER}}}}}},\n"
            "  postgresql: {url: 'postgresql://127.0.0.1/penstock'},\n"
            "  rabbitmq: {url: 'amqp://127.0.0.1', management: 'http://127.0.0.1:15672'}}\n"
        )
        super().__init__(
            folder, "execute", "--port", str(self.port), "--operations-port", str(operations_port),
            "--concurrency", "8", "--log-format", "json", environment={"WORKER": password, VARIABLE: crash_at},
        )  # fmt: skip

    def is_ready(self) -> bool:
        return answers_200(f"{self.url}/ready")


class QueueLane(Cluster):
    """Redis and RabbitMQ as ``Cluster`` has them, with the users of ``users.acl``; what else a test asks for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "users.acl").touch()
        self.redis = Redis(folder / "guarded", "--aclfile", str(folder / "users.acl"))
        self._parts = ExitStack()
        self._count = 0
        self.postgresql: PostgreSQL | None = None
        self.model: SimulatedModel | None = None
        self.executor: Executor | None = None

    def start(self) -> None:
        super().start()
        self._parts.callback(super().stop)
        asyncio.run(self._make_users())

    async def _make_users(self) -> None:
        client = RedisClient(read_address(self.redis.url), name="test")
        await client.start()
        passwords = {role: self.passwords[f"penstock_{role}"] for role in ("worker", "collector")}
        template = (ROOT / "config" / "redis" / "users.acl").read_text()
        applied = await apply_users(client, template=template, passwords=passwords)
        assert applied.are_kept, "a restart of Redis would forget its users"
        await client.close()

    def stop(self) -> None:
        self._parts.close()

    def start_executor(self, *, tokens_per_second: int) -> None:
        """The model server ``m``, and an executor that calls it."""
        self.model = SimulatedModel(self.folder / "model", "--model", "m", "--decode", str(tokens_per_second))
        self.model.start()
        self._parts.callback(self.model.stop)
        self.executor = Executor(self.folder / "execute", self.redis_url("worker"), self.model.url)
        self.executor.start()
        self._parts.callback(self.executor.kill)

    def start_database(self) -> None:
        self.postgresql = PostgreSQL(self.folder)
        self.postgresql.start()
        self._parts.callback(self.postgresql.stop)
        self.engine = open_engine(str(make_url(self.postgresql.url).set(database="penstock").render_as_string(False)))
        self._parts.callback(self.engine.dispose)
        prepare(self.engine, {"collector": self.passwords["penstock_collector"]}, now_ms=now_ms())

    engine: Engine

    def redis_url(self, role: str) -> str:
        return f"redis://penstock_{role}:{self.passwords[f'penstock_{role}']}@127.0.0.1:{self.redis.port}"

    @property
    def postgresql_url(self) -> str:
        assert self.postgresql is not None
        password = self.passwords["penstock_collector"]
        return f"postgresql://penstock_collector:{password}@127.0.0.1:{self.postgresql.port}/penstock?sslmode=disable"

    def stream(self, name: str, **environment: str) -> Bento:
        """One of our streams, not started yet."""
        role = "worker" if name == "worker" else "collector"
        own = {"PENSTOCK_REDIS_URL": self.redis_url(role), "PENSTOCK_RABBITMQ_URL": self.amqp_url(role), **environment}
        if role == "collector":
            own.setdefault("PENSTOCK_POSTGRESQL_URL", self.postgresql_url)
        else:
            assert self.executor is not None
            executor = {"PENSTOCK_QUEUE": queue_name("m"), "PENSTOCK_EXECUTOR_URL": self.executor.url}
            own = {"PENSTOCK_SHARDS": str(SHARDS), **executor, **own}
        self._count += 1
        return Bento(self.folder / f"{name}-{self._count}", name, own)

    def define_acme(self, organisation: str) -> None:
        """An organisation with a budget, and a bound on what runs at once."""
        definitions = Definitions(
            limits=(
                Limit(owner=organisation, metric=Metric.TOKENS, kind=Kind.WINDOW, period_ms=86_400_000, cap=10**9),
                Limit(owner=organisation, metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY, cap=1_000),
            ),
            keys={"k1": Key(id="k1", verified=True)},
            models={"m": Model(name="m", context=4096, price=Price(prompt_picos=1_000, completion_picos=2_000))},
        )
        at: dict[str, Any] = {"organisation": organisation, "caller_now_ms": now_ms()}
        self.apply(Define(**at, version=1, definitions=definitions))
        self.apply(Ready(**at, epoch=1))

    def accept(self, organisation: str, tokens: int = 5) -> Job:
        """What the gateway does before it publishes: a job whose answer has so many tokens."""
        self._count += 1
        at_ms = now_ms()
        reserve = Reserve(
            organisation=organisation, caller_now_ms=at_ms, reservation=reservation_id(at_ms, self._count),
            nonce="n", fingerprint="f", key="k1", key_mac="", route="chat.completions", model="m", body_bytes=100,
            outputs_bound=tokens, lane=Lane.QUEUE, job_deadline_ms=at_ms + 600_000,
        )  # fmt: skip
        reserved = self.apply(reserve)
        assert isinstance(reserved, Reserved), reserved
        return Job(
            job=reserve.reservation, organisation=organisation, epoch=reserved.epoch, route=reserve.route, model="m",
            request_id="r1", accepted_at_ms=at_ms, reserve=reserve,
            request={"model": "m", "messages": [{"role": "user", "content": SECRET}], "max_tokens": tokens,
                     "metadata": {"simulate": f"tokens={tokens}"}},
        )  # fmt: skip

    def publish(self, message: bytes, exchange: str = "penstock.jobs", key: str = QUEUE, **headers: str) -> None:
        """One message, persistent, with these headers."""
        body = {
            "properties": {"delivery_mode": 2, "headers": {name.replace("_", "-"): v for name, v in headers.items()}},
            "routing_key": key,
            "payload": message.decode(),
            "payload_encoding": "string",
        }
        assert self.manage("POST", "exchanges", VHOST, exchange, "publish", body=body) == {"routed": True}

    def publish_job(self, job: Job, **headers: str) -> None:
        self.publish(write_job(job), **headers)

    def publish_results(self, *results: JobResult) -> None:
        for result in results:
            self.publish(write_result(result), "penstock.results", "results")

    def look(self, job: Job) -> Seen:
        seen = self.apply(Look(organisation=job.organisation, caller_now_ms=now_ms(), reservation=job.job))
        assert isinstance(seen, Seen), seen
        return seen

    def collect(self, job: Job, usage: Usage) -> None:
        """What the collector does, for a lane without one."""
        self.apply(Settle(organisation=job.organisation, caller_now_ms=now_ms(), reservation=job.job, usage=usage))

    def void(self, job: Job) -> None:
        self.apply(Void(organisation=job.organisation, caller_now_ms=now_ms(), reservation=job.job))

    def depth(self, queue: str) -> dict[str, int]:
        """Messages of a queue: ``messages_ready`` and ``messages_unacknowledged``, as the broker last counted."""
        found: dict[str, int] = self.manage("GET", "queues", VHOST, queue)
        return found

    def rows(self, jobs: Iterable[Job]) -> list[dict[str, Any]]:
        """Stored results of these jobs, in the order of their ids."""
        wanted = text("SELECT * FROM results WHERE job = ANY(:jobs) ORDER BY job")
        with self.engine.connect() as connection:
            found = connection.execute(wanted, {"jobs": [job.job for job in jobs]})
            return [dict(row) for row in found.mappings()]

    def events(self, organisation: str) -> list[Event]:
        """What Redis recorded of an organisation."""

        async def main() -> list[Event]:
            outbox = Outbox(read_address(self.redis.url))
            await outbox.start()
            entries = await outbox.read(count_max=100_000)
            await outbox.close()
            events = [entry.event for partition in entries.values() for entry in partition]
            return [each for each in events if each.organisation == organisation]

        return asyncio.run(main())

    def ends(self, organisation: str) -> list[Event]:
        """Every event that ended a reservation of an organisation."""
        begins = (EventKind.RESERVED, EventKind.ACQUIRED)
        return [event for event in self.events(organisation) if event.kind not in begins]

    def used(self, organisation: str) -> int:
        """Tokens of the budget: nothing is held any more, and the counter is what the events add up to."""
        inspected = self.inspect(organisation)
        assert inspected.holds == ()
        tokens = next(limit for limit in inspected.limits if limit.metric == "tokens")
        posted = [amount for event in self.ends(organisation) for amount in event.amounts]
        assert sum(each.amount for each in posted if "/tokens/" in each.limit) == tokens.used
        return int(tokens.used)


def result_of(job: Job, prompt: int = 10, completion: int = 5, **changes: Any) -> JobResult:
    """What an executor might answer."""
    result = JobResult(
        job=job.job, organisation=job.organisation, model="m", status=JobStatus.SUCCEEDED, http_status=200,
        body=msgspec.Raw(json.dumps({"choices": [], "said": SECRET}).encode()), reason="",
        usage=Usage(prompt, completion), attempts=1, started_at_ms=1, finished_at_ms=2, arguments=job.reserve,
    )  # fmt: skip
    return msgspec.structs.replace(result, **changes)
