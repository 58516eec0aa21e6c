"""Starts the local model, watches it, starts it again when it dies or falls silent, and stops it.

::

    start -> ready -> (exits | falls silent) -> backoff -> ready ...
                \\-> stop: the process is gone
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from penstock.adapters.local_model.locating import Parts, locate
from penstock.errors import UpstreamUnreachable

log = logging.getLogger("penstock.local_model")

BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 15.0
STEADY_S = 60.0
UNHEALTHY_MAX = 3


@dataclass(slots=True, kw_only=True)
class LocalModel:
    """The supervisor; all its methods belong to one event loop.

    Args:
        name: What the model calls itself in answers.
        host: Address that it listens on.
        port: 0 for a free one.
        context: Tokens for each request, prompt and answer together.
        parallel: Requests at a time; more of them wait inside the engine.
        threads: CPU threads; None: one for each core but one. Its threads wait for each other at every step, spinning,
            so that one which shares its core with something else holds up all of them.
        log_file: Where the engine's own warnings go; None discards them.
        start_s: How long loading may take.
        on_change: Told True when it became ready, False when it was lost.
        health_every_s: How often it is asked whether it is well; after ``UNHEALTHY_MAX`` silences it is replaced.
    """

    name: str = "local"
    host: str = "127.0.0.1"
    port: int = 0
    context: int = 2048
    parallel: int = 4
    threads: int | None = None
    log_file: Path | None = None
    start_s: float = 120.0
    health_every_s: float = 5.0
    on_change: Callable[[bool], None] = lambda _: None
    parts: Parts | None = None
    url: str = ""
    restarts: int = 0
    _process: asyncio.subprocess.Process | None = None
    _watch: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The running process's id, if there is one."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    async def start(self) -> str:
        """Start, and wait until it answers.

        Returns:
            Its base URL, the same for as long as this object runs, restarts included.

        Raises:
            ConfigurationError: The ``local`` extra is not installed.
            UpstreamUnreachable: It did not become ready; the message holds its last words.
        """
        if self.parts is None:
            self.parts = locate()
        await self._launch()
        self._watch = asyncio.create_task(self._keep_running(), name="local model")
        return self.url

    async def stop(self) -> None:
        """Stop it; afterwards no process is left. May be called twice, and before ``start``."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        await self._end()

    def _command(self) -> list[str]:
        assert self.parts is not None, "start locates them"
        options = {
            "weights": self.parts.weights,
            "name": self.name,
            "host": self.host,
            "port": urlsplit(self.url).port or self.port,
            "context": self.context,
            "parallel": self.parallel,
            "threads": self.threads or max(1, (os.cpu_count() or 1) - 1),
        }
        module = __package__ or ""
        return [sys.executable, "-P", "-m", module, *(f"--{name}={value}" for name, value in options.items())]

    async def _launch(self) -> None:
        began_s = time.monotonic()
        with self._open_log() as errors:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for the service, which then stops this process when it is done
            )
        assert self._process.stdout is not None, "a pipe was asked for"
        try:
            async with asyncio.timeout(self.start_s):
                line = await self._process.stdout.readline()
        except TimeoutError as error:
            await self._end()
            raise UpstreamUnreachable(f"the local model was not ready after {self.start_s:g} s") from error
        except asyncio.CancelledError:
            await self._end()
            raise
        if not line:
            code = await self._process.wait()
            await self._end()
            raise UpstreamUnreachable(f"the local model ended with {code} before it was ready{self._last_words()}")
        self.url = json.loads(line)["url"]
        log.info("local model ready on %s in %.1f s, pid %s", self.url, time.monotonic() - began_s, self.pid)
        self.on_change(True)

    def _open_log(self) -> IO[bytes]:
        return open(os.devnull if self.log_file is None else self.log_file, "ab")

    def _last_words(self) -> str:
        if self.log_file is None:
            return "; give it a log file to see why"
        lines = self.log_file.read_text(errors="replace").strip().splitlines()
        return f": {lines[-1]} (more in {self.log_file})" if lines else f"; {self.log_file} is empty"

    async def _keep_running(self) -> None:
        backoff_s = BACKOFF_FIRST_S
        while True:
            began_s = time.monotonic()
            why = await self._until_unwell()
            self.on_change(False)
            await self._end()
            if time.monotonic() - began_s > STEADY_S:
                backoff_s = BACKOFF_FIRST_S
            while self._process is None:
                log.warning("local model %s; starting it again in %.2g s", why, backoff_s)
                await asyncio.sleep(backoff_s)
                backoff_s = min(BACKOFF_MAX_S, 2 * backoff_s)
                self.restarts += 1
                try:
                    await self._launch()
                except (UpstreamUnreachable, OSError) as error:
                    why = str(error)

    async def _until_unwell(self) -> str:
        """Return, when it has exited or stayed silent, what happened."""
        assert self._process is not None, "it was launched"
        silences = 0
        while True:
            try:
                async with asyncio.timeout(self.health_every_s):
                    return f"ended with {await self._process.wait()}"
            except TimeoutError:
                silences = 0 if await self._is_healthy() else silences + 1
            if silences >= UNHEALTHY_MAX:
                return f"did not answer {silences} times"

    async def _is_healthy(self) -> bool:
        address = urlsplit(self.url)
        try:
            async with asyncio.timeout(self.health_every_s):
                reader, writer = await asyncio.open_connection(address.hostname, address.port)
                try:
                    writer.write(b"GET /health HTTP/1.0\r\n\r\n")
                    return b" 200 " in await reader.readline()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False

    async def _end(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()  # it holds nothing that must be written
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()
        self._process = None
