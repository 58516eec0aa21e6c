"""Runs several programs as one: started in order, their lines in one stream, started again when they end, stopped
in the opposite order.

::

    start -> ready -> (ends by itself) -> backoff -> start ...
                 \\-> stop: its signal, then SIGKILL
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from penstock.adapters.processes.leftovers import MARK
from penstock.adapters.processes.programs import Program
from penstock.errors import ProgramFailed

BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 10.0
STEADY_S = 30.0
ASK_EVERY_S = 0.1
LAST_LINES = 20
LINE_BYTES_MAX = 1 << 20

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Child:
    program: Program
    log: Path
    stage: int
    process: asyncio.subprocess.Process | None = None
    reading: asyncio.Task[None] | None = None
    watching: asyncio.Task[None] | None = None
    last_lines: list[str] = field(default_factory=list)


class Supervisor:
    """Keeps programs running.

    Args:
        folder: Whose programs these are; the output of each goes into a file in ``logs`` below it.
        show: Given each line of the programs that are shown, with the program's name.
        changed: Told after each start and end, with process ids by name.
    """

    def __init__(
        self, folder: Path, *, show: Callable[[str, str], None], changed: Callable[[dict[str, int]], None]
    ) -> None:
        self._folder = folder
        self._logs = folder / "logs"
        self._show = show
        self._changed = changed
        self._children: list[_Child] = []
        self._stage = 0

    @property
    def pids(self) -> dict[str, int]:
        """Of what runs just now."""
        return {
            child.program.name: child.process.pid
            for child in self._children
            if child.process is not None and child.process.returncode is None
        }

    async def start(self, *programs: Program) -> None:
        """Start programs together, and wait until all are ready; then keep them running.

        Raises:
            ProgramFailed: One ended, or was not ready in time; its last lines are in the message.
        """
        self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._stage += 1
        started = [_Child(each, self._logs / f"{each.name}.log", self._stage) for each in programs]
        self._children += started
        async with asyncio.TaskGroup() as launches:
            for child in started:
                launches.create_task(self._begin(child))

    async def _begin(self, child: _Child) -> None:
        await self._launch(child)
        child.watching = asyncio.create_task(self._keep_running(child), name=child.program.name)

    async def stop(self) -> None:
        """End all, those that were started last first. Afterwards none is left."""
        while self._children:
            last = [child for child in self._children if child.stage == self._children[-1].stage]
            await asyncio.gather(*(self._finish(child) for child in last))
            del self._children[-len(last) :]
            self._changed(self.pids)

    async def _finish(self, child: _Child) -> None:
        if child.watching is not None:
            child.watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await child.watching
        await self._end(child)

    async def _launch(self, child: _Child) -> None:
        program = child.program
        child.last_lines.clear()
        child.process = await asyncio.create_subprocess_exec(
            *program.command,
            env={**program.environment, MARK: str(self._folder)},
            cwd=program.folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the supervisor, which then ends them in order
            limit=LINE_BYTES_MAX,
        )
        child.reading = asyncio.create_task(self._read(child, child.process))
        self._changed(self.pids)
        began_s = time.monotonic()
        while not await program.is_ready():
            if child.process.returncode is not None or time.monotonic() - began_s > program.start_s:
                code = child.process.returncode
                await self._end(child)
                what = f"ended with {code}" if code is not None else f"was not ready after {program.start_s:g} s"
                raise ProgramFailed(f"{program.name} {what}; more in {child.log}\n" + "\n".join(child.last_lines))
            await asyncio.sleep(ASK_EVERY_S)

    async def _read(self, child: _Child, process: asyncio.subprocess.Process) -> None:
        """Every line into the program's own file, and shown."""
        assert process.stdout is not None, "a pipe was asked for"
        with child.log.open("ab", buffering=0) as log:
            while True:
                try:
                    line = await process.stdout.readline()
                except ValueError:  # longer than LINE_BYTES_MAX; the rest of it follows as lines
                    continue
                if not line:
                    return
                log.write(line)
                text = line.decode(errors="replace").rstrip()
                child.last_lines = [*child.last_lines[1 - LAST_LINES :], text]
                if child.program.is_shown:
                    self._show(child.program.name, text)

    async def _keep_running(self, child: _Child) -> None:
        backoff_s = BACKOFF_FIRST_S
        while True:
            began_s = time.monotonic()
            why = await self._until_ended(child)
            if time.monotonic() - began_s > STEADY_S:
                backoff_s = BACKOFF_FIRST_S
            while child.process is None:
                _log.warning("%s %s; starting it again in %.2g s", child.program.name, why, backoff_s)
                self._changed(self.pids)
                await asyncio.sleep(backoff_s)
                backoff_s = min(BACKOFF_MAX_S, 2 * backoff_s)
                try:
                    await self._launch(child)
                except (ProgramFailed, OSError) as error:
                    why = f"failed: {str(error).splitlines()[0]}"

    async def _until_ended(self, child: _Child) -> str:
        """What happened to it; nothing of it is left then."""
        assert child.process is not None, "it was launched"
        code = await child.process.wait()
        await self._end(child)
        return f"ended with {code}"

    async def _end(self, child: _Child) -> None:
        """End the process and what it started: they share a session of their own."""
        process, child.process = child.process, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.send_signal(child.program.stop_signal)
            try:
                async with asyncio.timeout(child.program.stop_s):
                    await process.wait()
            except TimeoutError:
                _log.warning("%s did not end within %g s; killing it", child.program.name, child.program.stop_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if child.reading is not None:
            await child.reading
            child.reading = None
