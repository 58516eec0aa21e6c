"""``penstock setup`` on real services: again changes nothing, and two at once do no harm."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.system.bento import found_bento
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


def penstock(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=BOUND_S)


def test_a_pod_waits_for_the_setup_of_its_version_and_is_given_its_streams_environment(
    configuration: Path, tmp_path: Path
) -> None:
    """Waited for by each role with its own account; a version stays prepared, through FLUSHALL too."""
    file = tmp_path / "environment"
    stream = ("--role", "worker", "--stream", "worker:m", "--environment", file)
    early = penstock("await", "aaaa", "-c", configuration, "--timeout-s", "2", *stream)
    assert early.returncode != 0
    assert "was not done within 2 s" in early.stderr
    assert not file.exists()
    for version in ("aaaa", "bbbb"):
        done = penstock("setup", "-c", configuration, "--version", version)
        assert f"prepared for version {version}" in done.stdout, done.stderr
    for role in ("api", "keeper", "gateway", "worker", "collector"):
        assert penstock("await", "aaaa", "-c", configuration, "--role", role).returncode == 0
    (tmp_path / "version").write_text("bbbb\n")
    late = penstock("await", f"@{tmp_path / 'version'}", "-c", configuration, *stream)
    assert late.returncode == 0, late.stderr
    assert file.stat().st_mode & 0o777 == 0o640
    told = printed_by_bento(file, tmp_path)
    assert told["PENSTOCK_QUEUE"] == "jobs.m.standard"
    assert told["PENSTOCK_OPERATIONS_ADDRESS"] == "0.0.0.0:4197"
    assert "of the worker".replace(" ", "%20") in told["PENSTOCK_RABBITMQ_URL"]
    assert "PENSTOCK_PEPPER" not in told
    wrong = penstock("await", "cccc", "-c", configuration, "--timeout-s", "2")
    assert "prepared for bbbb so far" in wrong.stderr


def printed_by_bento(file: Path, folder: Path) -> dict[str, str]:
    """The environment as Bento's own reader of such files takes it."""
    names = [line.partition("=")[0] for line in file.read_text().splitlines()]
    mapping = "root = {" + ", ".join(f'"{name}": env("{name}")' for name in names) + "}"
    stream = {"input": {"generate": {"count": 1, "mapping": mapping}}, "output": {"stdout": {}}}
    (folder / "stream.yaml").write_text(yaml.safe_dump(stream))
    command = [found_bento(), "--env-file", str(file), "-c", str(folder / "stream.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=BOUND_S)
    found: dict[str, str] = json.loads(done.stdout.splitlines()[0])
    return found
