"""``penstock setup`` on real services: again changes nothing, and two at once do no harm."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.system.services import PostgreSQL, RabbitMQ, Redis

pytestmark = pytest.mark.slow

BOUND_S = 120.0


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file that names three running services, with an account for every role."""
    folder = tmp_path_factory.mktemp("setup")
    redis, postgresql, rabbitmq = services = Redis(folder), PostgreSQL(folder), RabbitMQ(folder)
    try:
        for service in services:
            service.start()
        yield written(folder, redis, postgresql, rabbitmq)
    finally:
        for service in reversed(services):
            service.stop()


def written(folder: Path, redis: Redis, postgresql: PostgreSQL, rabbitmq: RabbitMQ) -> Path:
    def secret(name: str, text: str) -> dict[str, str]:
        (folder / name).write_text(text)
        return {"file": str(folder / name)}

    def accounts(*roles: str) -> dict[str, dict[str, str]]:
        return {role: secret(f"{role}-password", f"of the {role}") for role in roles}

    described = {
        "models": {"m": {"upstream": "http://127.0.0.1:1", "context": 4096}},
        "plans": {"p": {"limits": ["200k tokens/minute", "300 usd/month"]}},
        "organisations": {"acme": {"plan": "p", "teams": {"search": {"limits": ["1M tokens/day"]}}}},
        "auth": {"pepper": secret("pepper", "p" * 64)},
        "stores": {
            "redis": {
                "url": redis.url,
                "accounts": accounts("api", "keeper", "gateway", "worker", "collector"),
            },
            "postgresql": {
                "url": f"postgresql://127.0.0.1:{postgresql.port}/penstock",
                "username": "penstock",
                "password": secret("postgresql-administrator", postgresql.password),
                "accounts": accounts("api", "keeper", "collector"),
            },
            "rabbitmq": {
                "url": f"amqp://127.0.0.1:{rabbitmq.port}/penstock",
                "management": rabbitmq.management_url,
                "username": rabbitmq.user,
                "password": secret("rabbitmq-administrator", rabbitmq.password),
                "accounts": accounts("gateway", "worker", "collector", "monitor"),
            },
        },
    }
    file = folder / "penstock.yaml"
    file.write_text(yaml.safe_dump(described))
    return file


def begin(file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "penstock", "setup", "-c", str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> str:
    told, _ = process.communicate(timeout=BOUND_S)
    assert process.returncode == 0, told
    return told


def test_two_at_once_prepare_everything_and_a_third_changes_nothing(configuration: Path) -> None:
    together = [end(each) for each in [begin(configuration), begin(configuration)]]
    assert any("1 organisations are written" in told for told in together)
    again = end(begin(configuration))
    assert "1 organisations stay as they are" in again
    assert "redis: the function library is same" in again
    assert " is new" not in again


def test_a_lower_limit_is_carried_over(configuration: Path) -> None:
    end(begin(configuration))
    before = configuration.read_text()
    try:
        configuration.write_text(before.replace("300 usd/month", "200 usd/month"))
        assert "1 organisations are written" in end(begin(configuration))
    finally:
        configuration.write_text(before)


def test_without_stores_there_is_nothing_to_prepare(tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text(json.dumps({"models": {"m": {"upstream": "http://127.0.0.1:1", "context": 4096}}}))
    process = begin(file)
    told, _ = process.communicate(timeout=BOUND_S)
    assert process.returncode != 0
    assert "stores: not given" in told
