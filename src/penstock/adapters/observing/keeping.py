"""The keeper's numbers for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


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


class KeeperMetrics(Collector):
    """Built from the tally at each scrape."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        tally = self._tally
        yield GaugeMetricFamily(
            "penstock_keeper_active", "1 for the keeper that writes, 0 for one that stands by.", float(tally.is_active)
        )
        yield GaugeMetricFamily(
            "penstock_keeper_lag_seconds",
            "Age of the oldest event of the last batch when it was written; 0 if none waits.",
            tally.lag_ms / 1000,
        )
        yield GaugeMetricFamily(
            "penstock_keeper_rebuilding_organisations",
            "Organisations whose state Redis lost, and that admit nothing until it is rebuilt.",
            tally.rebuilding,
        )
        counted = {
            "penstock_keeper_terms": ("Times that this process became the active keeper.", tally.terms),
            "penstock_keeper_events": ("Events that were new to the ledger.", tally.drained),
            "penstock_keeper_repeated_events": ("Events that the ledger had already.", tally.repeated),
            "penstock_keeper_expired": ("Reservations that the keeper's sweeps ended.", tally.expired),
            "penstock_keeper_failures": ("Times that a service was away.", tally.failures),
        }
        for name, (meaning, count) in counted.items():
            yield CounterMetricFamily(name, meaning, count)
