"""The two listeners of a service, the public one and the one for operations, and how it is found by commands."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from penstock.api.server import serve
from penstock.config import Configuration
from penstock.wiring.places import Places
from penstock.wiring.running import Running, announce, local_url, retract


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What a person, or a test, wants to know of a service that just began to answer.

    Args:
        first_key: The key made because there was none; shown once. None if there were keys.
    """

    url: str
    operations_url: str
    first_key: str | None


async def listen(
    configuration: Configuration,
    places: Places,
    public: Callable[..., Any],
    operations: Callable[..., Any],
    *,
    stop: asyncio.Event,
    started: Callable[[Started], None],
    first_key: str | None,
) -> None:
    """Both listeners, until told to stop; the operations port answers until the public one has ended."""
    server = configuration.server
    operations_stop = asyncio.Event()
    operations_port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as listeners:
        listening = listeners.create_task(
            serve(
                operations,
                host=server.operations_host,
                port=server.operations_port,
                stop=operations_stop,
                started=operations_port.set_result,
                shutdown_s=1.0,
            )
        )
        waited: list[asyncio.Future[Any]] = [listening, operations_port]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not operations_port.done():
            return  # the group raises what went wrong

        def accepted(port: int) -> None:
            told = Started(
                url=local_url(server.host, port),
                operations_url=local_url(server.operations_host, operations_port.result()),
                first_key=first_key,
            )
            announce(places, Running(pid=os.getpid(), url=told.url, operations_url=told.operations_url))
            started(told)

        try:
            await serve(
                public,
                host=server.host,
                port=server.port,
                stop=stop,
                started=accepted,
                shutdown_s=server.shutdown_ms / 1000,
                head_bytes_max=server.header_bytes_max,
            )
        finally:
            retract(places)
            operations_stop.set()
