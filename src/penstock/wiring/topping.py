"""What ``penstock top`` looks at: metrics pages for what flows, the database for queues, the quota for what is held."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
from sqlalchemy import func, select

from penstock.adapters.observing.reading import read_pages
from penstock.adapters.sql.job_tables import jobs
from penstock.config import Configuration
from penstock.errors import StoreUnavailable
from penstock.lanes.activity import Activity, Samples, Waiting, activity
from penstock.ports import JobState
from penstock.wiring.database import existing_database
from penstock.wiring.holding import Held, ask_held, held_in_cluster
from penstock.wiring.places import Places
from penstock.wiring.running import Running, local_url


def pages_of(configuration: Configuration, places: Places, given: Sequence[str]) -> tuple[str, ...]:
    """Which pages to read: those given, else those of the processes that announce themselves in the data directory,
    else the one that the configuration names."""
    if given:
        return tuple(given)
    try:
        return tuple(msgspec.json.decode(places.operations.read_bytes(), type=dict[str, str]).values())
    except (OSError, msgspec.DecodeError):
        pass
    try:
        return (msgspec.json.decode(places.running.read_bytes(), type=Running).operations_url,)
    except (OSError, msgspec.DecodeError):
        server = configuration.server
        return (local_url(server.operations_host, server.operations_port),)


@dataclass(slots=True)
class Looking:
    """One look after another; each is compared with the one before."""

    configuration: Configuration
    places: Places
    pages: Sequence[str]
    _samples: Samples = field(default_factory=dict)
    _at_s: float = 0.0

    def begin(self) -> None:
        """The first look, which has nothing to be compared with."""
        self._samples, _ = read_pages(self.pages)
        self._at_s = time.monotonic()

    def look(self) -> Activity:
        """What happened since the look before; what cannot be asked is told in it."""
        samples, unseen = read_pages(self.pages)
        now_s = time.monotonic()
        before, seconds = self._samples, max(0.001, now_s - self._at_s)
        self._samples, self._at_s = samples, now_s
        queues: Mapping[str, Waiting] = {}
        held: Mapping[str, Held] = {}
        try:
            queues = self._queues()
            held = self._held()
        except StoreUnavailable as error:
            unseen.append(error.message)
        return activity(
            before,
            samples,
            seconds=seconds,
            queues={name: queues.get(name, Waiting()) for name in self.configuration.models.keys() | queues.keys()},
            held={name: (each.requests, each.tokens) for name, each in held.items()},
            unseen=unseen,
        )

    def _queues(self) -> dict[str, Waiting]:
        row = jobs.c
        statement = (
            select(row.model, row.state, func.count(), func.min(row.created_at_ms), func.sum(row.tokens_held))
            .where(row.state.in_((JobState.QUEUED, JobState.RUNNING)))
            .group_by(row.model, row.state)
        )
        with existing_database(self.configuration, self.places) as engine, engine.connect() as connection:
            rows = connection.execute(statement).all()
        now_ms = time.time_ns() // 1_000_000
        found: dict[str, Waiting] = {}
        for model, state, count, oldest_ms, tokens in rows:
            known = found.get(model, Waiting())
            if state == JobState.RUNNING:
                found[model] = replace(known, running=count)
            else:
                oldest_s = max(0.0, (now_ms - oldest_ms) / 1000)
                found[model] = replace(known, waiting=count, oldest_s=oldest_s, tokens=int(tokens or 0))
        return found

    def _held(self) -> Mapping[str, Held]:
        if self.configuration.stores is not None:
            return asyncio.run(held_in_cluster(self.configuration))
        return ask_held(self.places) or {}
