"""Real child processes: started in order, kept running, ended in order, none left."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from penstock.adapters.processes import Program, RedisServer, Supervisor, end_leftovers, sole_supervisor
from penstock.errors import ConfigurationError, ProgramFailed

BOUND_S = 20.0


def python(folder: Path, name: str, code: str, is_ready: Callable[[], Awaitable[bool]]) -> Program:
    return Program(
        name=name, command=(sys.executable, "-u", "-c", code), environment=dict(os.environ), folder=folder,
        is_ready=is_ready, stop_s=BOUND_S, start_s=BOUND_S,
    )  # fmt: skip


async def at_once() -> bool:
    return True


async def never() -> bool:
    return False


class Watched:
    """A supervisor whose lines and process ids can be waited for."""

    def __init__(self, folder: Path) -> None:
        self.lines: list[tuple[str, str]] = []
        self._changed = asyncio.Event()
        self.supervisor = Supervisor(folder, show=self._show, changed=lambda _: self._changed.set())

    def _show(self, name: str, line: str) -> None:
        self.lines.append((name, line))
        self._changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(BOUND_S):
            while not holds():
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Watched]:
    found = Watched(folder)
    try:
        yield found
    finally:
        await found.supervisor.stop()


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


ENDLESS = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('here'); signal.pause()"


def test_programs_start_in_order_and_end_in_the_opposite_one(tmp_path: Path) -> None:
    code = (
        "import signal, sys; "
        "signal.signal(signal.SIGTERM, lambda *_: (print('end'), sys.exit(0))); print('start'); signal.pause()"
    )

    async def main() -> list[tuple[str, str]]:
        async with watched(tmp_path) as watch:
            for name in ("one", "two"):
                await watch.supervisor.start(python(tmp_path, name, code, at_once))
                await watch.until(lambda name=name: (name, "start") in watch.lines)  # type: ignore[misc]
            pids = watch.supervisor.pids
        assert not any(runs(pid) for pid in pids.values())
        return watch.lines

    assert asyncio.run(main()) == [("one", "start"), ("two", "start"), ("two", "end"), ("one", "end")]
    assert (tmp_path / "logs" / "one.log").read_text() == "start\nend\n"


def test_a_program_that_was_killed_is_started_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path) as watch:
            await watch.supervisor.start(python(tmp_path, "one", ENDLESS, at_once))
            first = watch.supervisor.pids["one"]
            os.kill(first, signal.SIGKILL)
            await watch.until(lambda: watch.supervisor.pids.get("one", first) != first)

    asyncio.run(main())


def test_a_program_that_ends_before_it_is_ready_says_why(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path) as watch:
            await watch.supervisor.start(python(tmp_path, "one", "import sys; sys.exit('no port is free')", never))

    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(main())
    (failed,) = raised.value.exceptions
    assert isinstance(failed, ProgramFailed)
    assert failed.message.startswith("one ended with 1; ")
    assert "no port is free" in failed.message


def test_a_program_that_does_not_obey_is_killed(tmp_path: Path) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here')\nwhile True: signal.pause()"

    async def main() -> int:
        async with watched(tmp_path) as watch:
            program = python(tmp_path, "one", stubborn, at_once)
            await watch.supervisor.start(
                Program(
                    name="one", command=program.command, environment=program.environment, folder=tmp_path,
                    is_ready=at_once, stop_s=0.2,
                )
            )  # fmt: skip
            await watch.until(lambda: ("one", "here") in watch.lines)
            return watch.supervisor.pids["one"]

    assert not runs(asyncio.run(main()))


def test_what_a_killed_supervisor_left_is_ended_and_nobody_else(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path) as watch:
            await watch.supervisor.start(python(tmp_path, "one", ENDLESS, at_once))
            await watch.until(lambda: ("one", "here") in watch.lines)
            pid = watch.supervisor.pids["one"]
            assert end_leftovers({"one": pid, "stranger": os.getpid()}, tmp_path / "elsewhere") == []
            assert await asyncio.to_thread(end_leftovers, {"one": pid, "stranger": os.getpid()}, tmp_path) == ["one"]
            await watch.until(lambda: not runs(pid))  # it is a child of this process, which may still have to reap it

    asyncio.run(main())


def test_a_directory_has_one_supervisor_at_a_time(tmp_path: Path) -> None:
    refused = pytest.raises(ConfigurationError, match=rf"in use by process {os.getpid()}; stop it")
    with sole_supervisor(tmp_path), refused, sole_supervisor(tmp_path):
        pass
    with sole_supervisor(tmp_path):
        pass


def test_redis_runs_with_what_the_quota_requires(tmp_path: Path) -> None:
    async def main() -> bytes:
        server = RedisServer(folder=tmp_path / "redis", password="secret")
        async with watched(tmp_path) as watch:
            await watch.supervisor.start(*server.programs())
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"AUTH secret\r\nCONFIG GET maxmemory-policy\r\nCONFIG GET appendonly\r\nQUIT\r\n")
            told = await reader.read()
            writer.close()
            return told

    told = asyncio.run(main())
    assert b"noeviction" in told
    assert b"appendonly\r\n$3\r\nyes" in told
