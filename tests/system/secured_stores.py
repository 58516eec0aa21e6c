"""Redis, PostgreSQL and RabbitMQ behind TLS with an authority of the test's own, and a configuration naming them."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from penstock.config import Configuration, load
from penstock.lanes.credentials import mac
from penstock.quota.definitions import Definitions, Key, Model
from penstock.quota.operations import Define, Inspect, Inspected, Ready
from penstock.wiring.quota import open_quota
from penstock.wiring.setting_up import set_up
from penstock.wiring.stores import Role
from tests.system.services import PostgreSQL, RabbitMQ, Redis, answers

PEPPER = "a pepper of at least 32 bytes, for tests"
ENVIRONMENT = {"PEPPER": PEPPER, "GATEWAY": "gateway's password", "COLLECTOR": "collector's password"}


class SecuredRedis(Redis):
    """Answers over TLS only; ``asks`` its clients for a certificate, or does not."""

    def __init__(self, folder: Path, certificate: Path, authority: Path, *, asks: bool) -> None:
        super().__init__(folder)
        self._certificate, self._authority, self._asks = certificate, authority, asks

    def command(self) -> list[str]:
        tls = ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "yes" if self._asks else "no"]
        files = {"cert": self._certificate, "key": self._certificate, "ca-cert": self._authority}
        named = [each for kind, file in files.items() for each in (f"--tls-{kind}-file", str(file))]
        return [*super().command(), *tls, *named]

    def is_ready(self) -> bool:
        return answers(self.port)


class SecuredPostgreSQL(PostgreSQL):
    """Lets nobody in without TLS, and without a certificate if it ``asks`` for one."""

    def __init__(self, folder: Path, certificate: Path, authority: Path, *, asks: bool) -> None:
        super().__init__(folder)
        self._certificate = self._own(certificate, "server.pem")
        self._authority = self._own(authority, "ca.pem")
        doors = self.data / "pg_hba.conf"
        doors.write_text(f"hostssl all all 127.0.0.1/32 scram-sha-256{' clientcert=verify-ca' if asks else ''}\n")

    def _own(self, file: Path, name: str) -> Path:
        own = self.home / name
        shutil.copy(file, own)
        own.chmod(0o600)
        if os.getuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(own, owner.pw_uid, owner.pw_gid)
        return own

    def command(self) -> list[str]:
        files = {"cert": self._certificate, "key": self._certificate, "ca": self._authority}
        named = [each for kind, file in files.items() for each in ("-c", f"ssl_{kind}_file={file}")]
        return [*super().command(), "-c", "ssl=on", *named]


class SecuredRabbitMQ(RabbitMQ):
    """amqps and the management API over https only; ``asks`` its clients for a certificate at both, or does not."""

    def __init__(self, folder: Path, certificate: Path, authority: Path, *, asks: bool) -> None:
        super().__init__(folder)
        file = self.folder / "rabbitmq.conf"
        plain = [line for line in file.read_text().splitlines() if ".tcp." not in line]
        secured = ["listeners.tcp = none", f"listeners.ssl.1 = 127.0.0.1:{self.port}"]
        secured += ["management.ssl.ip = 127.0.0.1", f"management.ssl.port = {self.management_port}"]
        options = {"cacertfile": str(authority), "certfile": str(certificate), "keyfile": str(certificate)}
        options |= {"verify": "verify_peer", "fail_if_no_peer_cert": "true"} if asks else {}
        for door in ("ssl_options", "management.ssl"):
            secured += [f"{door}.{name} = {value}" for name, value in options.items()]
        file.write_text("\n".join([*plain, *secured, ""]))


class Stores:
    """The three of them, all asking for certificates or none, and a configuration that names them."""

    def __init__(self, folder: Path, *, asks: bool = False) -> None:
        authority = trustme.CA()
        self.folder = folder
        self.ca, self.other = folder / "ca.pem", folder / "other.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        trustme.CA().cert_pem.write_to_path(str(self.other))
        certificate = folder / "server.pem"
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
        self.redis = SecuredRedis(folder, certificate, self.ca, asks=asks)
        self.postgresql = SecuredPostgreSQL(folder, certificate, self.ca, asks=asks)
        self.rabbitmq = SecuredRabbitMQ(folder, certificate, self.ca, asks=asks)
        self.all = (self.redis, self.postgresql, self.rabbitmq)
        self.environment = ENVIRONMENT | {"P": self.postgresql.password, "Q": self.rabbitmq.password}
        self.shown = self.certificate(authority, "own") if asks else {}

    def certificate(self, authority: trustme.CA, name: str) -> dict[str, Any]:
        """One of ours with its key, as settings."""
        issued = authority.issue_cert("penstock.example")
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}-key.pem"
        certificate.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(key))
        key.chmod(0o600)
        return {"certificate": {"file": str(certificate)}, "key": {"file": str(key)}}

    def start(self) -> None:
        for store in self.all:
            store.start()

    def stop(self) -> None:
        self.rabbitmq.kill()  # in order it takes seconds
        for store in self.all:
            store.stop()

    def configuration(self, **changes: dict[str, Any]) -> Configuration:
        """With changes to single stores; None takes a setting away."""
        ca = {"ca": {"file": str(self.ca)}, **self.shown}
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
                "accounts": {"gateway": {"env": "GATEWAY"}, "collector": {"env": "COLLECTOR"}},
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
