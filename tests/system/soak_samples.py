"""What the soak measures as it goes: memory, open files and threads of each process, and what waits in each store.

A process is restarted many times in two hours, so a slope is that of its lives: straight lines of one common slope
through the samples of each, without the first minutes, in which every program grows. For the keeper a rebuild is such a
beginning too: it reads what must be remembered all at once, and keeps the room, which the next rebuild uses again.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2 as httpx

from penstock.adapters.redis.client import RedisClient, pack
from penstock.adapters.redis.translating import PARTITIONS, outbox_key
from penstock.adapters.redis.wire import Refusal
from penstock.errors import PenstockError
from penstock.wiring.holding import held_in_cluster
from penstock.wiring.quota import redis_address
from penstock.wiring.stores import Service, address
from tests.system.clusters import Cluster
from tests.system.soak_faults import family
from tests.system.soak_load import within

EVERY_S: Final = 15.0
LIFE_S_MIN: Final = 600.0
WARM_UP_S: Final = 180.0
UNKNOWN: Final = -1
KEEPER: Final = "keeper"  # rebuilds what Redis lost
SUPERVISOR: Final = "supervisor"  # all others are below it
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Sample:
    """One process, with all that it started, at one moment; memory is what is not shared."""

    at_s: float
    name: str
    pid: int
    memory_mb: float
    files: int
    threads: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in the stores at one moment; -1 while a store cannot be asked."""

    at_s: float
    redis_mb: float
    queued: int
    outbox: int
    held: int


@dataclass(frozen=True, slots=True)
class Slope:
    """Of one process over all its long lives, per hour; ``error`` is one standard error.

    Args:
        lives: How many lasted long enough to be judged.
        hours: How long those were together, without their first minutes.
    """

    lives: int
    hours: float
    per_hour: float
    error: float


def slope(lives: Sequence[Sequence[tuple[float, float]]]) -> Slope:
    """The common slope of several lines, each of points (seconds, value), by least squares.

    Example:
        >>> slope([[(0, 1.0), (1800, 2.0), (3600, 3.0)], [(0, 7.0), (3600, 9.0)]]).per_hour
        2.0
    """
    across, along, points = 0.0, 0.0, 0
    centred = []
    for life in lives:
        middle_s, middle = (sum(each) / len(life) for each in zip(*life, strict=True))
        centred += [((at_s - middle_s) / 3600, value - middle) for at_s, value in life]
    for hours, value in centred:
        across += hours * value
        along += hours * hours
        points += 1
    found = across / along if along else 0.0
    residuals = sum((value - found * hours) ** 2 for hours, value in centred)
    free = points - len(lives) - 1
    error = math.sqrt(residuals / free / along) if free > 0 and along else math.inf
    hours = sum(life[-1][0] - life[0][0] for life in lives) / 3600
    return Slope(len(lives), round(hours, 2), round(found, 3), round(error, 3))


@dataclass(slots=True)
class Samples:
    """All of a soak."""

    processes: list[Sample] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    flushed_at_s: list[float] = field(default_factory=list)

    def lives(self, name: str) -> list[list[Sample]]:
        """Samples of each life of a process that was long enough, after its first minutes."""
        begins_at_s = self.flushed_at_s if name == KEEPER else []
        found: dict[tuple[int, int], list[Sample]] = defaultdict(list)
        for each in self.processes:
            if each.name == name:
                found[each.pid, sum(at_s <= each.at_s for at_s in begins_at_s)].append(each)
        long = [life for life in found.values() if life[-1].at_s - life[0].at_s >= LIFE_S_MIN]
        return [[each for each in life if each.at_s - life[0].at_s >= WARM_UP_S] for life in long]

    def slopes(self, name: str) -> dict[str, Slope]:
        """How memory (MB) and open files of a process grow per hour."""
        lives = self.lives(name)
        return {
            "memory_mb": slope([[(each.at_s, each.memory_mb) for each in life] for life in lives]),
            "files": slope([[(each.at_s, float(each.files)) for each in life] for life in lives]),
        }

    def summary(self, name: str) -> dict[str, Any]:
        """One process in figures."""
        mine = [each for each in self.processes if each.name == name]
        cpu_s: dict[int, float] = {each.pid: each.cpu_s for each in mine}
        return {
            "processes": len(cpu_s),
            "memory_mb_max": max(each.memory_mb for each in mine),
            "memory_mb_last": mine[-1].memory_mb,
            "files_max": max(each.files for each in mine),
            "files_last": mine[-1].files,
            "threads_max": max(each.threads for each in mine),
            "cpu_s": round(sum(cpu_s.values()), 1),
            "slopes": {what: asdict(found) for what, found in self.slopes(name).items()},
        }

    @property
    def names(self) -> list[str]:
        """Of all processes that were seen."""
        return sorted({each.name for each in self.processes})


class Sampler:
    """Takes samples of a cluster, and appends each to a file of JSON lines."""

    def __init__(self, cluster: Cluster, file: Path) -> None:
        self._cluster = cluster
        self._file = file
        self._began_s = time.monotonic()
        self.taken = Samples()

    async def run(self, stop: asyncio.Event) -> None:
        """Sample every 15 s until ``stop``."""
        with self._file.open("w") as file:
            while True:
                now_s = round(time.monotonic() - self._began_s, 1)
                new = [found for name, pid in self._pids().items() if (found := measured(now_s, name, pid)) is not None]
                self.taken.processes += new
                waiting = await self.look()
                file.writelines(json.dumps(asdict(each)) + "\n" for each in new)
                file.write(json.dumps(asdict(waiting)) + "\n")
                file.flush()
                if await within(stop, EVERY_S):
                    return

    def _pids(self) -> dict[str, int]:
        found = dict(self._cluster.pids)
        for name, program in (("model", self._cluster.model), (SUPERVISOR, self._cluster)):
            if program.process is not None:
                found[name] = program.process.pid
        return found

    async def look(self) -> Waiting:
        """What waits in the stores now; kept with the samples."""
        now_s = round(time.monotonic() - self._began_s, 1)
        configuration = self._cluster.configuration
        try:
            held = sum(each.requests for each in (await held_in_cluster(configuration)).values())
            unwritten, redis_mb = await self._redis()
        except (PenstockError, Refusal, OSError):
            held = unwritten = redis_mb = UNKNOWN
        waiting = Waiting(now_s, redis_mb, await queued(self._cluster), unwritten, held)
        self.taken.waiting.append(waiting)
        return waiting

    async def _redis(self) -> tuple[int, float]:
        """Events in all outboxes, and memory in MB."""
        client = RedisClient(redis_address(self._cluster.configuration, None), name="soak", bound_s=2.0)
        try:
            await client.start()
            told = await client.ask(pack("INFO", "memory"))
            lengths = [await client.ask(pack("XLEN", outbox_key(partition))) for partition in range(PARTITIONS)]
        except Refusal as refusal:  # it loads its file
            raise OSError(str(refusal)) from refusal
        finally:
            await client.close()
        lines = dict(line.split(":", 1) for line in told.decode().splitlines() if ":" in line)
        return sum(lengths), round(int(lines["used_memory"]) / 1e6, 2)


async def queued(cluster: Cluster) -> int:
    """Messages in all queues, ready and unacknowledged, as the broker last counted; -1 if it cannot be asked."""
    configuration = cluster.configuration
    assert configuration.stores is not None
    account = address(configuration, Service.RABBITMQ, None, os.environ)
    url = f"{configuration.stores.rabbitmq.management}/api/queues/{account.path or 'penstock'}"
    try:
        async with httpx.AsyncClient(auth=(account.username or "", account.password or ""), trust_env=False) as client:
            answer = await client.get(url, params={"disable_stats": "false"})
            return sum(each.get("messages", 0) for each in answer.json())
    except (httpx.HTTPError, ValueError, AttributeError):
        return UNKNOWN


def measured(now_s: float, name: str, pid: int) -> Sample | None:
    """One process now; None if it is gone."""
    kilobytes = files = threads = ticks = 0
    for each in (pid,) if name == SUPERVISOR else family(pid):
        with suppress(OSError):
            place = Path(f"/proc/{each}")
            status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
            files += len(os.listdir(place / "fd"))
            kilobytes += int(status.get("RssAnon", "0 kB").split()[0])  # one that has ended has none
            threads += int(status["Threads"])
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11 : 13 if name == SUPERVISOR else 15]))  # with its children that ended
    if not threads:
        return None
    return Sample(now_s, name, pid, round(kilobytes / 1000, 2), files, threads, round(ticks / _TICKS, 2))
