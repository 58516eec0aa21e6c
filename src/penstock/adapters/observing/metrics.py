"""Prometheus metrics, in a registry of their own, read through ``exposition`` by the operations port.

Requests add to plain integers (``series``); the families that Prometheus sees are built from them at each scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from penstock.adapters.observing import catalogue
from penstock.adapters.observing.catalogue_process import PROCESS_METRICS
from penstock.adapters.observing.gauges import Gauges
from penstock.adapters.observing.gen_ai import PROVIDER, operation_name
from penstock.adapters.observing.histograms import COMMIT_BOUNDS_S, COMMIT_EVENT_BOUNDS, Histogram
from penstock.adapters.observing.series import Aftermath, Pace, Series
from penstock.adapters.observing.vocabulary import UNKNOWN, Vocabulary
from penstock.ports import RequestRecord
from penstock.quota.events import Event, EventKind
from penstock.quota.limits import parse_limit_id

_Labels = dict[str, str]


class Metrics(Collector):
    """Counts requests and what became of them; implements ``penstock.ports.Observer``.

    Args:
        vocabulary: Bounds the labels.
        version: Of Penstock, for ``penstock_build_info``.
        dropped_lines: Reads how many log lines were dropped so far.

    ``process`` is for what others know of this process: stores, certificates, definitions, its spool.

    Example:
        >>> names = Vocabulary(organisations={"acme"}, models={"chat-small"})
        >>> metrics = Metrics(names, version="0.1.0")
        >>> record = RequestRecord(request_id="r1", organisation="acme", model="chat-small", status=200)
        >>> metrics.started(record)
        >>> metrics.finished(record)
        >>> b'outcome="ok",route="",status_class="2xx"} 1.0' in metrics.exposition()
        True
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        version: str,
        dropped_lines: Callable[[], int] = lambda: 0,
    ) -> None:
        self._vocabulary = vocabulary
        self._version = version
        self._dropped_lines = dropped_lines
        self._series: dict[tuple[str, str, str, str, str, int, bool], Series] = {}
        self._paces: dict[tuple[str, str, str, str, bool], Pace] = {}
        self._unauthenticated: dict[str, int] = {}
        self._refusals: dict[tuple[str, str, str, str, str], int] = {}
        self._aftermath: dict[tuple[str, str, str], Aftermath] = {}
        self._upstreams: dict[tuple[str, str], bool] = {}
        self._ejections: dict[tuple[str, str], int] = {}
        self._in_flight = 0
        self._commit_events = Histogram(COMMIT_EVENT_BOUNDS)
        self._commit_duration = Histogram(COMMIT_BOUNDS_S)
        self._commit_failures = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self.process = Gauges((*PROCESS_METRICS, catalogue.SPOOL_ENTRIES))
        self._registry.register(self.process)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    # --- what happens --------------------------------------------------------------------------------------------

    def started(self, record: RequestRecord) -> None:
        """A request was received."""
        self._in_flight += 1

    def finished(self, record: RequestRecord) -> None:
        """A request ended; called once for each ``started``."""
        self._in_flight -= 1
        key = (
            record.organisation,
            record.model,
            record.route,
            record.lane,
            record.outcome,
            record.status // 100,
            record.attempts > 0,
        )
        series = self._series.get(key)
        if series is None:
            series = self._series_of(record)
        series.add(record)
        if record.outcome == "denied":
            self._refused(record, series.labels)
        elif record.status == 401 or record.status == 403:
            reason = "forbidden" if record.status == 403 else "refused" if record.key else "unreadable"
            self._unauthenticated[reason] = self._unauthenticated.get(reason, 0) + 1

    def upstream_changed(self, model: str, upstream: str, healthy: bool) -> None:
        """An upstream was ejected or came back; call it once for each at the start too."""
        self._upstreams[model, upstream] = healthy
        self._ejections[model, upstream] = self._ejections.get((model, upstream), 0) + (not healthy)

    def committed(self, events: Sequence[Event], duration_s: float) -> None:
        """The embedded store committed a group; expiries and late settles are seen nowhere else."""
        self._commit_events.observe(len(events))
        self._commit_duration.observe(duration_s)
        for event in events:
            if event.kind is EventKind.EXPIRED or event.kind is EventKind.LATE:
                self._count_aftermath(event)

    def commit_failed(self) -> None:
        """The embedded store could not commit a group."""
        self._commit_failures += 1

    def _count_aftermath(self, event: Event) -> None:
        organisation, model = self._vocabulary.organisation(event.organisation), self._vocabulary.model(event.model)
        key = (organisation, model, event.lane)
        aftermath = self._aftermath.get(key)
        if aftermath is None:
            labels = {"organisation": organisation, "model": model, "lane": event.lane}
            aftermath = self._aftermath[key] = Aftermath(labels)
        if event.kind is EventKind.EXPIRED:
            aftermath.expired_reservations += 1
            aftermath.expired_tokens += event.charge.tokens
        else:
            aftermath.late_settles += 1
            aftermath.late_tokens += event.charge.tokens

    # --- labels --------------------------------------------------------------------------------------------------

    def _series_of(self, record: RequestRecord) -> Series:
        """Find or make the series of a combination that is new, or whose names are not ours to keep."""
        known = self._vocabulary
        organisation = "" if record.outcome == "unauthenticated" else known.organisation(record.organisation)
        model, route = known.model(record.model), known.route(record.route)
        status_class, reached_model = record.status // 100, record.attempts > 0
        key = (organisation, model, route, record.lane, record.outcome, status_class, reached_model)
        series = self._series.get(key)
        if series is None:
            labels = {
                "organisation": organisation,
                "model": model,
                "route": route,
                "lane": record.lane,
                "outcome": record.outcome,
                "status_class": f"{status_class}xx" if 1 <= status_class <= 5 else "none",
            }
            pace_key = (model, route, record.lane, record.outcome, reached_model)
            pace = self._paces.get(pace_key)
            if pace is None:
                pace = self._paces[pace_key] = Pace(labels, reached_model=reached_model)
            series = self._series[key] = Series(labels, pace)
        return series

    def _refused(self, record: RequestRecord, labels: _Labels) -> None:
        """Count by metric and kind: a limit's id holds the organisation's own names, and is no label."""
        metric = kind = UNKNOWN
        with suppress(ValueError):  # a record must never end a request in an error
            limit = parse_limit_id(record.denied_by)
            metric, kind = limit.metric.value, limit.kind.value
        key = (labels["organisation"], labels["model"], labels["lane"], metric, kind)
        self._refusals[key] = self._refusals.get(key, 0) + 1

    # --- what Prometheus sees ------------------------------------------------------------------------------------

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Family]:
        """Build the families; called by the registry."""
        yield from self._request_counters()
        yield from self._aftermath_counters()
        yield from self._durations()
        yield from self._gen_ai()
        yield from self._service()

    def _request_counters(self) -> Iterator[Family]:
        rows = list(self._series.values())
        yield _counter(catalogue.REQUESTS, ((row.labels, row.requests) for row in rows))
        refusal_labels = catalogue.REFUSALS.labels
        yield _counter(
            catalogue.REFUSALS,
            [(dict(zip(refusal_labels, key, strict=True)), count) for key, count in self._refusals.items()],
        )
        failures = self._unauthenticated.items()
        yield _counter(catalogue.AUTHENTICATION_FAILURES, [({"reason": reason}, count) for reason, count in failures])
        used: list[tuple[_Labels, float]] = []
        for row in rows:
            used.append(({**row.labels, "token_type": "prompt"}, row.prompt_tokens))
            used.append(({**row.labels, "token_type": "cached"}, row.cached_tokens))
            used.append(({**row.labels, "token_type": "completion"}, row.completion_tokens))
        yield _counter(catalogue.USED_TOKENS, used)
        yield _counter(catalogue.HELD_TOKENS, ((row.labels, row.held_tokens) for row in rows))
        yield _counter(catalogue.OVER_TOKENS, ((row.labels, row.over_tokens) for row in rows))
        yield _counter(catalogue.COST, ((row.labels, row.cost_nanos) for row in rows), divisor=1_000_000_000)
        yield _counter(catalogue.LOCAL_USAGE, ((row.labels, row.local_usage) for row in rows))
        yield _counter(catalogue.ATTEMPTS, ((row.labels, row.attempts) for row in rows))

    def _aftermath_counters(self) -> Iterator[Family]:
        rows = list(self._aftermath.values())
        yield _counter(catalogue.EXPIRED_RESERVATIONS, ((row.labels, row.expired_reservations) for row in rows))
        yield _counter(catalogue.EXPIRED_TOKENS, ((row.labels, row.expired_tokens) for row in rows))
        yield _counter(catalogue.LATE_SETTLES, ((row.labels, row.late_settles) for row in rows))
        yield _counter(catalogue.LATE_TOKENS, ((row.labels, row.late_tokens) for row in rows))

    def _durations(self) -> Iterator[Family]:
        paces = list(self._paces.values())
        yield _histogram(catalogue.REQUEST_DURATION, [(pace.labels, pace.duration) for pace in paces])
        yield _histogram(catalogue.FIRST_TOKEN, [(pace.labels, pace.first_token) for pace in paces])
        yield _histogram(catalogue.INTER_TOKEN, [(pace.labels, pace.inter_token) for pace in paces])
        yield _histogram(
            catalogue.QUEUE_WAIT, [(pace.labels, pace.queue_wait) for pace in paces if pace.labels["lane"] == "queue"]
        )
        yield _histogram(catalogue.RESERVE_DURATION, [(pace.labels, pace.reserve) for pace in paces])

    def _gen_ai(self) -> Iterator[Family]:
        tokens: list[tuple[_Labels, Histogram]] = []
        durations: list[tuple[_Labels, Histogram]] = []
        first_tokens: list[tuple[_Labels, Histogram]] = []
        for pace in [pace for pace in self._paces.values() if pace.reached_model]:
            outcome = pace.labels["outcome"]
            labels = {
                "gen_ai_operation_name": operation_name(pace.labels["route"]),
                "gen_ai_provider_name": PROVIDER,
                "gen_ai_request_model": pace.labels["model"],
                "error_type": "" if outcome == "ok" else outcome,
            }
            tokens.append(({**labels, "gen_ai_token_type": "input"}, pace.input_tokens))
            tokens.append(({**labels, "gen_ai_token_type": "output"}, pace.output_tokens))
            durations.append((labels, pace.duration))
            first_tokens.append((labels, pace.first_token))
        yield _histogram(catalogue.GEN_AI_TOKENS, tokens)
        yield _histogram(catalogue.GEN_AI_DURATION, durations)
        yield _histogram(catalogue.GEN_AI_FIRST_TOKEN, first_tokens)

    def _service(self) -> Iterator[Family]:
        upstreams = [({"model": model, "upstream": name}, up) for (model, name), up in self._upstreams.items()]
        ejections = [({"model": model, "upstream": name}, count) for (model, name), count in self._ejections.items()]
        yield _gauge(catalogue.IN_FLIGHT, [({}, self._in_flight)])
        yield _gauge(catalogue.UPSTREAM_HEALTHY, [(labels, float(up)) for labels, up in upstreams])
        yield _counter(catalogue.UPSTREAM_EJECTIONS, ejections)
        yield _histogram(catalogue.COMMIT_EVENTS, [({}, self._commit_events)])
        yield _histogram(catalogue.COMMIT_DURATION, [({}, self._commit_duration)])
        yield _counter(catalogue.COMMIT_FAILURES, [({}, self._commit_failures)])
        yield _counter(catalogue.DROPPED_LINES, [({}, self._dropped_lines())])
        yield _gauge(catalogue.BUILD, [({"version": self._version}, 1)])


def _counter(metric: catalogue.Metric, rows: Iterable[tuple[_Labels, float]], *, divisor: int = 1) -> Family:
    """Sum ``rows`` over the labels that ``metric`` does not have."""
    sums: dict[tuple[str, ...], float] = {}
    for labels, value in rows:
        key = tuple(labels[name] for name in metric.labels)
        sums[key] = sums.get(key, 0) + value
    family = CounterMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    for key, value in sums.items():
        family.add_metric(key, value / divisor)
    return family


def _gauge(metric: catalogue.Metric, rows: Sequence[tuple[_Labels, float]]) -> Family:
    family = GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in rows:
        family.add_metric([labels[name] for name in metric.labels], value)
    return family


def _histogram(metric: catalogue.Metric, rows: Sequence[tuple[_Labels, Histogram]]) -> Family:
    """Sum histograms over the labels that ``metric`` does not have."""
    sums: dict[tuple[str, ...], Histogram] = {}
    for labels, histogram in rows:
        key = tuple(labels[name] for name in metric.labels)
        if key not in sums:
            sums[key] = Histogram(histogram.bounds)
        sums[key].add(histogram)
    family = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    for key, histogram in sums.items():
        family.add_metric(key, histogram.cumulative(), histogram.total)
    return family
