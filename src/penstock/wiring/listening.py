"""The two listeners of a service, the public one and the one for operations, and how it is found by commands."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from socket import socket
from typing import Any

from penstock.api.server import bind, serve
from penstock.config import Configuration
from penstock.wiring.places import Places
from penstock.wiring.running import Running, announce, local_url, retract

COLLECT_AFTER = 20_000  # objects made and not freed; Python's own is 700


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What a person, or a test, wants to know of a service that just began to answer.

    Args:
        first_key: The key made because there was none; shown once. None if there were keys.
    """

    url: str
    operations_url: str
    first_key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Both addresses, taken, so that nobody else can have them while the rest starts."""

    public: socket
    operations: socket


@contextmanager
def taken(configuration: Configuration) -> Iterator[Addresses]:
    """Take both addresses; free them after the block.

    Raises:
        ConfigurationError: One is taken already, or is not of this machine.
    """
    server = configuration.server
    with (
        bind(server.host, server.port, setting="server.port") as public,
        bind(server.operations_host, server.operations_port, setting="server.operations_port") as operations,
    ):
        yield Addresses(public=public, operations=operations)


async def listen(
    configuration: Configuration,
    places: Places,
    addresses: Addresses,
    public: Callable[..., Any],
    operations: Callable[..., Any],
    *,
    stop: asyncio.Event,
    started: Callable[[Started], None],
    stop_delay_s: float,
    first_key: str | None,
) -> None:
    """Both listeners, until told to stop; the operations port answers until the public one has ended."""
    server = configuration.server
    operations_stop = asyncio.Event()

    def accepted() -> None:
        told = Started(
            url=local_url(server.host, _port(addresses.public)),
            operations_url=local_url(server.operations_host, _port(addresses.operations)),
            first_key=first_key,
        )
        started(told)  # first: who finds the announcement may rely on the first key being shown
        announce(places, Running(pid=os.getpid(), url=told.url, operations_url=told.operations_url))

    async def answer() -> None:
        try:
            await serve(
                public,
                addresses.public,
                stop=stop,
                started=accepted,
                delay_s=stop_delay_s,
                shutdown_s=server.shutdown_ms / 1000,
                head_bytes_max=server.header_bytes_max,
            )
        finally:
            retract(places)
            operations_stop.set()

    with what_stays_is_spared():
        async with asyncio.TaskGroup() as both:
            both.create_task(serve(operations, addresses.operations, stop=operations_stop, shutdown_s=1.0))
            both.create_task(answer())


@contextmanager
def what_stays_is_spared() -> Iterator[None]:
    """Let the garbage collector pass over modules, configuration and limits, and look for circles less often.

    A request leaves none behind (``tests/lanes`` holds that); going over all that a process of this size keeps, every
    few requests, costs a twentieth of each and empties the processor's caches.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _port(listener: socket) -> int:
    port: int = listener.getsockname()[1]
    return port


async def beside(work: Coroutine[Any, Any, None], serving: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` for as long as ``serving`` lasts; a fault in either ends both, and is raised in a group."""
    async with asyncio.TaskGroup() as both:
        task = both.create_task(work)
        await serving
        task.cancel()


def alongside(parts: AsyncExitStack, *work: Coroutine[Any, Any, None]) -> None:
    """Do all this until the parts are taken down."""
    for each in work:
        parts.push_async_callback(cancelled, asyncio.create_task(each))


async def cancelled(task: asyncio.Task[None]) -> None:
    """End a task that runs beside the listeners, and wait for it."""
    task.cancel()
    await asyncio.wait([task])
