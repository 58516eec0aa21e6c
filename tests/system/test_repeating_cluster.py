"""The API service on Redis and PostgreSQL, killed while it answers a request with an idempotency key: billed once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import httpx2 as httpx
import pytest

from penstock.lanes.accepting import job_prefix
from penstock.lanes.repeating import STORED
from penstock.wiring.crash import VARIABLE
from tests.counts import TORTURE
from tests.system.clusters import until
from tests.system.dying_stream import Point, Watch
from tests.system.fault_proxy import FaultProxy
from tests.system.keepers import World
from tests.system.programs import Announced, SimulatedModel
from tests.system.test_spool import a_key, asked_models

pytestmark = pytest.mark.slow

KILLED_S: Final = 60.0
WIRE: Final = {  # what the service has asked for and not heard when it dies
    "reserved": Point("redis", b"penstock_reserve", b"Reserved"),
    "called": Point("model", b"POST /v1/chat", b"HTTP/1.1 200"),
    "settled": Point("redis", b"penstock_settle", b"Settled"),
    "noted": Point("postgresql", b"UPDATE results", b"UPDATE 1"),
}
POINTS: Final = ("reserved", "called", STORED, "settled", "noted")
CASES: Final = [(point, stream) for point in POINTS for stream in (False, True)] if TORTURE else [("settled", True)]


class Repeated(World):
    """A world whose API service reaches everything through proxies, one of which may be told to kill it."""

    def __init__(self, folder: Path) -> None:
        self.model = SimulatedModel(folder / "model", "--model", "m")
        super().__init__(folder, upstream=self.model.url)
        self._parts = ExitStack()

    def start(self) -> None:
        self.model.start()
        super().start()

    def stop(self) -> None:
        self._parts.close()
        super().stop()
        self.model.stop()

    def served(self, point: str = "") -> Announced:
        """The service; it dies at the point if one is named."""
        environment = {VARIABLE: f"{point}:1"} if point == STORED else {}
        file, place = self.file, WIRE.get(point)
        ports = {"redis": self.redis.port, "postgresql": self.postgresql.port, "model": self.model.port}
        if place is not None:
            watch = Watch(place, 1, lambda: os.kill(pids[0], signal.SIGKILL))
            proxy = FaultProxy(ports[place.link], passing=watch.passing)
            proxy.start()
            self._parts.callback(proxy.stop)
            file = self.folder / f"{point}.yaml"
            file.write_text(self.file.read_text().replace(f":{ports[place.link]}", f":{proxy.port}"))
        pids: list[int] = []
        service = Announced(
            self.folder / "service", self.folder / "data", "-c", str(file), environment=environment
        )  # fmt: skip
        service.start()
        assert service.process is not None
        pids.append(service.process.pid)
        self._parts.callback(service.kill)
        return service


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Repeated]:
    world = Repeated(tmp_path)
    try:
        world.start()
        yield world
    finally:
        world.stop()


def ask(service: Announced, key: str, name: str, *, stream: bool) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream,
            "metadata": {"simulate": "tokens=5"}}  # fmt: skip
    headers = {"authorization": f"Bearer {key}", "idempotency-key": name}
    with httpx.Client(timeout=60, trust_env=False, headers=headers) as client:
        return client.post(f"{service.url}/v1/chat/completions", json=body)


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_killed_between_any_two_writes_the_same_key_is_answered_and_billed_once(world: Repeated) -> None:
    keeper = world.keeper()
    until(world.is_ready)
    key = a_key(world)
    for number, (point, stream) in enumerate(CASES):
        name, told = f"key-{number}", f"{point}, stream={stream}"
        service = world.served(point)
        until(lambda service=service: asked_models(service.url, key) == 200)
        with suppress(httpx.TransportError):  # also a stream is cut off: its end comes after its settle
            ask(service, key, name, stream=stream)
            # a slow Redis: the settle went to the spool, the answer ended, and from the spool it was settled
            assert point in ("noted", "settled"), f"{told}: it was answered"
        assert service.process is not None
        assert service.process.wait(KILLED_S) == -signal.SIGKILL, told
        service = world.served()
        until(lambda service=service: asked_models(service.url, key) == 200)
        again = ask(service, key, name, stream=stream)
        if point in ("reserved", "called"):
            assert (again.status_code, again.json()["error"]["code"]) == (409, "request_under_way"), told
            until(lambda name=name: rows_of(world, name) > 0)  # its lease passes
            again = ask(service, key, name, stream=stream)
            assert (again.status_code, again.json()["error"]["code"]) == (409, "outcome_unknown"), told
        else:
            assert again.status_code == 200, (told, again.text)
            assert ask(service, key, name, stream=stream).content == again.content, told
        other = ask(service, key, f"{name} too", stream=stream)
        assert other.status_code == 200, (told, other.text)
        assert service.stop() == 0, told
    until(lambda: not held(world))
    until(lambda: world.waiting() == 0)
    world.command("audit")
    charged = [event.reservation for event in world.events() if event.charge.requests]
    assert len(charged) == len(set(charged)), "a key was billed twice"
    assert len(charged) == 2 * len(CASES), "what a key was answered, or began, is billed"
    assert keeper.stop() == 0


def rows_of(world: World, name: str) -> int:
    """Rows of the ledger under an idempotency key."""
    return sum(event.reservation.startswith(job_prefix("acme", name)) for event in world.events())


def held(world: World) -> int:
    found = world.inspected()
    return len(found.holds) if found is not None else 1
