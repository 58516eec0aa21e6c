"""What a child process is made of, and how it is found and asked whether it is ready."""

from __future__ import annotations

import asyncio
import glob
import shutil
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from penstock.errors import ConfigurationError

ANSWER_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One process to run.

    Args:
        name: Stands before each line that it writes.
        command: The program's path and its arguments.
        environment: The whole of it.
        folder: Where it runs.
        is_ready: Asked until it says so.
        stop_signal: What ends it in order.
        stop_s: How long it may take to; then it is killed.
        start_s: How long it may take to become ready.
        is_shown: Whether what it writes belongs in the common log; it is in its own file either way.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    folder: Path
    is_ready: Callable[[], Awaitable[bool]]
    stop_signal: signal.Signals = signal.SIGTERM
    stop_s: float = 30.0
    start_s: float = 60.0
    is_shown: bool = True


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_program(name: str, package: str, *patterns: str) -> str:
    """Path of a program: by patterns, the last in order first, then on the ``PATH``.

    Raises:
        ConfigurationError: It is not installed; names the Debian package that has it.
    """
    for pattern in patterns:
        for place in sorted(glob.glob(pattern), reverse=True):
            return place
    found = shutil.which(name)
    if found is None:
        raise ConfigurationError((f"{name}: not found; install it, on Debian with `apt-get install {package}`",))
    return found


async def answers(port: int, question: bytes = b"", answer: bytes = b"") -> bool:
    """Whether a loopback port accepts, and answers a question with something that begins as expected."""
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                if question:
                    writer.write(question)
                return not answer or (await reader.read(256)).startswith(answer)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def answers_200(port: int, path: str) -> bool:
    """Whether a loopback port answers a GET with 200."""
    question = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    return await answers(port, question.encode(), b"HTTP/1.1 200")
