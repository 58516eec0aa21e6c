"""What ``penstock top`` looks at: metrics pages for what flows, the database for queues, the quota for what is held."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from penstock.adapters.observing.reading import read_pages
from penstock.adapters.sql.queue_figures import open_jobs
from penstock.config import Configuration
from penstock.errors import StoreUnavailable
from penstock.lanes.activity import Activity, Samples, activity
from penstock.lanes.waiting import Waiting, by_model, waiting_of
from penstock.wiring.database import existing_database
from penstock.wiring.holding import Held, ask_held, held_in_cluster
from penstock.wiring.places import Places
from penstock.wiring.running import Running, local_url

_OLDEST_MS: Final = 3_600_000
"""Jobs are added up, so that they may come in a few groups; the oldest of each is known."""


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
        now_ms = time.time_ns() // 1_000_000
        with existing_database(self.configuration, self.places) as engine, engine.connect() as connection:
            found = open_jobs(connection, now_ms=now_ms, oldest_ms=_OLDEST_MS, width_ms=_OLDEST_MS)
        return {model: waiting_of(jobs, now_ms=now_ms) for model, jobs in by_model(found).items()}

    def _held(self) -> Mapping[str, Held]:
        if self.configuration.stores is not None:
            return asyncio.run(held_in_cluster(self.configuration))
        return ask_held(self.places) or {}
