"""The two queue lanes that are compared, each with services of its own: Penstock's, and FastAPI with Celery.

Both keep the same promises: a key and two limits checked and held in one atomic call, a persistent message in a quorum
queue with the broker's confirm before the 202, acknowledgement after the work is kept, the result and its charge once
in PostgreSQL however often a job is delivered, the hold turned into what was used once.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from benchmarks import peers
from benchmarks.load import Target, send
from benchmarks.processes import running
from penstock.adapters.processes import PostgresqlServer, Program, RabbitmqServer, RedisServer
from penstock.config import load
from penstock.wiring.places import Places
from penstock.wiring.rehearsing import make_keys
from penstock.wiring.stores import Service, address

CELERY = peers.FOLDER / "celery"
MODEL = "m"
CONCURRENCY = 8
PEER_PORT = 18105
START_S, STOP_S = 300.0, 120.0
PARTS = ("gateway", "worker-m", "executor", "collector", "keeper", "rabbitmq", "redis", "postgresql")
"""Of Penstock; the API service, the reader of dead letters and the supervisor of one machine stand beside the path."""
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Tell me of tides. " * 8}], "max_tokens": 64}


@dataclass(frozen=True, slots=True)
class QueueSystem:
    """One that runs.

    Args:
        target: Where jobs are handed in.
        pids: Of the processes that are measured, by part; children count with them.
        done: How many jobs are done for good: result and charge kept.
    """

    name: str
    target: Target
    pids: Mapping[str, int]
    done: Callable[[], int]


@contextmanager
def counted(database: str, statement: str) -> Iterator[Callable[[], int]]:
    """Asks a database for a number, as often as one likes."""
    with psycopg.connect(database, autocommit=True) as connection:

        def ask() -> int:
            row = connection.execute(statement).fetchone()
            assert row is not None
            return int(row[0])

        yield ask


@contextmanager
def penstock(folder: Path) -> Iterator[QueueSystem]:
    """``penstock up``, and a key that works."""
    file = peers.FOLDER / "penstock-queue.yaml"
    places = Places(folder / "cluster")
    command = (str(peers.PENSTOCK), "up", "-c", str(file), "--data", str(places.data))
    with ExitStack() as parts:
        parts.enter_context(
            running(command, port=peers.PENSTOCK_PORT, folder=folder, environment={}, ready_s=START_S, stop_s=STOP_S)
        )
        configuration = load([file, places.data / "cluster.yaml"])
        key = make_keys(configuration, places)["acme"]
        assert configuration.queue.gateway is not None
        port = urlsplit(configuration.queue.gateway).port
        assert port is not None
        target = Target(port, "/v1/async/chat/completions", {"Authorization": f"Bearer {key}"}, BODY)
        wait_for_key(target)
        database = address(configuration, Service.POSTGRESQL, None, os.environ).url
        statement = "SELECT count(*) FROM results JOIN ledger ON reservation = job AND kind = 'posted'"
        done = parts.enter_context(counted(database, statement))
        pids = json.loads((places.data / "processes.json").read_text())
        yield QueueSystem("Penstock", target, {part: pids[part] for part in PARTS}, done)


def wait_for_key(target: Target) -> None:
    """Until the gateway takes a job: the keeper hands a new key on within a second or two."""
    ends_at_s = time.monotonic() + START_S
    while asyncio.run(send(target, 1, connections=1))[0].status == 401 and time.monotonic() < ends_at_s:
        time.sleep(0.2)


@contextmanager
def celery(folder: Path) -> Iterator[QueueSystem]:
    """FastAPI and Celery, with services as ``penstock up`` configures its own."""
    home = peers.installed("celery", CELERY / "requirements.txt")
    password, key, pepper = (secrets.token_hex(16) for _ in range(3))
    redis = RedisServer(folder=folder / "redis", password=password)
    postgresql = PostgresqlServer(folder=folder / "postgresql", password=password)
    rabbitmq = RabbitmqServer(folder=folder / "rabbitmq", password=password)
    mapper, broker = rabbitmq.programs()
    database = f"postgresql://penstock:{password}@127.0.0.1:{postgresql.port}/postgres"
    environment = {
        "PEER_BROKER": f"amqp://penstock:{password}@127.0.0.1:{rabbitmq.port}//",
        "PEER_REDIS": f"redis://:{password}@127.0.0.1:{redis.port}/0",
        "PEER_DATABASE": database,
        "PEER_MODEL": f"http://127.0.0.1:{peers.MODEL_PORT}",
        "PEER_PEPPER": pepper,
        "PYTHONPATH": str(CELERY),
    }
    with ExitStack() as parts:

        def started(program: Program, port: int) -> int:
            own = folder / program.name
            own.mkdir(exist_ok=True)
            service = running(
                program.command, port=port, folder=own, environment=program.environment, ready_s=START_S, stop_s=STOP_S
            )
            return parts.enter_context(service)

        started(mapper, int(mapper.environment["ERL_EPMD_PORT"]))
        pids = {
            "rabbitmq": started(broker, rabbitmq.management_port),
            "redis": started(redis.programs()[0], redis.port),
            "postgresql": started(postgresql.programs()[0], postgresql.port),
        }
        prepare(database, redis, mac=hmac.new(pepper.encode(), key.encode(), hashlib.sha256).hexdigest())
        for name, command, port in (
            ("gateway", ("uvicorn", "accept:app", "--port", str(PEER_PORT), "--no-access-log"), PEER_PORT),
            ("worker", ("celery", "-A", "work", "worker", "-c", str(CONCURRENCY), "-l", "WARNING"), None),
        ):
            own = folder / name
            own.mkdir()
            program = (str(home / "bin" / command[0]), *command[1:])
            pids[name] = parts.enter_context(
                running(program, port=port, folder=own, environment=environment, ready_s=START_S, stop_s=STOP_S)
            )
        done = parts.enter_context(counted(database, "SELECT count(*) FROM results JOIN ledger USING (job)"))
        target = Target(PEER_PORT, "/jobs", {"Authorization": f"Bearer {key}"}, BODY)
        yield QueueSystem("FastAPI and Celery", target, pids, done)


def prepare(database: str, redis: RedisServer, *, mac: str) -> None:
    """The peer's tables, and its one organisation's key and limits."""
    with psycopg.connect(retried(database), autocommit=True) as connection:
        connection.execute((CELERY / "schema.sql").read_text().encode())
    fields = ("mac", mac, "cap", str(2**52), "used", "0", "held", "0", "open", "0")
    with socket.create_connection(("127.0.0.1", redis.port)) as wire:
        wire.sendall(f"AUTH {redis.password}\r\nHSET counters:acme {' '.join(fields)}\r\n".encode())
        told = b""
        while told.count(b"\r\n") < 2:
            told += wire.recv(4096)
    if told != b"+OK\r\n:5\r\n":
        raise SystemExit(f"the peer's Redis answered {told!r}")


def retried(database: str) -> str:
    """The same address, once PostgreSQL takes connections there: its port is open a moment earlier."""
    ends_at_s = time.monotonic() + START_S
    while True:
        try:
            psycopg.connect(database).close()
        except psycopg.OperationalError:
            if time.monotonic() > ends_at_s:
                raise
            time.sleep(0.1)
        else:
            return database
