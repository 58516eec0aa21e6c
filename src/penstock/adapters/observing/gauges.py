"""Values that somebody else computes now and then, or that are read at each scrape: as Prometheus sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from penstock.adapters.observing.catalogue import Metric

Rows = Mapping[tuple[str, ...], float]
"""Values by their labels, in the order of the metric's."""


class Gauges(Collector):
    """One value for each combination of labels; a metric that was not set, or was cleared, has none.

    Args:
        metrics: All that it will ever show: gauges, and counters that are counted elsewhere.

    Example:
        >>> up = Metric("store_up", "gauge", ("store",), "1 while it works.")
        >>> gauges = Gauges((up,))
        >>> gauges.set(up, {("redis",): 1.0})
        >>> [(sample.labels, sample.value) for family in gauges.collect() for sample in family.samples]
        [({'store': 'redis'}, 1.0)]
    """

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._rows: dict[str, Rows] = {metric.name: {} for metric in metrics}
        self._read: dict[str, Callable[[], Rows]] = {}
        self._metrics = tuple(metrics)

    def set(self, metric: Metric, rows: Rows) -> None:
        """Replace all values of a metric."""
        self._rows[metric.name] = rows

    def put(self, metric: Metric, labels: tuple[str, ...], value: float) -> None:
        """Replace one value."""
        self._rows[metric.name] = {**self._rows[metric.name], labels: value}

    def clear(self, *metrics: Metric) -> None:
        """Show nothing of these: their values are not known."""
        for metric in metrics:
            self._rows[metric.name] = {}

    def read(self, metric: Metric, values: Callable[[], Rows]) -> None:
        """Ask for a metric's values at each scrape; it must be quick."""
        self._read[metric.name] = values

    def collect(self) -> Iterator[Family]:
        """Every family."""
        for metric in self._metrics:
            read = self._read.get(metric.name)
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family: Family = kind(metric.name, metric.meaning, labels=metric.labels)
            for labels, value in (self._rows[metric.name] if read is None else read()).items():
                family.add_metric(labels, value)  # type: ignore[attr-defined]
            yield family
