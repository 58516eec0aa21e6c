"""The API service of a cluster: the realtime lane on the quota in Redis, keys and ledger in PostgreSQL.

It keeps nothing but ends of reservations that Redis has not acknowledged; any number run side by side. Sweeping,
draining and defining after a loss are the keeper's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from penstock import __version__
from penstock.adapters.http import HttpClient
from penstock.adapters.observing.catalogue import SPOOL_ENTRIES
from penstock.adapters.observing.lines import LineWriter
from penstock.adapters.observing.metrics import Metrics
from penstock.adapters.observing.request_log import RequestLog
from penstock.adapters.observing.vocabulary import Vocabulary
from penstock.adapters.postgresql.crash_points import unnoticed
from penstock.adapters.postgresql.noticing import notice
from penstock.adapters.spooling import CRASH_POINTS, DiskFile, FileSpool
from penstock.adapters.sql.job_store import SqlJobs
from penstock.adapters.sql.ledger import SqlLedger
from penstock.api.application import application
from penstock.api.operations import operations_application
from penstock.api.services import Services
from penstock.config import Configuration
from penstock.lanes.credentials import Credentials, pepper_name
from penstock.lanes.following import Following
from penstock.lanes.forwarding import CRASH_POINTS as JOB_CRASH_POINTS
from penstock.lanes.forwarding import GatewayAcceptor
from penstock.lanes.posting import Posting
from penstock.lanes.repeating import CRASH_POINTS as ANSWER_CRASH_POINTS
from penstock.wiring.administering import SqlAdministration
from penstock.wiring.auditing_cluster import audit_cluster
from penstock.wiring.clock import SystemClock
from penstock.wiring.crash import VARIABLE, crash_from
from penstock.wiring.database import cluster_engine
from penstock.wiring.governing import Governing
from penstock.wiring.holding import held_now
from penstock.wiring.identity import open_subjects
from penstock.wiring.lanes import model_cards, realtime_lane, repeating, request_bounds
from penstock.wiring.listening import Started, alongside, listen, taken
from penstock.wiring.measuring import show_surroundings
from penstock.wiring.places import Places
from penstock.wiring.quota import open_outbox, open_quota
from penstock.wiring.readiness import readiness
from penstock.wiring.secrets import read_peppers
from penstock.wiring.stores import Role
from penstock.wiring.tracing import observers, request_tracer

POINTS = (*CRASH_POINTS, *JOB_CRASH_POINTS, *ANSWER_CRASH_POINTS)


async def serve_cluster(
    configuration: Configuration,
    places: Places,
    *,
    writer: LineWriter,
    log_as_text: bool,
    stop: asyncio.Event,
    stop_delay_s: float,
    started: Callable[[Started], None],
) -> None:
    """Serve until ``stop`` is set, then let running requests end.

    Args:
        configuration: With stores, which ``penstock setup`` has prepared.
        writer: For the request log; left open.
        stop_delay_s: How long connections are still accepted then.
        started: Told once connections are accepted.

    Raises:
        ConfigurationError: A secret is missing, a service cannot be trusted, or an address is taken.
        StoreUnavailable: A service cannot be reached.
    """
    places.create()
    clock, peppers = SystemClock(), read_peppers(configuration, places, os.environ)
    gateway, attest = configuration.queue.gateway, Credentials(peppers).attest
    async with AsyncExitStack() as parts:
        addresses = parts.enter_context(taken(configuration))
        engine = cluster_engine(configuration, Role.API)
        parts.callback(engine.dispose)
        governing = await asyncio.to_thread(Governing, engine, clock, newest_pepper=pepper_name(peppers[0]))
        vocabulary = Vocabulary(organisations=governing.current.keys(), models=configuration.models.keys())
        metrics = Metrics(vocabulary, version=__version__, dropped_lines=lambda: writer.dropped)
        tracer = await parts.enter_async_context(request_tracer(configuration, "penstock-api", vocabulary))
        observer = observers(tracer, metrics, RequestLog(writer, vocabulary, now_ms=clock.now_ms, as_text=log_as_text))
        quota = await parts.enter_async_context(open_quota(configuration, Role.API))
        outbox = await parts.enter_async_context(open_outbox(configuration, Role.API))
        reached = crash_from(os.environ.get(VARIABLE), POINTS) or unnoticed
        jobs = SqlJobs(engine)
        posting = Posting(quota, clock, jobs.events, outbox.may_have)
        spool = await parts.enter_async_context(_spool(places, posting, reached))
        lane = await parts.enter_async_context(
            realtime_lane(
                configuration, places, quota,
                overrun=governing.overrun, clock=clock, observer=observer, spool=spool,
            )
        )  # fmt: skip
        metrics.process.read(SPOOL_ENTRIES, lambda: {(): spool.waiting})
        show_surroundings(metrics.process, configuration, governing=governing, quota=quota)
        client = HttpClient(server="the gateway")
        parts.push_async_callback(client.close)
        subjects = await parts.enter_async_context(open_subjects(configuration, clock))
        once = await parts.enter_async_context(repeating(lane, jobs, quota, clock, is_alone=False, reached=reached))
        services = Services(
            lane=lane,
            repeating=once,
            acceptor=GatewayAcceptor(client, gateway, jobs, quota, clock, lane.models, attest=attest, reached=reached),
            jobs=Following(jobs, quota, clock, is_stopping=stop.is_set),
            quota=quota,
            ledger=SqlLedger(engine),
            keys=governing,
            credentials=Credentials(peppers),
            clock=clock,
            observer=observer,
            models=model_cards(configuration),
            readiness=lambda: readiness(quota, governing.current, clock, is_stopping=stop.is_set()),
            administration=SqlAdministration(engine, governing, quota, shards=configuration.queue.shards),
            bounds=request_bounds(configuration),
            subjects=subjects,
            tracer=tracer,
        )
        alongside(parts, governing.watch(quota), notice(engine, jobs.tell))
        audit = partial(audit_cluster, governing.current, quota, outbox, engine)
        operations = operations_application(
            metrics=metrics.exposition,
            readiness=services.readiness,
            audit=lambda: audit(now_ms=clock.now_ms()),
            holds=lambda: held_now(quota, governing.current, now_ms=clock.now_ms()),
        )
        await listen(
            configuration, places, addresses, application(services), operations,
            stop=stop, stop_delay_s=stop_delay_s, started=started, first_key=None,
        )  # fmt: skip


@asynccontextmanager
async def _spool(places: Places, posting: Posting, reached: Callable[[str], None]) -> AsyncIterator[FileSpool]:
    disk = DiskFile(places.spool, reached=reached)
    spool = FileSpool(disk, posting.quota, post=posting.post, reached=reached)
    await spool.start()
    try:
        yield spool
    finally:
        await spool.close()
