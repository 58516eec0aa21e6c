"""The services of a cluster on one machine: their secrets, their addresses, and a configuration that names both.

What is written lies in one directory, for its owner only: ``secrets/``, a folder for each service, and
``cluster.yaml``, which every command takes behind the user's own files.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.adapters.processes import PostgresqlServer, Program, RabbitmqServer, RedisServer, free_port
from penstock.config import Configuration
from penstock.wiring.stores import ROLES, VIRTUAL_HOST, Service

DATABASE = "penstock"
OVERLAY = "cluster.yaml"
ADMINISTRATOR = "administrator"
PEPPER = "pepper"


@dataclass(frozen=True, slots=True)
class OwnStores:
    """The three services, ready to be run, and where the gateway will be.

    Args:
        folder: Of everything that they and this write.
    """

    folder: Path
    redis: RedisServer
    postgresql: PostgresqlServer
    rabbitmq: RabbitmqServer
    gateway_port: int

    @classmethod
    def prepare(cls, folder: Path) -> OwnStores:
        """Choose free ports, and make the secrets that are not there yet."""
        keep = folder / "secrets"
        return cls(
            folder,
            RedisServer(folder=folder / "redis", password=_secret(keep, "redis", ADMINISTRATOR)),
            PostgresqlServer(folder=folder / "postgresql", password=_secret(keep, "postgresql", ADMINISTRATOR)),
            RabbitmqServer(folder=folder / "rabbitmq", password=_secret(keep, "rabbitmq", ADMINISTRATOR)),
            free_port(),
        )

    def programs(self) -> tuple[tuple[Program, ...], ...]:
        """What to run, in stages. Makes the database's files, which takes a few seconds the first time.

        Raises:
            ConfigurationError: A service is not installed.
        """
        mapper, broker = self.rabbitmq.programs()
        return (*self.redis.programs(), *self.postgresql.programs(), mapper), (broker,)

    def write_configuration(self, configuration: Configuration, upstreams: Mapping[str, str]) -> Path:
        """Write what is laid over the user's files.

        Args:
            configuration: Of the user's files.
            upstreams: By model: where it is now, for those that this machine runs.
        """
        host = "127.0.0.1"
        over: dict[str, Any] = {
            "stores": {
                "redis": self._store(Service.REDIS, self.redis.username, f"redis://{host}:{self.redis.port}"),
                "postgresql": self._store(
                    Service.POSTGRESQL,
                    self.postgresql.username,
                    f"postgresql://{host}:{self.postgresql.port}/{DATABASE}",
                ),
                "rabbitmq": {
                    **self._store(
                        Service.RABBITMQ, self.rabbitmq.username, f"amqp://{host}:{self.rabbitmq.port}/{VIRTUAL_HOST}"
                    ),
                    "management": f"http://{host}:{self.rabbitmq.management_port}",
                },
            },
            "queue": {"gateway": f"http://{host}:{self.gateway_port}"},
            "models": {name: {"upstream": url} for name, url in upstreams.items()},
            "server": {"data_directory": str(self.folder)},
        }
        if configuration.auth.pepper is None:
            _secret(self.folder / "secrets", PEPPER, "")
            over["auth"] = {"pepper": {"file": str(self.folder / "secrets" / PEPPER)}}
        file = self.folder / OVERLAY
        file.write_text(json.dumps(over, indent=2) + "\n", encoding="utf-8")  # JSON is YAML
        return file

    def _store(self, service: Service, username: str, url: str) -> dict[str, Any]:
        keep = self.folder / "secrets"
        for role in ROLES[service]:
            _secret(keep, service, role)
        return {
            "url": url,
            "username": username,
            "password": {"file": str(keep / f"{service}-{ADMINISTRATOR}")},
            "accounts": {role: {"file": str(keep / f"{service}-{role}")} for role in ROLES[service]},
        }


def _secret(folder: Path, service: str, role: str) -> str:
    """The secret that the file holds; made once."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / (f"{service}-{role}" if role else service)
    if not file.exists():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as opened:
            opened.write(secrets.token_hex(32) + "\n")
    return file.read_text(encoding="ascii").strip()
