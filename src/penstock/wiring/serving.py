"""The embedded default: one process, no services. Builds every part, runs them, and takes them down in order.

::

    addresses -> database -> quota -> local model -> upstream client -> lanes -> API and operations port
    and down the same way: listeners first, then the lanes' settles, then the last commit
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace

from sqlalchemy import Engine

from penstock.adapters.embedded import CRASH_POINTS, EmbeddedStore, open_store
from penstock.adapters.embedded.committing import CommitObserver
from penstock.adapters.embedded.crash_points import unnoticed
from penstock.adapters.observing.lines import LineWriter
from penstock.adapters.observing.request_log import RequestLog
from penstock.adapters.observing.vocabulary import Vocabulary
from penstock.adapters.sql.database import migrate, open_engine
from penstock.adapters.sql.job_store import SqlJobs
from penstock.adapters.sql.keys import Keys
from penstock.adapters.sql.ledger import SqlLedger
from penstock.api.application import application
from penstock.api.operations import operations_application
from penstock.api.services import Services
from penstock.config import Configuration
from penstock.lanes.credentials import Credentials, mint, pepper_name
from penstock.lanes.following import Following
from penstock.lanes.queueing import CRASH_POINTS as JOB_CRASH_POINTS
from penstock.lanes.repeating import CRASH_POINTS as ANSWER_CRASH_POINTS
from penstock.ports import Clock
from penstock.quota.definitions import Key
from penstock.quota.operations import Sweep
from penstock.wiring.administering import SqlAdministration
from penstock.wiring.auditing import audit_service
from penstock.wiring.clock import SystemClock
from penstock.wiring.crash import VARIABLE, crash_from
from penstock.wiring.governing import Governing, record
from penstock.wiring.holding import held_now
from penstock.wiring.identity import open_subjects
from penstock.wiring.lanes import model_cards, realtime_lane, repeating, request_bounds
from penstock.wiring.listening import Started, alongside, listen, taken
from penstock.wiring.measuring import measured
from penstock.wiring.places import Places
from penstock.wiring.queueing import CommitNotices, embedded_queue
from penstock.wiring.readiness import readiness
from penstock.wiring.secrets import read_peppers
from penstock.wiring.tracing import observers, request_tracer

SWEEP_EVERY_S = 1.0
SWEEP_COUNT_MAX = 256


async def serve_embedded(
    configuration: Configuration,
    places: Places,
    *,
    writer: LineWriter,
    log_as_text: bool,
    stop: asyncio.Event,
    stop_delay_s: float,
    started: Callable[[Started], None],
) -> None:
    """Serve until ``stop`` is set, then let running requests end and commit what is left.

    Args:
        configuration: Without stores.
        writer: For the request log; left open.
        stop_delay_s: How long connections are still accepted then.
        started: Told once connections are accepted.

    Raises:
        ConfigurationError: A secret or the local model is missing, or an address is taken.
        StoreUnavailable: The database cannot be opened, or another process serves it.
    """
    places.create()
    clock = SystemClock()
    peppers = read_peppers(configuration, places, os.environ)
    async with AsyncExitStack() as parts:
        addresses = parts.enter_context(taken(configuration))
        engine = open_engine(places.database)
        parts.callback(engine.dispose)
        first_key = await asyncio.to_thread(_prepare, engine, configuration, clock, Credentials(peppers))
        governing = await asyncio.to_thread(
            Governing, engine, clock, is_alone=True, newest_pepper=pepper_name(peppers[0])
        )
        vocabulary = Vocabulary(organisations=governing.current.keys(), models=configuration.models.keys())
        metrics = measured(configuration, vocabulary, writer, governing)
        tracer = await parts.enter_async_context(request_tracer(configuration, "penstock-api", vocabulary))
        observer = observers(tracer, metrics, RequestLog(writer, vocabulary, now_ms=clock.now_ms, as_text=log_as_text))
        jobs = SqlJobs(engine)
        reached = _crash()
        quota = await parts.enter_async_context(
            _store(places, governing, clock, CommitNotices(metrics, jobs), reached=reached)
        )
        lane = await parts.enter_async_context(
            realtime_lane(configuration, places, quota, overrun=governing.overrun, clock=clock, observer=observer)
        )
        acceptor = await parts.enter_async_context(
            embedded_queue(
                configuration, jobs, quota, lane,
                organisations=governing.current, clock=clock, observer=observer, tracer=tracer, reached=reached,
            )
        )  # fmt: skip
        subjects = await parts.enter_async_context(open_subjects(configuration, clock))
        once = await parts.enter_async_context(repeating(lane, jobs, quota, clock, is_alone=True, reached=reached))
        services = Services(
            lane=lane,
            repeating=once,
            acceptor=acceptor,
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
        alongside(parts, governing.watch(quota), _sweep(quota, clock))
        operations = operations_application(
            metrics=metrics.exposition,
            readiness=services.readiness,
            audit=lambda: audit_service(quota, engine, now_ms=clock.now_ms()),
            holds=lambda: held_now(quota, governing.current, now_ms=clock.now_ms()),
        )
        await listen(
            configuration, places, addresses, application(services), operations,
            stop=stop, stop_delay_s=stop_delay_s, started=started, first_key=first_key,
        )  # fmt: skip


def _prepare(engine: Engine, configuration: Configuration, clock: Clock, credentials: Credentials) -> str | None:
    """Bring the database to this version, and the configuration into it; the first key, if one was made."""
    migrate(engine)
    first = _first_key(configuration, Keys(engine), clock, credentials)
    record(engine, configuration, now_ms=clock.now_ms(), actor="penstock serve")
    return first


def _first_key(configuration: Configuration, keys: Keys, clock: Clock, credentials: Credentials) -> str | None:
    """Make a key for the first organisation if there is none at all, so that a newcomer can begin."""
    organisation = next(iter(configuration.organisations), None)
    if organisation is None or keys.list():
        return None
    key = Key(id=secrets.token_hex(5))
    token = mint(organisation, key.id, secret=secrets.token_bytes(32))
    hashed = credentials.hashed(token)
    keys.create(
        organisation,
        replace(key, macs=((hashed.mac, 0),)),
        name="first start",
        now_ms=clock.now_ms(),
        actor="penstock serve",
        pepper=hashed.pepper,
    )
    return token


def _store(
    places: Places, governing: Governing, clock: Clock, observer: CommitObserver, *, reached: Callable[[str], None]
) -> AbstractAsyncContextManager[EmbeddedStore]:
    return open_store(
        places.database,
        governing.current,
        version=governing.version,
        now_ms=clock.now_ms,
        reached=reached,
        observer=observer,
    )


def _crash() -> Callable[[str], None]:
    return crash_from(os.environ.get(VARIABLE), (*CRASH_POINTS, *JOB_CRASH_POINTS, *ANSWER_CRASH_POINTS)) or unnoticed


async def _sweep(quota: EmbeddedStore, clock: Clock) -> None:
    """Expire what is due in organisations that are idle; the others sweep as they go."""
    while True:
        await asyncio.sleep(SWEEP_EVERY_S)
        for name in quota.organisations:
            await quota.apply(Sweep(organisation=name, caller_now_ms=clock.now_ms(), count_max=SWEEP_COUNT_MAX))
