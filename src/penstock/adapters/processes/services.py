"""Redis, PostgreSQL and RabbitMQ as one person's processes: every file in one folder, loopback only, no daemon left.

Debian's packages start services of their own at their usual ports; these are others, beside them.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from penstock.adapters.processes.programs import Program, answers, find_program, free_port
from penstock.errors import ConfigurationError

ADMINISTRATOR = "penstock"


@dataclass(slots=True, kw_only=True)
class RedisServer:
    """Redis with its append-only file and without eviction, as the quota requires.

    Args:
        folder: For everything that it writes; made if it is not there.
        password: Of the user ``default``.
    """

    folder: Path
    password: str = field(repr=False)
    port: int = field(default_factory=free_port)
    username: str = "default"

    def programs(self) -> tuple[Program, ...]:
        """What to run."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file, users = self.folder / "redis.conf", self.folder / "users.acl"
        if not users.exists():  # later ones are written by Redis itself
            _write_private(users, f"user {self.username} on >{self.password} ~* &* +@all\n")
        _write_private(
            file,
            f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\naclfile {users}\n"
            'appendonly yes\nappendfsync everysec\nsave ""\nmaxmemory-policy noeviction\ndaemonize no\n',
        )
        redis = find_program("redis-server", "redis-server")
        return (
            Program(
                name="redis", command=(redis, str(file)), environment=dict(os.environ), folder=self.folder,
                is_ready=lambda: answers(self.port, b"PING\r\n", b"-NOAUTH"), is_shown=False,
            ),
        )  # fmt: skip


@dataclass(slots=True, kw_only=True)
class PostgresqlServer:
    """PostgreSQL. It refuses to run as root, so root hands its folder to the account ``postgres``."""

    folder: Path
    password: str = field(repr=False)
    port: int = field(default_factory=free_port)
    username: str = ADMINISTRATOR

    def programs(self) -> tuple[Program, ...]:
        """What to run, its cluster made if it is not there.

        Raises:
            ConfigurationError: It is not installed, or its folder is out of its account's reach.
        """
        binaries = Path(find_program("postgres", "postgresql", "/usr/lib/postgresql/*/bin/postgres")).parent
        data = self.folder / "data"
        self._initialise(binaries, data)
        ready = (str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port), "-d", "postgres")

        async def is_ready() -> bool:
            asked = await asyncio.create_subprocess_exec(*ready)
            return await asked.wait() == 0

        command = (
            *_as_owner(), str(binaries / "postgres"), "-D", str(data), "-p", str(self.port), "-h", "127.0.0.1",
            "-k", "", "-c", "max_connections=200", "-c", "shared_buffers=64MB",
        )  # fmt: skip
        return (
            Program(
                name="postgresql", command=command, environment=dict(os.environ), folder=self.folder,
                is_ready=is_ready, is_shown=False,
                stop_signal=signal.SIGINT,  # ends sessions, then the server
                start_s=300,  # after a kill it recovers first
            ),
        )  # fmt: skip

    def _initialise(self, binaries: Path, data: Path) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = self.folder / "password"
        _write_private(secret, self.password)
        if os.getuid() == 0:
            owner = pwd.getpwnam("postgres")
            for place in (self.folder, secret):
                os.chown(place, owner.pw_uid, owner.pw_gid)
        if (data / "PG_VERSION").exists():
            return
        made = subprocess.run(
            [*_as_owner(), binaries / "initdb", "-D", data, "-U", self.username, "-A", "scram-sha-256",
             "--pwfile", secret, "-E", "UTF8", "--locale", "C"],
            check=False, capture_output=True, text=True, cwd="/",
        )  # fmt: skip
        if made.returncode:
            fix = "root: choose a directory that the account postgres can reach; else see the message"
            raise ConfigurationError((f"initdb in {data} failed: {made.stderr.strip()}; as {fix}",))


def _as_owner() -> tuple[str, ...]:
    return ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups") if os.getuid() == 0 else ()


@dataclass(slots=True, kw_only=True)
class RabbitmqServer:
    """RabbitMQ with its management API, its metrics and a port mapper of its own, so that no daemon is left behind."""

    folder: Path
    password: str = field(repr=False)
    port: int = field(default_factory=free_port)
    management_port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    username: str = ADMINISTRATOR

    def programs(self) -> tuple[Program, ...]:
        """What to run: the port mapper, then the broker."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mapper_port, distribution_port = free_port(), free_port()
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management,rabbitmq_prometheus].\n")
        _write_private(
            self.folder / "rabbitmq.conf",
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self.management_port}\n"
            f"prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {self.metrics_port}\n"
            f"default_user = {self.username}\ndefault_pass = {self.password}\n"
            "disk_free_limit.absolute = 50MB\nvm_memory_high_watermark.absolute = 1GB\n"
            "consumer_timeout = 7200000\nlog.console = true\nlog.file = false\n",
        )
        environment = {
            **os.environ,
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": "penstock@localhost",
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2 "
            "+sbwt none +sbwtdcpu none +sbwtdio none",  # schedulers that wait busily take CPU time from the others
            "ERL_EPMD_PORT": str(mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        mapper = find_program("epmd", "erlang-base", "/usr/lib/erlang/erts-*/bin/epmd")
        broker = find_program("rabbitmq-server", "rabbitmq-server", "/usr/lib/rabbitmq/lib/*/sbin/rabbitmq-server")

        async def is_ready() -> bool:
            return await answers(self.port) and await answers(self.management_port)

        return (
            Program(
                name="epmd", command=(mapper, "-port", str(mapper_port), "-address", "127.0.0.1"),
                environment=environment, folder=self.folder, is_ready=lambda: answers(mapper_port), is_shown=False,
            ),
            Program(
                name="rabbitmq", command=(broker,), environment=environment, folder=self.folder, is_ready=is_ready,
                is_shown=False,
            ),
        )  # fmt: skip


def _write_private(file: Path, text: str) -> None:
    """For its owner only, from its first byte."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
        opened.write(text)
