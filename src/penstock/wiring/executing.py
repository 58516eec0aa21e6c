"""``penstock execute``: the executor of the queue lane as a process of its own, beside a worker of the cluster.

::

    addresses -> quota in Redis -> models -> executor -> its door and the operations port
    and down the same way: the door first, which lets running jobs end, then what they used
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack

from penstock import __version__
from penstock.adapters.observing.lines import LineWriter
from penstock.adapters.observing.metrics import Metrics
from penstock.adapters.observing.request_log import RequestLog
from penstock.adapters.observing.vocabulary import Vocabulary
from penstock.api.execution import Execution
from penstock.api.operations import operations_application
from penstock.api.responses import TRANSLATIONS
from penstock.api.server import bind, serve
from penstock.config import Configuration
from penstock.lanes.calling import Caller
from penstock.lanes.executing import CRASH_POINTS, Executor
from penstock.lanes.executing_turns import Turns
from penstock.ports import RequestRecord
from penstock.wiring.clock import SystemClock
from penstock.wiring.crash import VARIABLE, crash_from
from penstock.wiring.lanes import model_servers
from penstock.wiring.measuring import show_surroundings
from penstock.wiring.places import Places
from penstock.wiring.quota import open_quota
from penstock.wiring.readiness import STOPPING
from penstock.wiring.running import local_url
from penstock.wiring.stores import Role
from penstock.wiring.tracing import observers, request_tracer

ENVELOPE_FACTOR = 6
"""A message is at most so many times as long as the body in it: JSON may write one byte as six."""


async def serve_executor(
    configuration: Configuration,
    places: Places,
    *,
    host: str,
    port: int,
    operations_host: str,
    operations_port: int,
    concurrency: int,
    writer: LineWriter,
    log_as_text: bool,
    stop: asyncio.Event,
    started: Callable[[str, str], None],
) -> None:
    """Run jobs until ``stop`` is set, then let running ones end; what takes too long is released to be run again.

    Args:
        configuration: With stores.
        port: 0 for a free one, as ``operations_port``.
        concurrency: Jobs at once.
        started: Told the URLs of the door and of the operations port once both answer.

    Raises:
        ConfigurationError: There are no stores, a secret is missing, or an address is taken.
        StoreUnavailable: Redis cannot be reached.
    """
    places.create()
    clock = SystemClock()
    operations_stop = asyncio.Event()
    async with AsyncExitStack() as parts:
        door = parts.enter_context(bind(host, port, setting="--port"))
        operations_door = parts.enter_context(bind(operations_host, operations_port, setting="--operations-port"))
        organisations = _Organisations(configuration)
        vocabulary = Vocabulary(organisations=organisations.names, models=configuration.models.keys())
        metrics = Metrics(vocabulary, version=__version__, dropped_lines=lambda: writer.dropped)
        log = RequestLog(writer, vocabulary, now_ms=clock.now_ms, as_text=log_as_text)
        tracer = await parts.enter_async_context(request_tracer(configuration, "penstock-executor", vocabulary))
        observer = observers(tracer, organisations, metrics, log)
        quota = await parts.enter_async_context(open_quota(configuration, Role.WORKER))
        show_surroundings(metrics.process, configuration, quota=quota)
        servers = await parts.enter_async_context(model_servers(configuration, places))
        caller = Caller(servers.client, clock, observer, servers.models.values())

        async def readiness() -> tuple[str, ...]:
            if stop.is_set():
                return (STOPPING,)
            return () if quota.failure is None else (quota.failure,)

        reached = crash_from(os.environ.get(VARIABLE), CRASH_POINTS)
        executor = Executor(
            quota, caller, clock, servers.models,
            observer=observer, translations=TRANSLATIONS, tracer=tracer, reached=reached,
        )  # fmt: skip
        execution = Execution(
            Turns(executor.execute, places=concurrency).execute,
            jobs_max=concurrency * configuration.queue.shards,
            message_bytes_max=ENVELOPE_FACTOR * configuration.server.body_bytes_max,
            readiness=readiness,
        )
        operations = operations_application(metrics=metrics.exposition, readiness=readiness, audit=None)

        def accepted() -> None:
            started(
                local_url(host, door.getsockname()[1]), local_url(operations_host, operations_door.getsockname()[1])
            )  # fmt: skip

        async def answer() -> None:
            try:
                await serve(
                    execution, door, stop=stop, started=accepted, shutdown_s=configuration.server.shutdown_ms / 1000
                )
            finally:
                operations_stop.set()

        async with asyncio.TaskGroup() as both:
            both.create_task(serve(operations, operations_door, stop=operations_stop, shutdown_s=1.0))
            both.create_task(answer())


class _Organisations:
    """Names that may become labels: configured ones, and those whose jobs the quota store let run."""

    def __init__(self, configuration: Configuration) -> None:
        self.names = set(configuration.organisations)

    def started(self, record: RequestRecord) -> None:
        """Told of each job that runs."""
        self.names.add(record.organisation)

    def finished(self, record: RequestRecord) -> None:
        """Nothing to learn."""

    def upstream_changed(self, model: str, upstream: str, healthy: bool) -> None:
        """Nothing to learn."""
