"""Jobs while every link is cut, delayed, half-closed and refused: each has one result, and is billed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from tests.counts import count
from tests.system.fault_proxy import FAULTS, FaultProxy, disturb, mend
from tests.system.programs import SimulatedModel
from tests.system.queue_lane import Executor, QueueLane, until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("streams")]

SEED = 20260302
JOBS_BETWEEN = 3


class Links:
    """The lane with a proxy on each link; ``names`` say between whom."""

    def __init__(self, folder: Path) -> None:
        self._parts = ExitStack()
        self.lane = lane = QueueLane(folder)
        self.by_name: dict[str, FaultProxy] = {}
        lane.start()
        self._parts.callback(lane.stop)
        lane.start_database()
        model = SimulatedModel(folder / "model", "--model", "m", "--decode", "500")
        model.start()
        self._parts.callback(model.stop)
        redis = self.link("executor-redis", lane.redis.port, lane.redis_url("worker"))
        self.executor = Executor(folder / "execute", redis, self.link("executor-model", _port(model.url), model.url))
        self.executor.start()
        lane.executor = self.executor
        self._parts.callback(self.executor.stop)
        for name, role in (("worker", "worker"), ("collector", "collector")):
            own = {
                "PENSTOCK_RABBITMQ_URL": self.link(f"{name}-rabbitmq", lane.broker.port, lane.amqp_url(role)),
                "PENSTOCK_REDIS_URL": self.link(f"{name}-redis", lane.redis.port, lane.redis_url(role)),
            }
            if name == "worker":
                url = self.link("worker-executor", self.executor.port, self.executor.url)
                own |= {"PENSTOCK_EXECUTOR_URL": url}
            else:
                assert lane.postgresql is not None
                url = self.link("collector-postgresql", lane.postgresql.port, lane.postgresql_url)
                own |= {"PENSTOCK_POSTGRESQL_URL": url}
            stream = lane.stream(name, PENSTOCK_SHUTDOWN_TIMEOUT="2s", **own)
            stream.start()
            self._parts.callback(stream.stop)

    def link(self, name: str, port: int, url: str) -> str:
        """The same URL by way of a proxy."""
        proxy = self.by_name[name] = FaultProxy(port)
        proxy.start()
        self._parts.callback(proxy.stop)
        return url.replace(f":{port}", f":{proxy.port}")

    def stop(self) -> None:
        self._parts.close()


def _port(url: str) -> int:
    return int(url.rsplit(":", 1)[1].split("/")[0])


@pytest.fixture
def links(tmp_path: Path) -> Iterator[Links]:
    made = Links(tmp_path / "lane")
    yield made
    made.stop()


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_every_job_has_one_result_and_is_billed_once_whatever_the_links_do(links: Links) -> None:
    lane, random = links.lane, Random(SEED)
    lane.define_acme("linked")
    every = [(name, fault) for name in links.by_name for fault in FAULTS]
    faults = random.sample(every, count(len(every), short=4))
    jobs = []
    for name, fault in faults:
        proxy = links.by_name[name]
        disturb(proxy, fault)
        jobs += [lane.accept("linked") for _ in range(JOBS_BETWEEN)]
        for job in jobs[-JOBS_BETWEEN:]:
            lane.publish_job(job)
        mend(proxy)
    told = f"seed {SEED}: {faults}"
    until(lambda: sum(row["settled"] for row in lane.rows(jobs)) == len(jobs), f"all are settled; {told}")
    until(lambda: lane.depth("results").get("messages") == 0, "every result is acknowledged")
    rows = lane.rows(jobs)
    assert [row["job"] for row in rows] == sorted(job.job for job in jobs), told
    assert {row["status"] for row in rows} <= {"succeeded", "failed"}, told
    charged = sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows if row["prompt_tokens"] is not None)
    assert lane.used("linked") == charged, told
    assert lane.depth("dead").get("messages", 0) == 0, told
