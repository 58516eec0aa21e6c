"""Real Redis, PostgreSQL and RabbitMQ on free loopback ports, started by the tests that need them.

Each service lives in a folder of its own, is a child of this process, and is ended by its own pid. Faults are
signals to that pid: ``kill`` is SIGKILL, ``freeze`` and ``thaw`` are SIGSTOP and SIGCONT; ``start`` after a kill
finds the data that were there.
"""

from __future__ import annotations

import atexit
import glob
import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest

from tests.polling import until

START_S = 60.0
STOP_S = 20.0


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def found_program(name: str, *patterns: str) -> str:
    """Path of a program, searched by patterns, then on the PATH; a missing one skips (and fails in CI)."""
    for pattern in patterns:
        for place in sorted(glob.glob(pattern), reverse=True):
            return place
    if (on_path := shutil.which(name)) is not None:
        return on_path
    pytest.skip(f"{name} is not installed: requirements/debian.sh installs what tests need")


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, *, bound_s: float) -> None:
    """Poll until ready; a process that ended, or the bound, is an error that shows the end of its log."""
    ends_at = time.monotonic() + bound_s
    while not ready():
        if process.poll() is not None or time.monotonic() > ends_at:
            state = f"ended with {process.returncode}" if process.returncode is not None else "is not ready"
            raise RuntimeError(f"{process.args!r} {state} after {bound_s} s:\n{log.read_text()[-3000:]}")
        time.sleep(0.02)


def answers(port: int, question: bytes = b"", answer: bytes = b"") -> bool:
    """Whether a loopback port accepts, and answers a question if one is given."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as peer:
            peer.settimeout(2)
            if question:
                peer.sendall(question)
            return not answer or peer.recv(64).startswith(answer)
    except OSError:
        return False


def states_of_group(group: int) -> Iterator[str]:
    """Of each thread of a process group, as ``proc(5)`` names them."""
    for stat in Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            state, _, found = stat.read_text().rpartition(")")[2].split()[:3]
            if int(found) == group:
                yield state


class Service:
    """One server process in a folder."""

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        self.folder = folder / self.name
        self.folder.mkdir(parents=True)
        self.log = self.folder / "log"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def is_ready(self) -> bool:
        raise NotImplementedError

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} is not running"
        return self.process.pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self.environment(), start_new_session=True,
            )  # fmt: skip
        wait_until(self.is_ready, self.process, self.log, bound_s=START_S)

    def stop(self) -> None:
        """End it in order, then by force; a frozen one is thawed first."""
        process, self.process = self.process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(self.stop_signal)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_S)

    def kill(self) -> None:
        process, self.process = self.process, None
        assert process is not None, f"{self.name} is not running"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_S)
        ends_at = time.monotonic() + STOP_S
        while answers(self.port):  # a grandchild may take a moment longer to let go of the port
            assert time.monotonic() < ends_at, f"{self.name} still listens after SIGKILL"
            time.sleep(0.01)

    def freeze(self) -> None:
        """Stop every thread of it; one that waits for the disk is stopped when it is back."""
        os.killpg(self.pid, signal.SIGSTOP)
        until(lambda: not set(states_of_group(self.pid)) - {"T", "Z"}, f"{self.name} stands still", bound_s=STOP_S)

    def thaw(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)


class Redis(Service):
    """redis-server with append-only file, as Penstock requires it.

    Args:
        options: More of them, ``--name value``; the later of two counts.
        configuration: A file that it reads instead of being given Penstock's requirements as options.
    """

    name = "redis"

    def __init__(self, folder: Path, *options: str, configuration: Path | None = None) -> None:
        super().__init__(folder)
        self._options = options
        self._configuration = configuration

    def command(self) -> list[str]:
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--daemonize", "no"]
        required = [
            "--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction",
        ]  # fmt: skip
        if self._configuration is not None:
            return [found_program("redis-server"), str(self._configuration), *place, *self._options]
        return [found_program("redis-server"), *place, *required, *self._options]

    def is_ready(self) -> bool:
        return answers(self.port, b"PING\r\n", b"+PONG")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"


class PostgreSQL(Service):
    """A cluster made by initdb. PostgreSQL refuses to run as root, so root hands it to its own account.

    Then it also needs a place of its own: each start of pytest takes from others the right to enter its folders.

    Args:
        settings: As ``name=value``; ``fsync=off`` where a loss of power is no part of a test.
    """

    name = "postgresql"
    stop_signal = signal.SIGINT  # "fast": ends sessions, then the server

    def __init__(self, folder: Path, *settings: str) -> None:
        super().__init__(folder)
        self.settings = settings
        self.home = self._home()
        self.data = self.home / "data"
        self.programs = Path(found_program("postgres", "/usr/lib/postgresql/*/bin/postgres")).parent
        self.password = secrets.token_hex(16)
        self._initialise()

    def _as_owner(self) -> list[str]:
        return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []

    def _initialise(self) -> None:
        secret = self.home / "password"
        secret.write_text(self.password)
        if os.getuid() == 0:
            owner = pwd.getpwnam("postgres")
            for place in (self.home, secret):
                os.chown(place, owner.pw_uid, owner.pw_gid)
        subprocess.run(
            [*self._as_owner(), self.programs / "initdb", "-D", self.data, "-U", "penstock", "-A", "scram-sha-256",
             "--pwfile", secret, "-E", "UTF8", "--locale", "C", "--no-sync"],
            check=True, capture_output=True, cwd=self.home,
        )  # fmt: skip

    def _home(self) -> Path:
        if os.getuid() != 0:
            return self.folder
        home = Path(tempfile.mkdtemp(prefix="penstock-postgresql-"))
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        return home

    def command(self) -> list[str]:
        return [
            *self._as_owner(), str(self.programs / "postgres"), "-D", str(self.data), "-p", str(self.port),
            "-h", "127.0.0.1", "-k", "", "-c", "max_connections=200", "-c", "shared_buffers=64MB",
            *(f"--{setting}" for setting in self.settings),
        ]  # fmt: skip

    def is_ready(self) -> bool:
        ready = [str(self.programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port), "-d", "postgres"]
        return subprocess.run(ready, check=False).returncode == 0

    @property
    def url(self) -> str:
        return f"postgresql://penstock:{self.password}@127.0.0.1:{self.port}/postgres"


class RabbitMQ(Service):
    """rabbitmq-server with the management plugin, and its own epmd so that no daemon is left behind."""

    name = "rabbitmq"
    user = "penstock"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.management_port = free_port()
        self.distribution_port = free_port()
        self.epmd_port = free_port()
        self.password = secrets.token_hex(16)
        self.epmd: subprocess.Popen[bytes] | None = None
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        (self.folder / "advanced.config").write_text("[{rabbit, [{quorum_tick_interval, 300}]}].\n")
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self.management_port}\n"
            f"default_user = {self.user}\ndefault_pass = {self.password}\n"
            "disk_free_limit.absolute = 50MB\nvm_memory_high_watermark.absolute = 1GB\n"
            "collect_statistics_interval = 1000\nlog.console = true\nlog.file = false\n"
        )

    def command(self) -> list[str]:
        return [found_program("rabbitmq-server", "/usr/lib/rabbitmq/lib/*/sbin/rabbitmq-server")]

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": f"penstock-{self.distribution_port}@localhost",
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2",
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def start(self) -> None:
        if self.epmd is None:
            epmd = found_program("epmd", "/usr/lib/erlang/erts-*/bin/epmd")
            self.epmd = subprocess.Popen(
                [epmd, "-port", str(self.epmd_port), "-address", "127.0.0.1"], start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        super().start()

    def stop(self) -> None:
        super().stop()
        if self.epmd is not None:
            self.epmd.kill()
            self.epmd.wait(STOP_S)
            self.epmd = None

    def is_ready(self) -> bool:
        return answers(self.port) and answers(self.management_port)

    @property
    def url(self) -> str:
        return f"amqp://{self.user}:{self.password}@127.0.0.1:{self.port}/"

    @property
    def management_url(self) -> str:
        return f"http://127.0.0.1:{self.management_port}"

    def rabbitmqctl(self) -> Path:
        """The broker's own command, for this broker."""
        script = self.folder / "rabbitmqctl"
        program = found_program("rabbitmqctl", "/usr/lib/rabbitmq/lib/*/sbin/rabbitmqctl")
        told = {"HOME", "RABBITMQ_NODENAME", "ERL_EPMD_PORT", "RABBITMQ_CONFIG_FILE"}
        settings = " ".join(
            f"{name}={shlex.quote(value)}" for name, value in self.environment().items() if name in told
        )
        script.write_text(f'#!/bin/sh\n{settings} exec {program} "$@"\n')
        script.chmod(0o755)
        return script

    def control(self, *arguments: str) -> None:
        """Carry out one command of ``rabbitmqctl``."""
        subprocess.run([self.rabbitmqctl(), *arguments], check=True, capture_output=True, timeout=START_S)
