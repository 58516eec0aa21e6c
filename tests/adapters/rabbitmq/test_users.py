"""RabbitMQ's users, by what a real broker lets them do and what it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from penstock.adapters.http.client import HttpClient
from penstock.adapters.rabbitmq.management import ManagementApi, prepare
from tests.adapters.rabbitmq.speaking import Speaker
from tests.adapters.rabbitmq.test_management import PASSWORDS, definitions
from tests.system.services import RabbitMQ

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("rabbitmq")]

VHOST = "users"
JOBS = "jobs.m.standard.0"
REFUSED = 403
ATTEMPTS: dict[str, Callable[[Speaker], int]] = {
    "publish a job": lambda speaker: speaker.publish("penstock.jobs", JOBS),
    "publish a result": lambda speaker: speaker.publish("penstock.results", "results"),
    "publish a dead letter": lambda speaker: speaker.publish("penstock.dead", ""),
    "publish past the exchanges": lambda speaker: speaker.publish("", JOBS),
    "take a job": lambda speaker: speaker.get(JOBS),
    "take a result": lambda speaker: speaker.get("results"),
    "take a dead letter": lambda speaker: speaker.get("dead"),
    "empty the jobs": lambda speaker: speaker.purge(JOBS),
    "delete the jobs": lambda speaker: speaker.delete(JOBS),
    "delete the results": lambda speaker: speaker.delete("results"),
    "make a queue": lambda speaker: speaker.declare("mine"),
    "listen to the jobs": lambda speaker: speaker.bind("results", "penstock.jobs"),
}
MAY = {
    "gateway": {"publish a job"},
    "worker": {"publish a result", "take a job", "empty the jobs"},  # who may take each may take all
    "collector": {"take a result", "take a dead letter"},
    "monitor": set[str](),
}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    started = RabbitMQ(tmp_path_factory.mktemp("broker"))
    started.start()

    async def make() -> None:
        client = HttpClient()
        api = ManagementApi(client, started.management_url, username=started.user, password=started.password)
        await prepare(api, definitions(VHOST), PASSWORDS)
        await client.close()

    asyncio.run(make())
    yield started
    started.stop()


@pytest.mark.parametrize("role", MAY)
def test_a_user_does_its_work_and_nothing_else(broker: RabbitMQ, role: str) -> None:
    found = {}
    for name, attempt in ATTEMPTS.items():
        user = f"penstock_{role}"
        speaker = Speaker(broker, VHOST, user, PASSWORDS[user])
        try:
            found[name] = attempt(speaker)
        finally:
            speaker.close()
    assert found == {name: 0 if name in MAY[role] else REFUSED for name in ATTEMPTS}
