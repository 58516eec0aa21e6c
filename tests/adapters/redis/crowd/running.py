"""A crowd's life: processes are started, killed and replaced, the clock goes on with what they try, all is observed.

This process is the clock, the observer, the killer and the keeper that drains the outbox into a ledger.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from penstock.adapters.redis.client import pack
from penstock.adapters.redis.translating import read_answer, write_call
from penstock.quota import Call, Define, Inspect, Ready, Sweep
from tests.adapters.redis.clocked import CLOCKED, set_time
from tests.adapters.redis.crowd import calling, careless
from tests.adapters.redis.crowd.demand import MS_PER_ATTEMPT, ORGANISATION, T0_MS, definitions
from tests.adapters.redis.crowd.draining import drain
from tests.adapters.redis.crowd.line import Line
from tests.adapters.redis.crowd.observing import Observer

DRAIN_EVERY = 4_000  # events
REST_MS = 3_600_000
NICE = 5  # whoever observes goes first


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a crowd does.

    Args:
        careless: Check, then increment, instead of Penstock.
        attempts: Reserves sent, by all together.
        kills: How many processes are killed on the way; each is replaced.
        folder: Where logs and the ledger go.
    """

    careless: bool
    processes: int
    attempts: int
    kills: int
    seed: int
    folder: Path


class Crowd:
    """One run against the Redis at ``port``."""

    def __init__(self, plan: Plan, port: int, progress: Callable[[int], None]) -> None:
        self.plan = plan
        self.port = port
        self.ledger = plan.folder / "ledger.db"
        self.drained = 0
        self._progress = progress
        self._board = memoryview(mmap.mmap(-1, 8 * (1 + plan.processes))).cast("B").cast("q")
        self._board[0] = T0_MS
        self._random = Random(plan.seed)
        self._lives = 0
        self._running: dict[int, int] = {}  # process id to slot
        self._positions: dict[int, str] = {}
        self._line = Line(port)
        self._line.ask([pack("FUNCTION", "LOAD", "REPLACE", CLOCKED), set_time(T0_MS)])
        if not plan.careless:
            self.ask(Define(**self._by(), version=1, definitions=definitions(plan.processes)))
            self.ask(Ready(**self._by(), epoch=1))
        self.observer = Observer(port, careless.caps(plan.processes) if plan.careless else None)

    def run(self) -> None:
        """From the first process's start until the last has ended and everything has come to rest."""
        kills = sorted(self._random.randrange(self.plan.attempts) for _ in range(self.plan.kills))
        drained_at = 0
        try:
            for slot in range(self.plan.processes):
                self._start(slot)
            while self._running:
                self.observer.watch(0.01)
                tried = self._tried()
                self._tick(T0_MS + MS_PER_ATTEMPT * tried)
                while kills and kills[0] <= tried:
                    kills.pop(0)
                    self._kill()
                self._reap()
                if self.observer.events - drained_at > DRAIN_EVERY:
                    drained_at = self.observer.events
                    self._drain()
                self._progress(tried)
        finally:
            for pid in self._running:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        if not self.plan.careless:
            self._tick(self._board[0] + REST_MS)
            while self.ask(Sweep(**self._by(), count_max=1_000)).count:
                pass
            self._drain()
        self.observer.catch_up(self._line)

    def standing(self) -> Any:
        """What the library says of its limits and open reservations."""
        return self.ask(Inspect(**self._by()))

    def ask(self, call: Call[Any]) -> Any:
        """The answer to one call."""
        return read_answer(self._line.ask([write_call(call)])[0])

    def close(self) -> None:
        """End every connection."""
        self.observer.close()
        self._line.close()

    def _by(self) -> dict[str, Any]:
        return {"organisation": ORGANISATION, "caller_now_ms": self._board[0]}

    def _tried(self) -> int:
        return sum(self._board[1:])

    def _tick(self, now_ms: int) -> None:
        """The store's clock, then everybody's."""
        if now_ms != self._board[0]:
            self._line.ask([set_time(now_ms)])
            self._board[0] = now_ms

    def _drain(self) -> None:
        self.drained += asyncio.run(drain(self.port, self.ledger, self._positions))

    def _start(self, slot: int) -> None:
        self._lives += 1
        life = self._lives
        pid = os.fork()
        if pid:
            self._running[pid] = slot
            return
        code = 1
        try:
            os.nice(NICE)
            self._live(slot, life)
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            raise
        finally:
            os._exit(code)

    def _live(self, slot: int, life: int) -> None:
        seed = self.plan.seed * 1_000_003 + life

        def tried(count: int) -> bool:
            self._board[1 + slot] += count
            return self._tried() >= self.plan.attempts

        if self.plan.careless:
            careless.live(self.port, seed, self.observer.caps, tried)
            return
        log = os.open(self.plan.folder / f"{life}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        calling.live(self.port, log, life, seed, lambda: self._board[0], tried)

    def _kill(self) -> None:
        pid = self._random.choice(sorted(self._running))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self._start(self._running.pop(pid))

    def _reap(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            del self._running[pid]
            if status:
                raise RuntimeError(f"a process of the crowd ended with {os.waitstatus_to_exitcode(status)}")
