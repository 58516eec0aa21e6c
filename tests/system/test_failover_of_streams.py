"""Redis fails over while the gateway takes jobs, the worker runs them and the collector charges them: by sentinels, or
within a cluster. What was accepted has its one result, and is billed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
import yaml
from sqlalchemy import text

from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.client import RedisClient
from penstock.adapters.redis.users import apply_users
from penstock.config import load
from penstock.quota.definitions import Kind, Metric
from penstock.quota.events import EventKind
from penstock.wiring.bento import stream_environment
from tests.adapters.redis.fleets import Cluster as Fleet
from tests.adapters.redis.fleets import Watched
from tests.counts import TORTURE, count
from tests.system.bento import ROOT, Bento, Gateway
from tests.system.queue_lane import QueueLane, until

pytestmark = [pytest.mark.slow, pytest.mark.torture, pytest.mark.xdist_group("streams"), pytest.mark.timeout(900)]

JOBS: Final = count(1_000, short=30)  # before the fault, in it, and after it
ROLES: Final = ("gateway", "worker", "collector")
STREAMS: Final = {"gateway": "gateway", "worker": "worker:m", "collector": "collector"}
BOUND_S: Final = 180.0
BODY: Final = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":5}'
DAY: Final = (Metric.TOKENS, Kind.WINDOW, 86_400_000, 10**9)


class LaneOfSeveral(QueueLane):
    """The queue lane on several servers of Redis; each stream has the variables that the configuration leads to."""

    def __init__(self, folder: Path, fleet: Watched | Fleet) -> None:
        super().__init__(folder)
        self.fleet = fleet
        self.redis = fleet  # type: ignore[assignment]  # it has an address, and starts and stops

    async def _make_users(self) -> None:
        """On replicas as well: Redis copies functions to them, and not users."""
        servers = self.fleet.servers[:2] if isinstance(self.fleet, Watched) else self.fleet.nodes
        template = (ROOT / "config" / "redis" / "users.acl").read_text()
        for server in servers:
            client = RedisClient(read_address(server.url), name="test")
            await apply_users(client, template=template, passwords={role: self._secret(role) for role in ROLES})
            await client.close()

    def redis_url(self, role: str) -> str:
        scheme, _, places = self.fleet.url.partition("://")
        return f"{scheme}://penstock_{role}:{self._secret(role)}@{places}"

    def stream(self, name: str, **environment: str) -> Bento:
        return super().stream(name, **self.variables(name), **environment)

    def variables(self, stream: str) -> dict[str, str]:
        """Where Redis is, as `penstock up` and the chart tell a stream."""
        file = self.folder / "penstock.yaml"
        broker = {"url": "amqp://127.0.0.1", "management": "http://127.0.0.1:15672"}
        described = {
            "models": {"m": {"upstream": "http://127.0.0.1:1", "context": 4096}},
            "plans": {"p": {"limits": ["1M tokens/day"]}},
            "organisations": {"acme": {"plan": "p"}},
            "auth": {"pepper": {"env": "PEPPER"}},
            "stores": {
                "redis": {"url": self.fleet.url, "accounts": {role: {"env": role.upper()} for role in ROLES}},
                "postgresql": {"url": "postgresql://127.0.0.1/penstock"},
                "rabbitmq": broker,
            },
        }
        file.write_text(yaml.safe_dump(described))
        secrets = {role.upper(): self._secret(role) for role in ROLES} | {"PEPPER": "p" * 64}
        found = stream_environment(load([file]), STREAMS[stream], secrets)
        return {name: value for name, value in found.items() if name.startswith("PENSTOCK_REDIS")}

    def _secret(self, role: str) -> str:
        return self.passwords[f"penstock_{role}"]

    def lose_one(self) -> None:
        """The primary that has the organisation."""
        (self.fleet.primary if isinstance(self.fleet, Watched) else self.fleet.nodes[0]).kill()
        self.fleet.wait_for_failover()


@pytest.fixture(params=[Watched, Fleet] if TORTURE else [Watched], ids=lambda fleet: fleet.__name__.lower())
def lane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LaneOfSeveral]:
    lane = LaneOfSeveral(tmp_path, request.param(tmp_path / "fleet"))
    try:
        lane.start()
        lane.start_executor(tokens_per_second=200)
        lane.start_database()
        yield lane
    finally:
        lane.stop()


def handed_in(gateway: Gateway, key: str) -> str | None:
    """The job of one request; None if it was refused, as it may be while nobody is the primary."""
    answer = gateway.post(key, BODY)
    if answer.status == 202:
        return str(answer.body["id"])
    assert (answer.status, answer.body["error"]["code"]) == (503, "quota_unavailable"), answer.raw
    assert int(answer.headers["retry-after"]) >= 1
    return None


def test_a_failover_loses_no_accepted_job_and_bills_each_once(lane: LaneOfSeveral) -> None:
    key = lane.define("acme", DAY)  # in a cluster it is on the first node
    accepted: list[str] = []
    with ExitStack() as parts:
        gateway = Gateway(lane.folder / "gateway", lane, **lane.variables("gateway"))
        for stream in (gateway, lane.stream("worker"), lane.stream("collector")):
            stream.start()
            parts.callback(stream.stop)
        pool = parts.enter_context(ThreadPoolExecutor(8))

        def some_more() -> int:
            found = [job for job in pool.map(lambda _: handed_in(gateway, key), range(JOBS)) if job is not None]
            accepted.extend(found)
            return len(found)

        assert some_more() == JOBS
        losing = pool.submit(lane.lose_one)
        some_more()
        losing.result()
        until(lambda: some_more() > 0, "jobs are accepted again", bound_s=BOUND_S)
        until(lambda: len(stored(lane)) == len(accepted), "every accepted job has its result", bound_s=BOUND_S)
        until(lambda: lane.inspect("acme").holds == (), "nothing is held", bound_s=BOUND_S)
    assert sorted(accepted) == stored(lane)
    posted = Counter(event.reservation for event in lane.ends("acme") if event.kind is EventKind.POSTED)
    assert posted == Counter(accepted)
    lane.used("acme")


def stored(lane: LaneOfSeveral) -> list[str]:
    with lane.engine.connect() as connection:
        return sorted(connection.execute(text("SELECT job FROM results WHERE status = 'succeeded'")).scalars())
