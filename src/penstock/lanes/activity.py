"""What goes through lanes, models and organisations just now: two looks at the metrics, and what lies between them.

Pure. Counters become rates over the time between the looks; one that fell was of a process that began anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from penstock.lanes.waiting import Waiting

Labels = Mapping[str, str]
Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]
"""Values by a metric's name and its labels, sorted; of several processes added up."""

_REQUESTS: Final = "penstock_requests_total"
_REFUSALS: Final = "penstock_refusals_total"
_TOKENS: Final = "penstock_used_tokens_total"
_COST: Final = "penstock_cost_usd_total"
_FIRST: Final = "penstock_first_token_duration_seconds_bucket"
_HEALTHY: Final = "penstock_upstream_healthy"
_FAILED: Final = ("5xx",)
_COUNTED: Final = ("prompt", "completion")  # cached is a part of prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a lane, a model or an organisation did, each second.

    Args:
        failed: Answers with a status of 500 or more.
        first_s: Until the first token: the median, and what 95 of 100 stay below; None if nothing was answered.
    """

    name: str
    requests: float
    refused: float
    failed: float
    tokens: float
    usd: float
    first_s: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """One moment.

    Args:
        held: By organisation: open requests, and the tokens that they hold.
        healthy: By model: upstreams that take requests, of how many.
        unseen: What could not be asked, and why.
    """

    seconds: float
    lanes: tuple[Rates, ...]
    models: tuple[Rates, ...]
    tenants: tuple[Rates, ...]
    queues: Mapping[str, Waiting]
    held: Mapping[str, tuple[int, int]]
    healthy: Mapping[str, tuple[int, int]]
    in_flight: int
    unseen: tuple[str, ...] = ()


def activity(
    before: Samples,
    after: Samples,
    *,
    seconds: float,
    queues: Mapping[str, Waiting],
    held: Mapping[str, tuple[int, int]],
    unseen: Iterable[str] = (),
) -> Activity:
    """What happened between two looks."""
    grown = {key: _growth(before.get(key), value) for key, value in after.items()}

    def rates_by(label: str, names: Iterable[str]) -> tuple[Rates, ...]:
        found = {dict(labels)[label] for name, labels in after if name == _REQUESTS and dict(labels).get(label)}
        every = (_rates(grown, label, name, seconds) for name in found | set(names))
        return tuple(sorted(every, key=lambda rates: (-rates.tokens, -rates.requests, rates.name)))

    return Activity(
        seconds=seconds,
        lanes=tuple(sorted(rates_by("lane", ("realtime", "queue")), key=lambda rates: rates.name, reverse=True)),
        models=rates_by("model", queues),
        tenants=rates_by("organisation", held),
        queues=queues,
        held=held,
        healthy=_healthy(after),
        in_flight=int(sum(value for (name, _), value in after.items() if name == "penstock_in_flight_requests")),
        unseen=tuple(unseen),
    )


def _growth(before: float | None, now: float) -> float:
    return now if before is None or now < before else now - before


def _rates(grown: Samples, label: str, name: str, seconds: float) -> Rates:
    mine = [(metric, dict(labels), by) for (metric, labels), by in grown.items() if (label, name) in labels]

    def rate(metric: str, matches: Callable[[Labels], bool] = lambda _: True) -> float:
        return sum(by for each, labels, by in mine if each == metric and matches(labels)) / seconds

    buckets: dict[float, float] = {}
    for metric, labels, by in mine:
        if metric == _FIRST:
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0) + by
    return Rates(
        name=name,
        requests=rate(_REQUESTS),
        refused=rate(_REFUSALS),
        failed=rate(_REQUESTS, lambda labels: labels.get("status_class") in _FAILED),
        tokens=rate(_TOKENS, lambda labels: labels.get("token_type") in _COUNTED),
        usd=rate(_COST),
        first_s=_quantiles(buckets),
    )


def _quantiles(buckets: Mapping[float, float]) -> tuple[float, float] | None:
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]]:
        return None
    return quantile(buckets, 0.5), quantile(buckets, 0.95)


def quantile(buckets: Mapping[float, float], share: float) -> float:
    """Of a histogram's cumulative counts by their bound, between bounds in proportion, as Prometheus estimates it.

    Example:
        >>> quantile({0.1: 0, 0.2: 8, float("inf"): 10}, 0.5), quantile({0.1: 0, float("inf"): 1}, 0.5)
        (0.1625, 0.1)
    """
    bounds = sorted(buckets)
    wanted = share * buckets[bounds[-1]]
    below, counted = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= wanted and buckets[bound] > counted:
            if bound == float("inf"):
                return below
            return below + (bound - below) * (wanted - counted) / (buckets[bound] - counted)
        below, counted = bound, buckets[bound]
    return below


def _healthy(after: Samples) -> dict[str, tuple[int, int]]:
    found: dict[str, dict[str, bool]] = {}
    for (name, labels), value in after.items():
        if name == _HEALTHY:
            of = dict(labels)
            upstreams = found.setdefault(of["model"], {})
            upstreams[of["upstream"]] = upstreams.get(of["upstream"], False) or value > 0
    return {model: (sum(upstreams.values()), len(upstreams)) for model, upstreams in found.items()}
