"""The keeper's numbers for Prometheus: what it did, as its tally has it, and the figures that it computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest

from penstock.adapters.observing import catalogue_keeper as catalogue
from penstock.adapters.observing.catalogue import Metric
from penstock.adapters.observing.catalogue_process import PROCESS_METRICS
from penstock.adapters.observing.gauges import Gauges, Rows


class Tally(Protocol):
    """What a keeper did so far; see ``penstock.lanes.keeping.Tally``."""

    is_active: bool
    terms: int
    drained: int
    repeated: int
    lag_ms: int
    expired: int
    rebuilding: int
    failures: int


_TALLIED: Final[dict[Metric, Callable[[Tally], float]]] = {
    catalogue.ACTIVE: lambda tally: tally.is_active,
    catalogue.LAG: lambda tally: tally.lag_ms / 1000,
    catalogue.REBUILDING: lambda tally: tally.rebuilding,
    catalogue.TERMS: lambda tally: tally.terms,
    catalogue.EVENTS: lambda tally: tally.drained,
    catalogue.REPEATED: lambda tally: tally.repeated,
    catalogue.EXPIRED: lambda tally: tally.expired,
    catalogue.FAILURES: lambda tally: tally.failures,
}


class KeeperMetrics:
    """A keeper's registry. ``figures`` is filled by whoever computes them; the tally is read at each scrape."""

    def __init__(self, tally: Tally) -> None:
        self.figures = Gauges((*PROCESS_METRICS, *catalogue.FIGURED))
        tallied = Gauges(catalogue.TALLIED)
        for metric, value in _TALLIED.items():
            tallied.read(metric, partial(_row, value, tally))
        self._registry = CollectorRegistry()
        self._registry.register(tallied)
        self._registry.register(self.figures)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)


def _row(value: Callable[[Tally], float], tally: Tally) -> Rows:
    return {(): float(value(tally))}
