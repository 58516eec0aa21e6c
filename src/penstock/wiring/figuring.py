"""The keeper's figures: read every few seconds by one task, kept, and shown; no scrape makes a store work.

::

    active keeper:      outbox, open jobs and what passed -> figures -> a table, its metrics, its page
    one that stands by:                                      the table -> its metrics, its page

So whichever keeper KEDA asks, the answer is the same, and it goes on from where it was when another keeper takes over.
A figure that cannot be known is no figure: the page answers 503, and the metrics have no value.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from penstock.adapters.observing import catalogue_keeper as catalogue
from penstock.adapters.observing.catalogue_process import STORE_UP
from penstock.adapters.observing.gauges import Gauges
from penstock.adapters.postgresql.figuring import FigureStore
from penstock.adapters.redis.outbox import Outbox
from penstock.errors import Deposed, NotFound, StoreUnavailable
from penstock.lanes.keeping import Tally
from penstock.lanes.waiting import OpenJobs, by_model, waiting_of
from penstock.planning.figures import Figures, Serving, figures_of
from penstock.planning.flow import BUCKET_MS, REMEMBERED_MS, Flow, Passed
from penstock.ports import Clock
from penstock.quota.operations import Lane
from penstock.wiring.stores import Service

STALE_MS: Final = 30_000
"""Older figures are none. A keeper takes over from another in less, unless it was told to be patient."""
_SHORTEST_WIDTH_MS: Final = 1_000
_OLDEST_MS: Final = 3_600_000


class Figuring:
    """Figures of every model that says its capacity, and of every queue.

    Args:
        serving: By model; none for a model without a capacity.
        flow: Told by the keeper of what it wrote.
        store: What is read and kept.
        every_s: Between two looks.
    """

    def __init__(
        self, serving: Mapping[str, Serving], flow: Flow, store: FigureStore, outbox: Outbox, tally: Tally,
        clock: Clock, gauges: Gauges,
        *, every_s: float, pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:  # fmt: skip
        self._serving = serving
        self._flow = flow
        self._store = store
        self._outbox = outbox
        self._tally = tally
        self._clock = clock
        self._gauges = gauges
        self._every_s = every_s
        self._pause = pause
        self._term = 0
        self._figures: dict[str, Figures] = {}
        self._why_not = "the keeper has just started"
        drains_ms = [each.pool.drain_ms for each in serving.values()] or [_OLDEST_MS]
        self._width_ms = max(_SHORTEST_WIDTH_MS, min(drains_ms) // 20)
        self._oldest_ms = max(drains_ms)

    async def run(self) -> None:
        """Look every few seconds, until cancelled."""
        while True:
            await self.look()
            await self._pause(self._every_s)

    async def look(self) -> None:
        """Bring everything up to date, or know why it cannot be."""
        away: list[str] = []
        oldest_ms = await self._tried(Service.REDIS, self._look_at_outbox(), away)
        await self._tried(Service.POSTGRESQL, self._look_at_jobs(None if away else oldest_ms), away)
        self._why_not = "; ".join(away)
        self._show()

    def asked(self, model: str | None) -> Figures | dict[str, Figures]:
        """One model's figures, or everyone's.

        Raises:
            NotFound: Nothing is ever computed for a model of this name.
            StoreUnavailable: They cannot be known just now.
        """
        if model is not None and model not in self._serving:
            raise NotFound(
                "no figures for a model of this name: it is not configured, or says no `capacity`", param="model"
            )
        why_not = self._why_not or self._too_old()
        if why_not:
            raise StoreUnavailable(
                f"the scaling figures cannot be known: {why_not}", retry_after_ms=round(self._every_s * 1000)
            )
        return self._figures if model is None else self._figures[model]

    async def _tried(self, service: Service, looking: Awaitable[int], away: list[str]) -> int:
        """What a look found; a store that is away is noted, and others are looked at all the same."""
        try:
            found = await looking
        except (StoreUnavailable, SQLAlchemyError) as error:
            self._gauges.put(STORE_UP, (service.value,), 0.0)
            away.append(error.message if isinstance(error, StoreUnavailable) else f"{service}: {error}")
            return 0
        except Deposed as error:
            away.append(error.message)
            return 0
        self._gauges.put(STORE_UP, (service.value,), 1.0)
        return found

    async def _look_at_outbox(self) -> int:
        count, oldest_ms = await self._outbox.oldest_ms()
        if self._tally.is_active:
            age_ms = max(0, self._clock.now_ms() - oldest_ms) if oldest_ms else 0
            self._gauges.set(catalogue.OUTBOX_EVENTS, {(): count})
            self._gauges.set(catalogue.OUTBOX_OLDEST, {(): age_ms / 1000})
        else:
            self._gauges.clear(catalogue.OUTBOX_EVENTS, catalogue.OUTBOX_OLDEST)
        return oldest_ms

    async def _look_at_jobs(self, oldest_event_ms: int | None) -> int:
        """As the active keeper, compute; as one that stands by, see what the other left.

        Args:
            oldest_event_ms: Of the outbox, 0 if it is empty; None if Redis is away, so that jobs may be missing here.
        """
        if not self._tally.is_active:
            self._term = 0
            self._gauges.clear(catalogue.QUEUE_WAITING, catalogue.QUEUE_RUNNING)
            self._gauges.clear(catalogue.QUEUE_BACKLOG, catalogue.QUEUE_OLDEST)
            await self._take_kept()
            return 0
        if self._term != self._tally.terms:
            await self._begin()
        now_ms = self._clock.now_ms()
        found = await self._store.open_jobs(now_ms=now_ms, oldest_ms=self._oldest_ms, width_ms=self._width_ms)
        jobs = by_model(found)
        self._show_queues(jobs, now_ms)
        if oldest_event_ms is None or (oldest_event_ms and now_ms - oldest_event_ms > STALE_MS):
            return 0  # accepted jobs may be missing; what was computed last ages, and is soon too old to be given out
        computed = {
            model: figures_of(
                model, serving, jobs.get(model, ()), self._flow, now_ms=now_ms, replicas=self._replicas_before(model)
            )
            for model, serving in self._serving.items()
        }
        await self._store.keep({model: msgspec.to_builtins(figures) for model, figures in computed.items()})
        self._figures = computed
        return 0

    async def _begin(self) -> None:
        """Just became active: go on from what the last one asked for, and know what passed."""
        term = self._tally.terms
        self._flow.clear()
        await self._take_kept()
        since_ms = self._clock.now_ms() - REMEMBERED_MS
        for row in await self._store.passed_since(since_ms=since_ms, width_ms=BUCKET_MS):
            passed = Passed(queue_work=row.work, queue_held=row.tokens_held, queue_jobs=row.requests)
            if row.lane != Lane.QUEUE:
                passed = Passed(realtime_work=row.work)
            self._flow.add(row.model, at_ms=row.at_ms, passed=passed)
        self._term = term

    async def _take_kept(self) -> None:
        kept = await self._store.kept()
        self._figures = {}
        for model in self._serving.keys() & kept.keys():
            with suppress(msgspec.ValidationError):  # of another version: a keeper of this one will replace them
                self._figures[model] = msgspec.convert(kept[model], Figures)

    def _replicas_before(self, model: str) -> int:
        known = self._figures.get(model)
        return self._serving[model].pool.replicas_min if known is None else known.replicas

    def _too_old(self) -> str:
        missing = sorted(set(self._serving) - set(self._figures))
        if missing:
            return (
                f"none were computed yet for {', '.join(missing)}: no keeper was active since the configuration changed"
            )
        age_ms = self._age_ms()
        if age_ms <= STALE_MS:
            return ""
        return f"they were last computed {age_ms / 1000:.0f} s ago: no keeper is active, or it cannot keep up"

    def _age_ms(self) -> int:
        oldest_ms = min((each.at_ms for each in self._figures.values()), default=0)
        return max(0, self._clock.now_ms() - oldest_ms) if oldest_ms else 0

    def _show_queues(self, jobs: Mapping[str, list[OpenJobs]], now_ms: int) -> None:
        waiting = {model: waiting_of(jobs.get(model, ()), now_ms=now_ms) for model in {*jobs, *self._serving}}
        gauges = self._gauges
        gauges.set(catalogue.QUEUE_WAITING, {(model,): each.waiting_jobs for model, each in waiting.items()})
        gauges.set(catalogue.QUEUE_RUNNING, {(model,): each.running_jobs for model, each in waiting.items()})
        gauges.set(catalogue.QUEUE_BACKLOG, {(model,): each.backlog_tokens for model, each in waiting.items()})
        gauges.set(catalogue.QUEUE_OLDEST, {(model,): each.oldest_age_ms / 1000 for model, each in waiting.items()})

    def _show(self) -> None:
        gauges, figures = self._gauges, self._figures
        gauges.set(catalogue.SCALING_AGE, {(): self._age_ms() / 1000} if figures else {})
        if self._why_not or self._too_old():
            gauges.clear(catalogue.SCALING_REPLICAS, catalogue.SCALING_WORKERS, catalogue.SCALING_INPUT)
            return
        gauges.set(catalogue.SCALING_REPLICAS, {(model,): each.replicas for model, each in figures.items()})
        gauges.set(catalogue.SCALING_WORKERS, {(model,): each.workers for model, each in figures.items()})
        inputs: dict[tuple[str, ...], float] = {
            (model, name): float(value)
            for model, each in figures.items()
            for name, value in (*each.inputs.items(), *each.terms.items())
            if value is not None
        }
        gauges.set(catalogue.SCALING_INPUT, inputs)
