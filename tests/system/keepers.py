"""Keepers on a real Redis and a real PostgreSQL, prepared as ``penstock setup`` does, and requests to account for."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import yaml
from sqlalchemy import Engine, func, select

from penstock.adapters.postgresql.database import open_engine
from penstock.adapters.postgresql.preparing import prepare
from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.client import RedisClient, pack
from penstock.adapters.redis.library import load_library
from penstock.adapters.redis.outbox import Outbox
from penstock.adapters.redis.store import open_store
from penstock.adapters.redis.users import apply_users
from penstock.adapters.sql.definitions import record_definitions
from penstock.adapters.sql.keeping_tables import keeper, usage_daily, usage_hourly
from penstock.adapters.sql.keys import Keys
from penstock.adapters.sql.ledger import LedgerReads
from penstock.config import load
from penstock.quota.definitions import Key
from penstock.quota.events import Event, Usage
from penstock.quota.identity import reservation_id
from penstock.quota.operations import Call, Inspect, Inspected, Lane, Reserve, Reserved, Settle
from penstock.wiring.auditing_cluster import audit_cluster
from penstock.wiring.governing import in_file
from penstock.wiring.templates import templates
from tests.system.clusters import until
from tests.system.programs import Program
from tests.system.services import PostgreSQL, Redis

ACCOUNTS = {"api": "of the api", "keeper": "of the keeper", "collector": "of the collector"}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class KeeperProgram(Program):
    """``penstock keeper``."""

    def __init__(self, folder: Path, configuration: Path, *options: str, crash_at: str = "") -> None:
        environment = {"PENSTOCK_CRASH_AT": crash_at} if crash_at else {}
        super().__init__(
            folder, "keeper", "-c", str(configuration), "--operations-port", "0", *options,
            environment=environment,
        )  # fmt: skip

    @property
    def url(self) -> str:
        found = re.findall(r"metrics and health on (\S+)", self.log.read_text())
        return str(found[-1])

    def is_ready(self) -> bool:
        return "metrics and health on" in self.log.read_text()

    def metric(self, name: str) -> float:
        with urlopen(f"{self.url}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        assert found is not None, f"no {name} in\n{text}"
        return float(found[1])

    def series(self, name: str) -> dict[str, float]:
        """A metric's values by their labels as written, ``model="m"``."""
        with urlopen(f"{self.url}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        return {labels: float(value) for labels, value in re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE)}

    def scaling(self, model: str) -> tuple[int, Any]:
        """Status and answer of its page for autoscaling."""
        try:
            with urlopen(f"{self.url}/scaling?model={model}", timeout=5) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            with error:
                return error.code, json.load(error)

    @property
    def is_active(self) -> bool:
        return self.metric("penstock_keeper_active") == 1


class World:
    """One Redis, one PostgreSQL, and the organisation acme, which has a limit of each kind."""

    def __init__(self, folder: Path, *, upstream: str = "http://127.0.0.1:1") -> None:
        self.folder = folder
        self._upstream = upstream
        users = folder / "users.acl"  # as a restart finds them
        users.touch()
        self.redis, self.postgresql = Redis(folder, "--aclfile", str(users)), PostgreSQL(folder)
        self.numbers = iter(range(1, 2**40))
        self.settled: list[str] = []
        self.keepers: list[KeeperProgram] = []
        self._engine: Engine | None = None

    @property
    def database(self) -> str:
        return f"postgresql://127.0.0.1:{self.postgresql.port}/penstock"

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            self._engine = open_engine(self.database, username="penstock", password=self.postgresql.password)
        return self._engine

    def start(self) -> None:
        self.redis.start()
        self.postgresql.start()
        self._write_configuration()
        prepare(self.engine, ACCOUNTS, now_ms=now_ms())
        self.define()
        Keys(self.engine).create("acme", Key(id="k1", macs=(("ab12", 0),)), name="", now_ms=now_ms(), actor="test")
        asyncio.run(self._prepare_redis())

    def define(self) -> None:
        record_definitions(self.engine, in_file(load([self.file])), shards=1, now_ms=now_ms(), actor="test")

    async def _prepare_redis(self) -> None:
        client = RedisClient(read_address(self.redis.url))
        await load_library(client)
        template = (templates() / "redis" / "users.acl").read_text(encoding="utf-8")
        await apply_users(client, template=template, passwords=ACCOUNTS)
        await client.close()

    @property
    def file(self) -> Path:
        return self.folder / "penstock.yaml"

    def _write_configuration(self) -> None:
        def secret(name: str, text: str) -> dict[str, str]:
            (self.folder / name).write_text(text)
            return {"file": str(self.folder / name)}

        accounts = {role: secret(role, ACCOUNTS[role]) for role in ("keeper", "api")}
        described = {
            "models": {
                "m": {
                    "upstream": self._upstream,
                    "context": 4096,
                    "price": {"input": 1, "output": 2},
                    "capacity": {"tokens_per_second": 100, "concurrency": 4, "cold_start": "5s"},
                    "replicas": {"min": 0, "max": 100},
                },
            },
            "plans": {"p": {"limits": ["200k tokens/minute", "300 usd/month", "1M tokens/day", "32 concurrent"]}},
            "organisations": {"acme": {"plan": "p"}},
            "auth": {"pepper": secret("pepper", "p" * 64)},
            "stores": {
                "redis": {"url": self.redis.url, "accounts": accounts},
                "postgresql": {"url": self.database, "accounts": accounts},
                "rabbitmq": {"url": "amqp://127.0.0.1:1/penstock", "management": "http://127.0.0.1:1"},
            },
        }
        self.file.write_text(yaml.safe_dump(described))

    def keeper(self, *options: str, crash_at: str = "") -> KeeperProgram:
        """A keeper that was started; ended at the end of the test if it still runs."""
        place = self.folder / f"keeper-{len(self.keepers)}"
        program = KeeperProgram(place, self.file, *options, crash_at=crash_at)
        self.keepers.append(program)
        program.start()
        return program

    def applied(self, *calls: Call[Any]) -> list[Any]:
        async def main() -> list[Any]:
            async with open_store(self.redis.url) as store:
                return [await store.apply(call) for call in calls]

        return asyncio.run(main())

    def asks(self, *words: str) -> Any:
        async def main() -> Any:
            client = RedisClient(read_address(self.redis.url))
            try:
                return await client.ask(pack(*words))
            finally:
                await client.close()

        return asyncio.run(main())

    def reserve(self) -> Reserve:
        at_ms = now_ms()
        return Reserve(
            organisation="acme", caller_now_ms=at_ms, reservation=reservation_id(at_ms, next(self.numbers)), nonce="n",
            fingerprint="f", key="k1", key_mac="ab12", route="chat.completions", model="m", body_bytes=40,
            outputs_bound=8, lane=Lane.REALTIME, job_deadline_ms=at_ms + 600_000,
        )  # fmt: skip

    def settle(self, count: int) -> None:
        """Requests that used 10 + 5 tokens each."""
        calls: list[Call[Any]] = []
        for reserve in (self.reserve() for _ in range(count)):
            name, at_ms, reservation = reserve.organisation, reserve.caller_now_ms, reserve.reservation
            settle = Settle(organisation=name, caller_now_ms=at_ms, reservation=reservation, usage=Usage(10, 5))
            self.settled.append(reservation)
            calls += [reserve, settle]
        answers = self.applied(*calls)
        assert all(isinstance(answer, Reserved) for answer in answers[::2]), answers[::2]

    def inspected(self) -> Inspected | None:
        (answer,) = self.applied(Inspect(organisation="acme", caller_now_ms=now_ms()))
        return answer if isinstance(answer, Inspected) else None

    def inspected_epoch(self) -> int:
        found = self.inspected()
        assert found is not None
        return found.epoch

    def command(self, *arguments: str, expect: int = 0) -> str:
        """Run another command on the same configuration; all that it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "penstock", *arguments, "-c", str(self.file)], cwd=self.folder, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == expect, done.stdout
        return done.stdout

    def is_ready(self) -> bool:
        found = self.inspected()
        return found is not None and found.epoch > 0

    def waiting(self) -> int:
        async def main() -> int:
            outbox = Outbox(read_address(self.redis.url))
            await outbox.start()
            try:
                return sum((await outbox.lengths()).values())
            finally:
                await outbox.close()

        return asyncio.run(main())

    def until_drained(self) -> None:
        """No event waits for the ledger; fails at once if the newest keeper has ended by itself, with what it said."""

        def nothing_waits() -> bool:
            newest = self.keepers[-1]
            ended = newest.process.poll() if newest.process is not None else None
            assert not ended or ended < 0, f"the keeper ended with {ended}:\n{newest.log.read_text()[-4000:]}"
            return self.waiting() == 0

        until(nothing_waits)

    def restart_postgresql(self, *settings: str) -> None:
        """Stop it, and start it with other settings, ``name=value``."""
        self.engine.dispose()
        self.postgresql.stop()
        self.postgresql.settings = settings
        self.postgresql.start()

    def events(self) -> list[Event]:
        with self.engine.connect() as connection:
            return list(LedgerReads(connection).events())

    def fence(self) -> int:
        with self.engine.connect() as connection:
            fence: int = connection.execute(select(keeper.c.fence)).scalar_one()
            return fence

    def assert_whole(self) -> None:
        """Every settle is in the ledger once, rolled up once, and counters are what the ledger sums to."""
        self.until_drained()
        events = self.events()
        counts = Counter(event.reservation for event in events)
        assert counts == Counter(self.settled)
        expected = [sum(each) for each in zip(*((e.charge.requests, e.charge.tokens) for e in events), strict=True)]
        with self.engine.connect() as connection:
            for table in (usage_hourly, usage_daily):
                sums = connection.execute(select(func.sum(table.c.requests), func.sum(table.c.tokens))).one()
                assert [int(each) for each in sums] == expected
        report = asyncio.run(self._audit())
        assert report["differences"] == 0, report

    async def _audit(self) -> Mapping[str, Any]:
        outbox = Outbox(read_address(self.redis.url))
        await outbox.start()
        try:
            async with open_store(self.redis.url) as store:
                report = await audit_cluster(["acme"], store, outbox, self.engine, now_ms=now_ms())
        finally:
            await outbox.close()
        return {"differences": report.differences, "report": report}

    def stop(self) -> None:
        for program in self.keepers:
            if program.process is not None and program.process.poll() is None:
                program.kill()
        if self._engine is not None:
            self._engine.dispose()
        self.redis.stop()
        self.postgresql.stop()
