"""The faults of the soak: each process and service killed and frozen in turn, Redis emptied, the model server away.

The order is drawn from a seed, round after round, so that every fault comes before any comes again.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from penstock.adapters.redis.client import RedisClient, pack
from penstock.adapters.redis.wire import Refusal
from penstock.errors import StoreUnavailable
from penstock.wiring.quota import redis_address
from tests.system.clusters import Cluster
from tests.system.programs import SimulatedModel
from tests.system.soak_load import within

FROZEN_S: Final = (3.0, 25.0)
BACK_S: Final = 120.0
UPSTREAM: Final = ("stop", "freeze", "slow down")
USUAL: Final = ("--decode", "200")
SLOW: Final = ("--latency", "2", "--decode", "15")
UNTOUCHED: Final = frozenset({"epmd"})  # the port mapper of one machine's broker: clusters have none of their own


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done (kill, freeze, crash, ...), and to which process, or at which point."""

    what: str
    name: str

    def __str__(self) -> str:
        return f"{self.what} {self.name}"


FLUSH: Final = Fault("flush", "redis")


def drawn(names: list[str], draw: random.Random) -> Iterator[Fault]:
    """Faults without end, every one once in each round."""
    every = [Fault(what, name) for name in names for what in ("kill", "freeze")]
    every += [FLUSH, *(Fault(what, "upstream") for what in UPSTREAM)]
    while True:
        draw.shuffle(every)
        yield from every


def family(pid: int) -> list[int]:
    """A process and all that it started, directly or not, and that runs still."""
    parents: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents.setdefault(int(place.read_text().rpartition(")")[2].split()[1]), []).append(int(place.parent.name))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found


class Faults:
    """Carries faults out on a cluster. ``told`` has one entry for each, with how long the named one was away."""

    def __init__(self, cluster: Cluster, draw: random.Random, *, frozen_s: tuple[float, float] = FROZEN_S) -> None:
        self._cluster = cluster
        self._frozen_s = frozen_s
        self._draw = draw
        self.told: list[dict[str, Any]] = []

    @property
    def names(self) -> list[str]:
        """Of processes and services that may be killed and frozen."""
        return sorted(self._cluster.pids.keys() - UNTOUCHED)

    def flushed_at_s(self, *, began_at_ms: int) -> list[float]:
        """When Redis was flushed, in seconds from a moment on."""
        return [(each["at_ms"] - began_at_ms) / 1000 for each in self.told if each["fault"] == str(FLUSH)]

    async def run(self, stop: asyncio.Event, *, every_s: float, count_max: int | None = None) -> None:
        """One fault at a time, one for each ``every_s``, until ``stop``."""
        for number, fault in enumerate(drawn(self.names, self._draw)):
            if number == count_max or await within(stop, every_s * (0.5 if number == 0 else 1.0)):
                return
            began_s = time.monotonic()
            await self._carry_out(fault)
            away_s = round(time.monotonic() - began_s, 1)
            self.told.append({"fault": str(fault), "at_ms": time.time_ns() // 1_000_000, "away_s": away_s})

    async def _carry_out(self, fault: Fault) -> None:
        if fault.what == "kill":
            await self._kill(fault.name)
        elif fault.what == "freeze":
            await self._freeze(fault.name)
        elif fault.what == "flush":
            await self._flush()
        else:
            await self._upstream(fault.what)

    async def _kill(self, name: str) -> None:
        pid = self._cluster.pids.get(name)
        if pid is None:  # it is just being started again
            return
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        async with asyncio.timeout(BACK_S):
            while self._cluster.pids.get(name, pid) == pid:
                await within(asyncio.Event(), 0.1)

    async def _freeze(self, name: str) -> None:
        pid = self._cluster.pids.get(name)
        if pid is not None:
            await self._frozen(family(pid))

    async def _frozen(self, pids: list[int]) -> None:
        try:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            await within(asyncio.Event(), self._draw.uniform(*self._frozen_s))
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    async def _flush(self) -> None:
        client = RedisClient(redis_address(self._cluster.configuration, None), name="soak", bound_s=10.0)
        try:
            async with asyncio.timeout(BACK_S):
                while not await self._flushed(client):
                    await within(asyncio.Event(), 0.5)
        finally:
            await client.close()

    async def _flushed(self, client: RedisClient) -> bool:
        try:
            await client.ask(pack("FLUSHALL"))
        except (StoreUnavailable, Refusal):  # it is being started again
            return False
        return True

    async def _upstream(self, what: str) -> None:
        model = self._cluster.model
        assert model.process is not None
        if what == "freeze":
            await self._frozen([model.process.pid])
            return
        await asyncio.to_thread(model.stop)  # in order, so that its log has every request that it cut off
        if what == "slow down":
            model = await self._started(*SLOW)
        await within(asyncio.Event(), self._draw.uniform(*self._frozen_s))
        if what == "slow down":
            await asyncio.to_thread(model.stop)
        await self._started(*USUAL)

    async def _started(self, *options: str) -> SimulatedModel:
        """The model server at its old address, with the log that it had."""
        old = self._cluster.model
        self._cluster.model = SimulatedModel(old.folder, "--model", "m", "--model", "n", *options, port=old.port)
        await asyncio.to_thread(self._cluster.model.start)
        return self._cluster.model
