"""The whole cluster on one machine: services, our processes and Bento's, started in order and kept running.

::

    redis, postgresql, rabbitmq -> setup -> keeper, executor -> gateway, workers, collector, dead letters -> serve
    and down the same way, the door first, so that nothing accepted is refused by what stands behind it
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from penstock.adapters.local_model import LocalModel
from penstock.adapters.processes import Program, Supervisor, end_leftovers, free_port, sole_supervisor
from penstock.adapters.processes.programs import answers_200
from penstock.config import Configuration, load
from penstock.errors import ConfigurationError, ProgramFailed
from penstock.wiring.bento import Stream, streams
from penstock.wiring.models import local_model_name
from penstock.wiring.own_stores import OwnStores
from penstock.wiring.places import Places
from penstock.wiring.running import local_url
from penstock.wiring.setting_up import set_up

PIDS = "processes.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """What a person wants to know of a cluster that just began to answer."""

    url: str
    operations_url: str
    files: tuple[Path, ...]
    logs: Path


async def run_cluster(
    files: Sequence[Path],
    places: Places,
    bento: Path,
    *,
    show: Callable[[str, str], None],
    stop: asyncio.Event,
    started: Callable[[Up], None],
) -> None:
    """Run until ``stop`` is set; then end everything, the last started first.

    Args:
        files: The user's configuration, without stores.
        places: Everything is kept here; a second start finds it.
        bento: Our distribution's binary.
        show: Given each line of our processes, with the process's name.
        started: Told once requests are accepted.

    Raises:
        ConfigurationError: The files have problems, name stores, or a program is not installed.
        ProgramFailed: A process did not become ready.
    """
    configuration = load(files)
    if configuration.stores is not None:
        raise ConfigurationError(("stores: given, and `penstock up` brings its own; leave the section out",))
    async with AsyncExitStack() as parts:
        places.data.mkdir(mode=0o711, parents=True, exist_ok=True)  # the database's account passes through
        parts.enter_context(sole_supervisor(places.data))
        for name in await asyncio.to_thread(end_leftovers, _told(places), places.data):
            show(name, "was left running by one that was killed, and has been ended")
        stores = OwnStores.prepare(places.data)
        upstreams = await _local_model(configuration, places, parts)
        every = (*files, stores.write_configuration(configuration, upstreams))
        configuration = load(every)
        supervisor = Supervisor(places.data, show=show, changed=lambda pids: _tell(places, pids))
        parts.push_async_callback(supervisor.stop)
        services = await asyncio.to_thread(stores.programs)
        for stage in services:
            await _start(supervisor, show, *stage, stop=stop)
        show("setup", "preparing redis, postgresql and rabbitmq")
        await set_up(configuration, os.environ, tell=lambda line: show("setup", line))
        *behind, door = _programs(configuration, every, places, bento, stores)
        await _start(supervisor, show, *behind, stop=stop)
        await _start(supervisor, show, door, stop=stop)
        if stop.is_set():
            return
        server_settings = configuration.server
        started(
            Up(
                url=f"http://{server_settings.host}:{server_settings.port}",
                operations_url=f"http://{server_settings.operations_host}:{server_settings.operations_port}",
                files=every,
                logs=places.data / "logs",
            )
        )
        await stop.wait()


async def _start(
    supervisor: Supervisor, show: Callable[[str, str], None], *programs: Program, stop: asyncio.Event
) -> None:
    """Together, unless it is to stop already."""
    if stop.is_set():
        return
    for program in programs:
        show(program.name, "starting")
    try:
        await supervisor.start(*programs)
    except* ProgramFailed as failed:
        raise failed.exceptions[0] from None


async def _local_model(configuration: Configuration, places: Places, parts: AsyncExitStack) -> dict[str, str]:
    """Start the bundled model once, for all processes; where it is, by the model's name."""
    name = local_model_name(configuration)
    if name is None:
        return {}
    model = configuration.models[name]
    local = LocalModel(
        name=model.upstream_model or name, context=model.context, log_file=places.data / "local-model.log"
    )
    parts.push_async_callback(local.stop)
    return {name: await local.start()}


def _programs(
    configuration: Configuration, files: Sequence[Path], places: Places, bento: Path, stores: OwnStores
) -> list[Program]:
    given = [argument for file in files for argument in ("-c", str(file.resolve()))]
    executor_port, keeper_port, execute_port = free_port(), free_port(), free_port()
    server = configuration.server
    operations = {"keeper": keeper_port, "executor": execute_port, "api": server.operations_port}
    pages = {name: local_url("127.0.0.1", port) for name, port in operations.items()}
    places.operations.write_text(json.dumps(pages, indent=2) + "\n")

    def ours(name: str, port: int, *arguments: str) -> Program:
        return Program(
            name=name,
            command=(sys.executable, "-m", "penstock", *arguments, *given),
            environment=dict(os.environ),
            folder=places.data,
            is_ready=lambda: answers_200(port, "/health/ready"),
            stop_s=configuration.server.shutdown_ms / 1000 + 5,
        )

    def from_bento(stream: Stream) -> Program:
        return Program(
            name=stream.name,
            command=(str(bento), *stream.arguments),
            environment={**os.environ, **stream.environment},
            folder=places.data,
            is_ready=lambda: answers_200(stream.operations_port, "/ready"),
        )

    return [
        ours("keeper", keeper_port, "keeper", "--operations-port", str(keeper_port)),
        ours("executor", execute_port, "execute", "--port", str(executor_port), "--operations-port", str(execute_port)),
        *(
            from_bento(stream)
            for stream in streams(
                configuration,
                os.environ,
                gateway_port=stores.gateway_port,
                executor_url=f"http://127.0.0.1:{executor_port}",
            )
        ),
        ours("api", configuration.server.operations_port, "serve", "--log-format", "json"),
    ]


def _told(places: Places) -> dict[str, int]:
    """Who ran when somebody last wrote it."""
    try:
        found: dict[str, int] = json.loads((places.data / PIDS).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found


def _tell(places: Places, pids: Mapping[str, int]) -> None:
    """Write who runs, whole or not at all."""
    draft = places.data / f"{PIDS}.draft"
    draft.write_text(json.dumps(pids, indent=2) + "\n")
    draft.replace(places.data / PIDS)
