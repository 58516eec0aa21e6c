"""Every store behind TLS with an authority of the test's own: reached by all, refused under another one."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from penstock.config import Configuration, load
from penstock.errors import ConfigurationError, StoreUnavailable
from penstock.lanes.credentials import mac, mint
from penstock.quota.definitions import Definitions, Key, Model
from penstock.quota.operations import Define, Inspect, Inspected, Ready
from penstock.wiring.bento import stream_environment
from penstock.wiring.quota import open_quota
from penstock.wiring.setting_up import set_up
from penstock.wiring.stores import Role
from tests.system.bento import CHAT, Bento, send
from tests.system.services import PostgreSQL, RabbitMQ, Redis, answers, free_port

pytestmark = pytest.mark.slow

PEPPER = "a pepper of at least 32 bytes, for tests"
ENVIRONMENT = {"PEPPER": PEPPER, "GATEWAY": "gateway's password"}


class SecuredRedis(Redis):
    """Answers over TLS only."""

    def __init__(self, folder: Path, certificate: Path) -> None:
        super().__init__(folder)
        self._certificate = certificate

    def command(self) -> list[str]:
        tls = ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
        files = [f"--tls-{kind}-file" for kind in ("cert", "key", "ca-cert")]
        return [*super().command(), *tls, *(each for file in files for each in (file, str(self._certificate)))]

    def is_ready(self) -> bool:
        return answers(self.port)


class SecuredPostgreSQL(PostgreSQL):
    """Lets nobody in without TLS."""

    def __init__(self, folder: Path, certificate: Path) -> None:
        super().__init__(folder)
        self._certificate = self.home / "server.pem"
        shutil.copy(certificate, self._certificate)
        self._certificate.chmod(0o600)
        if os.getuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(self._certificate, owner.pw_uid, owner.pw_gid)
        doors = self.data / "pg_hba.conf"
        doors.write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")

    def command(self) -> list[str]:
        file = str(self._certificate)
        return [*super().command(), *("-c", "ssl=on", "-c", f"ssl_cert_file={file}", "-c", f"ssl_key_file={file}")]


class SecuredRabbitMQ(RabbitMQ):
    """amqps and the management API over https only."""

    def __init__(self, folder: Path, certificate: Path) -> None:
        super().__init__(folder)
        file = self.folder / "rabbitmq.conf"
        plain = [line for line in file.read_text().splitlines() if ".tcp." not in line]
        secured = ["listeners.tcp = none", f"listeners.ssl.1 = 127.0.0.1:{self.port}"]
        secured += [f"ssl_options.{kind} = {certificate}" for kind in ("cacertfile", "certfile", "keyfile")]
        secured += ["management.ssl.ip = 127.0.0.1", f"management.ssl.port = {self.management_port}"]
        secured += [f"management.ssl.{kind} = {certificate}" for kind in ("cacertfile", "certfile", "keyfile")]
        file.write_text("\n".join([*plain, *secured, ""]))


class Stores:
    """The three of them, and a configuration that names them."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.folder = folder
        self.ca, self.other = folder / "ca.pem", folder / "other.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        trustme.CA().cert_pem.write_to_path(str(self.other))
        certificate = folder / "server.pem"
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
        self.redis = SecuredRedis(folder, certificate)
        self.postgresql = SecuredPostgreSQL(folder, certificate)
        self.rabbitmq = SecuredRabbitMQ(folder, certificate)
        self.all = (self.redis, self.postgresql, self.rabbitmq)
        self.environment = ENVIRONMENT | {"P": self.postgresql.password, "Q": self.rabbitmq.password}

    def configuration(self, **changes: dict[str, Any]) -> Configuration:
        """With changes to single stores."""
        ca = {"ca": {"file": str(self.ca)}}
        stores: dict[str, dict[str, Any]] = {
            "redis": {"url": f"rediss://localhost:{self.redis.port}", **ca},
            "postgresql": {
                "url": f"postgresql://localhost:{self.postgresql.port}/postgres",
                "username": "penstock", "password": {"env": "P"}, **ca,
            },
            "rabbitmq": {
                "url": f"amqps://localhost:{self.rabbitmq.port}/penstock",
                "management": f"https://localhost:{self.rabbitmq.management_port}",
                "username": self.rabbitmq.user, "password": {"env": "Q"}, **ca,
                "accounts": {"gateway": {"env": "GATEWAY"}},
            },
        }  # fmt: skip
        described = {
            "models": {"m": {"upstream": "http://127.0.0.1:9", "context": 4096, "max_tokens": 50}},
            "plans": {"p": {"limits": ["1M tokens/day"]}},
            "organisations": {"acme": {"plan": "p"}},
            "auth": {"pepper": {"env": "PEPPER"}},
            "stores": {name: each | changes.get(name, {}) for name, each in stores.items()},
        }
        file = self.folder / "penstock.yaml"
        file.write_text(yaml.safe_dump(described))
        return load([file])


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    made = Stores(tmp_path_factory.mktemp("secured"))
    for store in made.all:
        store.start()
    yield made
    for store in made.all:
        store.stop()


def prepare(stores: Stores, configuration: Configuration, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name, value in stores.environment.items():
        monkeypatch.setenv(name, value)
    told: list[str] = []
    asyncio.run(set_up(configuration, stores.environment, tell=told.append))
    return told


async def define(configuration: Configuration, token: str) -> Inspected:
    """A key in Redis, over TLS; and the organisation as it stands."""
    key = Key(id="k1", macs=((mac(token, PEPPER.encode()), 0),))
    definitions = Definitions(keys={"k1": key}, models={"m": Model(name="m", context=4096)})
    now_ms = time.time_ns() // 1_000_000
    async with open_quota(configuration, Role.KEEPER) as quota:
        await quota.apply(Define(organisation="acme", caller_now_ms=now_ms, version=9, definitions=definitions))
        await quota.apply(Ready(organisation="acme", caller_now_ms=now_ms, epoch=1))
        found = await quota.apply(Inspect(organisation="acme", caller_now_ms=now_ms))
    assert isinstance(found, Inspected)
    return found


def test_setup_and_a_stream_reach_every_store_over_tls(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = stores.configuration()
    told = prepare(stores, configuration, monkeypatch)
    assert {line.partition(":")[0].partition(" ")[0] for line in told} == {"postgresql", "redis", "rabbitmq"}
    token = mint("acme", "k1", secret=bytes(32))
    assert not asyncio.run(define(configuration, token)).holds
    port = free_port()
    own = {"PENSTOCK_GATEWAY_ADDRESS": f"127.0.0.1:{port}"}
    gateway = Bento(stores.folder, "gateway", stream_environment(configuration, "gateway", stores.environment) | own)
    gateway.start()
    try:
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        answer = send(f"http://127.0.0.1:{port}/v1/async/chat/completions", CHAT, **headers)
        assert answer.status == 202, answer.raw + gateway.log.read_bytes()
    finally:
        gateway.stop()


def test_a_stream_that_trusts_another_authority_accepts_nothing(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"ca": {"file": str(stores.other)}}
    configuration = stores.configuration(redis=wrong, rabbitmq=wrong)
    port = free_port()
    own = {"PENSTOCK_GATEWAY_ADDRESS": f"127.0.0.1:{port}"}
    gateway = Bento(
        stores.folder / "wrong", "gateway", stream_environment(configuration, "gateway", stores.environment) | own
    )
    gateway.start(is_up=lambda: answers(port))
    try:
        headers = {
            "authorization": f"Bearer {mint('acme', 'k1', secret=bytes(32))}",
            "content-type": "application/json",
        }
        assert send(f"http://127.0.0.1:{port}/v1/async/chat/completions", CHAT, **headers).status == 503
    finally:
        gateway.stop()


@pytest.mark.parametrize("store", ["postgresql", "redis", "rabbitmq"])
def test_a_store_that_another_authority_vouches_for_is_not_used(
    stores: Stores, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = stores.configuration(**{store: {"ca": {"file": str(stores.other)}}})
    with pytest.raises((StoreUnavailable, ConfigurationError), match=r"(?i)certificate|TLS"):
        prepare(stores, configuration, monkeypatch)


def test_two_authorities_for_one_stream_are_a_problem_with_its_fix(stores: Stores) -> None:
    configuration = stores.configuration(redis={"ca": {"file": str(stores.other)}})
    with pytest.raises(ConfigurationError, match="put both into one"):
        stream_environment(configuration, "gateway", stores.environment)
