"""One scheduler for a whole system: virtual time, a seed for everything that is drawn, and processes that can die.

Nothing here waits for a clock: when nobody can go on, time jumps to the next moment at which somebody can. So a minute
of a cluster takes milliseconds, and the same seed gives the same minute.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any

T0_MS = 1_700_000_000_000


class _Idle(selectors.SelectSelector):
    """Where a real loop would wait, time moves on."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nobody can ever go on")
        self.loop.now_s += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, seconds from 0."""

    def __init__(self) -> None:
        self.now_s = 0.0
        idle = _Idle()
        idle.loop = self
        super().__init__(idle)
        self.set_task_factory(_task)

    def time(self) -> float:
        return self.now_s


_LIFE: ContextVar[Life | None] = ContextVar("life", default=None)


def _task(loop: asyncio.AbstractEventLoop, work: Any, *, context: Context | None = None, **fields: Any) -> Any:
    """A task belongs to the process that started it, and dies with it."""
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, context=context, **fields)
    life = (context or copy_context()).get(_LIFE)
    if life is not None:
        life.adopt(task)
    return task


class Clock:
    """``penstock.ports.Clock`` in virtual time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now_ms(self) -> int:
        return T0_MS + round(self._loop.now_s * 1000)

    def monotonic_s(self) -> float:
        return self._loop.now_s


class Life:
    """One run of a process, until it is killed. What it awaits afterwards never happens."""

    def __init__(self, faults: Faults, name: str) -> None:
        self.faults = faults
        self.name = name
        self.is_over = False
        self.ended_at_s = float("inf")
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.at_end: list[Callable[[], None]] = []
        self._context = copy_context()
        self._context.run(_LIFE.set, self)

    def run(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Let something run in this process."""
        task = asyncio.get_running_loop().create_task(work, context=self._context.copy())
        task.add_done_callback(self._ended)
        return task

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Something runs in this process."""
        self.tasks[task] = None
        task.add_done_callback(self._left)
        if self.is_over:
            task.cancel()

    def _left(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.faults.bugs.append(f"{self.name}: {error!r}")
            self.kill()

    def check(self) -> None:
        """Go on only if the process lives."""
        if self.is_over:
            raise asyncio.CancelledError

    async def wait(self, seconds: float) -> None:
        """Let so much time pass in this process."""
        self.check()
        await asyncio.sleep(seconds)
        self.check()

    def point(self, name: str, *, share: float = 1.0) -> None:
        """Between two steps: here the process may be killed, ``share`` as often as at other points."""
        self.faults.points.add(f"{self.name}: {name}")
        if self.faults.happens(self.faults.kill_share * share):
            self.kill()
        self.check()

    def kill(self) -> None:
        """It does nothing more; the system notices."""
        if self.is_over:
            return
        self.is_over = True
        self.ended_at_s = self.faults.now_s()
        self.faults.kills += 1
        for task in tuple(self.tasks):
            task.cancel()
        for each in self.at_end:
            each()


class Faults:
    """Draws what goes wrong, until nothing does any more."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.is_on = True
        self.kill_share = random.choice((0.0, 0.01, 0.03, 0.08, 0.25))
        self.loss_share = random.choice((0.0, 0.02, 0.08, 0.25))
        self.kills = 0
        self.points: set[str] = set()
        self.bugs: list[str] = []

    def now_s(self) -> float:
        """Seconds of virtual time."""
        return asyncio.get_running_loop().time()

    def happens(self, share: float) -> bool:
        """Whether something of this probability happens now."""
        return self.is_on and self.random.random() < share

    def delay_s(self) -> float:
        """How long a message is on its way: mostly milliseconds, sometimes so long that others overtake it."""
        if self.happens(0.03):
            return self.random.uniform(0.05, 4.0)
        return self.random.uniform(0.0005, 0.004)


class System:
    """Processes, each started again some time after it was killed."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.lives: dict[str, Life] = {}
        self.is_closing = False

    def start(self, name: str, main: Callable[[Life], Coroutine[Any, Any, Any]]) -> None:
        """Start a process, and keep it running."""
        life = self.lives[name] = Life(self.faults, name)

        def again() -> None:
            if not self.is_closing:
                wait_s = self.faults.random.choice((0.5, 2.0, 12.0))
                asyncio.get_running_loop().call_later(wait_s, self.start, name, main)

        life.at_end.append(again)
        life.run(main(life))

    def kill(self, name: str) -> None:
        """Kill a process, if it lives."""
        self.lives[name].kill()

    def close(self) -> None:
        """End everything."""
        self.is_closing = True
        for life in self.lives.values():
            life.kill()
