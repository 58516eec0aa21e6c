"""A settle that Redis did not take is charged once, whenever the service is killed on its way there."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import httpx2 as httpx
import pytest

from penstock.adapters.spooling import CRASH_POINTS
from penstock.quota.events import Event, EventKind
from tests.counts import count
from tests.system.clusters import until
from tests.system.keepers import World
from tests.system.programs import Announced, SimulatedModel

pytestmark = pytest.mark.slow

TOKENS = 20
SLOW = {"simulate": f"tokens={TOKENS} fault=slow_first_byte:1000"}
KILLED_S = 60.0
POINTS = (*CRASH_POINTS, "answered")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    model = SimulatedModel(tmp_path / "model", "--model", "m")
    model.start()
    world = World(tmp_path, upstream=model.url)
    try:
        world.start()
        yield world
    finally:
        world.stop()
        model.stop()


def served(world: World, *, crash_at: str = "") -> Announced:
    environment = {"PENSTOCK_CRASH_AT": crash_at} if crash_at else {}
    service = Announced(
        world.folder / "service", world.folder / "data", "-c", str(world.file), environment=environment
    )  # fmt: skip
    service.start()
    return service


def a_key(world: World) -> str:
    command = [sys.executable, "-m", "penstock", "keys", "create", "acme", "-c", str(world.file)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=world.folder).stdout.strip()


def asked(url: str, key: str) -> int:
    """The status of a slow answer; 0 if there was none, since the service was killed."""
    body = {"model": "m", "messages": [{"role": "user", "content": "four"}], "metadata": SLOW}
    try:
        with httpx.Client(timeout=60, trust_env=False, headers={"authorization": f"Bearer {key}"}) as client:
            return client.post(f"{url}/v1/chat/completions", json=body).status_code
    except httpx.TransportError:
        return 0


def holds(world: World) -> int:
    found = world.inspected()
    return len(found.holds) if found is not None else 0


def charged(world: World) -> list[Event]:
    return [event for event in world.events() if event.kind is not EventKind.VOIDED]


def ask_and_lose_redis(world: World, service: Announced, key: str) -> int:
    """Redis dies while the model answers; the status that the client saw."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(asked, service.url, key)
        until(lambda: holds(world) == 1)
        world.redis.kill()
        return answer.result(KILLED_S)


def killed(service: Announced) -> None:
    assert service.process is not None
    assert service.process.wait(KILLED_S) == -signal.SIGKILL


@pytest.mark.torture
def test_a_settle_is_charged_once_wherever_the_service_is_killed_on_its_way_to_redis(world: World, seed: int) -> None:
    keeper = world.keeper()
    until(world.is_ready)
    key = a_key(world)
    for number, point in enumerate(Random(seed).sample(POINTS, count(len(POINTS), short=1)), start=1):
        service = served(world, crash_at=f"{point}:1" if point in CRASH_POINTS else "")
        try:
            until(lambda service=service: asked_models(service.url, key) == 200)
            status = ask_and_lose_redis(world, service, key)
            assert status == (0 if point in ("spool-written", "spool-synced") else 200), point
            if point == "answered":
                service.kill()
            elif status == 0:
                killed(service)
            world.redis.start()
            if point == "spool-applied":
                killed(service)
            service = served(world)
            until(lambda number=number: len(charged(world)) >= number)
            until(lambda: holds(world) == 0)
            assert service.stop() == 0
        finally:
            if service.process is not None and service.process.poll() is None:
                service.kill()
        assert (world.folder / "data" / "spool.jsonl").read_bytes() == b"", point
        rows = charged(world)
        assert len({event.reservation for event in rows}) == len(rows) == number, point
        assert rows[-1].usage.completion == TOKENS, point
    assert keeper.stop() == 0


def asked_models(url: str, key: str) -> int:
    return httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"}, trust_env=False).status_code
