"""Over HTTP, whatever is wrong with Redis: 503 with Retry-After and the documented error, and nothing is admitted."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx2 as httpx
import pytest

from tests.system.clusters import until
from tests.system.keepers import World
from tests.system.programs import SimulatedModel
from tests.system.services import Redis, found_program
from tests.system.test_spool import a_key, asked_models, served

pytestmark = pytest.mark.slow

ROOM_BYTES: Final = 512  # less than one reserve writes
Fault = Callable[[World], object]


class Patient(Redis):
    """One whose writes fail where a file may not grow, as on a full disk, instead of ending it by a signal."""

    def command(self) -> list[str]:
        return [found_program("env"), "--ignore-signal=XFSZ", *super().command()]


class Sick(World):
    """A world whose Redis outlives a full disk."""

    def __init__(self, folder: Path, *, upstream: str) -> None:
        super().__init__(folder, upstream=upstream)
        self.redis = Patient(folder / "patient", "--aclfile", str(folder / "users.acl"))


def fill_disk(world: World) -> None:
    (log,) = world.redis.folder.glob("appendonlydir/*.incr.aof")
    resource.prlimit(world.redis.pid, resource.RLIMIT_FSIZE, (log.stat().st_size + ROOM_BYTES, -1))


def free_disk(world: World) -> None:
    resource.prlimit(world.redis.pid, resource.RLIMIT_FSIZE, (-1, -1))


def copy_of_nobody(world: World) -> None:
    """A replica that refuses writes, and whose primary is not there."""
    world.asks("REPLICAOF", "127.0.0.1", "1")


# The last one loses the state, and no keeper runs: it is not put back before the end.
FAULTS: Final[dict[str, tuple[Fault, Fault]]] = {
    "killed": (lambda world: world.redis.kill(), lambda world: world.redis.start()),
    "frozen": (lambda world: world.redis.freeze(), lambda world: world.redis.thaw()),
    "out of memory": (
        lambda world: world.asks("CONFIG", "SET", "maxmemory", "1"),
        lambda world: world.asks("CONFIG", "SET", "maxmemory", "0"),
    ),
    "disk full": (fill_disk, free_disk),
    "read-only": (copy_of_nobody, lambda world: world.asks("REPLICAOF", "NO", "ONE")),
    "rebuilding": (lambda world: world.asks("FLUSHALL"), lambda world: None),
}


@pytest.fixture
def model(tmp_path: Path) -> Iterator[SimulatedModel]:
    model = SimulatedModel(tmp_path / "model", "--model", "m")
    model.start()
    yield model
    model.stop()


@contextmanager
def answering(world: World) -> Iterator[Client]:
    """The API service, by a client that may use it."""
    key = a_key(world)
    service = served(world)
    try:
        until(lambda: asked_models(service.url, key) == 200)
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=service.url, timeout=60, trust_env=False, headers=headers) as client:
            yield Client(client)
        assert service.stop() == 0
    finally:
        service.kill()


class Client:
    """Asks, and counts what was answered."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.answered = 0

    def ask(self, *, stream: bool = False) -> httpx.Response:
        body = {"model": "m", "messages": [{"role": "user", "content": "four"}], "max_tokens": 5, "stream": stream}
        answer = self._client.post("/v1/chat/completions", json=body)
        self.answered += answer.status_code == 200
        return answer

    def is_answered(self) -> bool:
        return self.ask().status_code == 200


def refused(answer: httpx.Response) -> tuple[int, str, str]:
    assert int(answer.headers["retry-after"]) >= 1
    assert int(answer.headers["retry-after-ms"]) >= 1
    error = answer.json()["error"]
    return answer.status_code, error["type"], error["code"]


def test_whatever_is_wrong_with_redis_a_client_is_told_when_to_come_again_and_is_not_admitted(
    tmp_path: Path, model: SimulatedModel
) -> None:
    world = Sick(tmp_path, upstream=model.url)
    try:
        world.start()
        keeper = world.keeper()
        until(world.is_ready)
        with answering(world) as client:
            until(client.is_answered)  # the keeper has defined the key
            assert keeper.stop() == 0
            for name, (fault, mended) in FAULTS.items():
                until(client.is_answered)
                fault(world)
                if name == "disk full":  # what fits is still written
                    until(lambda: not client.is_answered())
                found = {refused(client.ask(stream=stream)) for stream in (False, True) for _ in range(5)}
                assert found == {(503, "server_error", "quota_unavailable")}, name
                until(lambda: len(model.produced()) >= client.answered)
                assert len(model.produced()) == client.answered, f"{name}: it was admitted"
                mended(world)
            assert len(model.produced()) == client.answered
    finally:
        world.stop()
