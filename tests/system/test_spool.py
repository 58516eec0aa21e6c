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
import msgspec
import pytest

from penstock.adapters.redis.translating import keys_of
from penstock.adapters.spooling import CRASH_POINTS
from penstock.adapters.spooling.spool import Kept
from penstock.quota.events import Event, EventKind, Usage
from penstock.quota.operations import Settle, Settled
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
        assert spooled(world) == b"", point
        rows = charged(world)
        assert len({event.reservation for event in rows}) == len(rows) == number, point
        assert rows[-1].usage.completion == TOKENS, point
    assert keeper.stop() == 0


def asked_models(url: str, key: str) -> int:
    return httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"}, trust_env=False).status_code


def test_a_settle_whose_hold_redis_forgot_is_charged_once_after_the_rebuild(world: World) -> None:
    keeper = world.keeper("--rebuild-s", "0")
    until(world.is_ready)
    key = a_key(world)
    service = served(world, crash_at="spool-synced:1")
    until(lambda: asked_models(service.url, key) == 200)
    assert ask_and_lose_redis(world, service, key) == 0
    killed(service)
    world.redis.start()
    world.asks("FLUSHALL")
    until(world.is_ready)
    assert holds(world) == 0
    service = served(world)
    try:
        until(lambda: len(charged(world)) > 0)
        until(lambda: spooled(world) == b"")
        assert service.stop() == 0
    finally:
        service.kill()
    (row,) = charged(world)
    assert (row.kind, row.usage.completion) == (EventKind.POSTED, TOKENS)
    world.command("audit")
    assert keeper.stop() == 0


def test_a_settle_that_had_arrived_is_not_charged_again_when_redis_has_forgotten_it(world: World) -> None:
    """Of one the event is in the ledger, of the other it waits in the outbox while no keeper runs."""
    keeper = world.keeper()
    until(world.is_ready)
    first = a_settled(world)
    until(lambda: len(charged(world)) == 1)
    assert keeper.stop() == 0
    second = a_settled(world)
    data = world.folder / "data"
    data.mkdir(exist_ok=True)
    (data / "spool.jsonl").write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in (first, second)))
    _, reservations, deadlines, *_ = (key.decode() for key in keys_of("acme"))
    for each in (first, second):
        assert world.asks("HDEL", reservations, each.reserve.reservation) == 1
        world.asks("ZREM", deadlines, each.reserve.reservation)
    service = served(world)
    try:
        until(lambda: "on its way to the ledger" in service.log.read_text())
        assert world.waiting() == 1, "the second one alone, and once"
        keeper = world.keeper()
        until(lambda: spooled(world) == b"")
        assert service.stop() == 0
    finally:
        service.kill()
    assert sorted(row.reservation for row in charged(world)) == [
        first.reserve.reservation, second.reserve.reservation
    ]  # fmt: skip
    world.command("audit")
    assert keeper.stop() == 0


def a_settled(world: World) -> Kept:
    """A request that was charged, as its process would have it in its spool, had it heard nothing of that."""
    reserve = world.reserve()
    settle = Settle(
        organisation="acme", caller_now_ms=reserve.caller_now_ms, reservation=reserve.reservation, usage=Usage(10, 5)
    )
    assert isinstance(world.applied(reserve, settle)[1], Settled)
    return Kept(reserve=reserve, settle=settle)


def spooled(world: World) -> bytes:
    return (world.folder / "data" / "spool.jsonl").read_bytes()
