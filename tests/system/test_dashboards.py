"""Every query of every dashboard gives series, in a real Prometheus that watched a real cluster at work."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from manifests.dashboards.forms import CHOICES
from tests.system.clusters import Cluster, until
from tests.system.prometheus import Prometheus, operations_address

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("dashboards")]

DASHBOARDS = Path(__file__).parents[2] / "config" / "grafana"
LIMITS = ("100M tokens/day", "1k usd/month", "120 requests/minute", "1k concurrent")
CAPACITY = {"tokens_per_second": 500, "concurrency": 8}
JOBS = {
    "api": "penstock-api", "keeper": "penstock-keeper", "executor": "penstock-executor", "gateway": "penstock-gateway",
    "worker-m": "penstock-worker", "worker-n": "penstock-worker", "collector": "penstock-collector",
    "dead-letters": "penstock-dead-letters",
}  # fmt: skip
WINDOW_S = 60
BOUND_S = 90

# Series that are there once something went wrong, or for which this cluster has no use. Their queries are only read.
ABSENT_WHEN_WELL = {
    "penstock_certificate_expiry_timestamp_seconds": "a cluster on one machine has no certificates",
    "penstock_expired_tokens_total": "a process must die, and a lease end",
    "penstock_late_tokens_total": "the same, and its settle come after",
    "penstock_over_tokens_total": "plans are strict unless they say otherwise",
}


class Watched:
    """A cluster, its clients, and the Prometheus that watches it."""

    def __init__(self, folder: Path) -> None:
        self.cluster = Cluster(folder / "cluster", "--decode", "500", limits=LIMITS, capacity=CAPACITY)
        self.folder = folder
        self.prometheus: Prometheus | None = None

    def start(self) -> None:
        self.cluster.start()
        targets: dict[str, list[str]] = {}
        for name, job in JOBS.items():
            targets.setdefault(job, []).append(operations_address(self.cluster.pids[name]))
        self.prometheus = Prometheus(self.folder, targets)
        self.prometheus.start()

    def stop(self) -> None:
        if self.prometheus is not None:
            self.prometheus.stop()
        assert self.cluster.stop() == 0

    def ask(self, path: str, **parameters: str | float) -> Any:
        assert self.prometheus is not None
        return self.prometheus.ask(path, **parameters)

    def work(self) -> None:
        """One round of both lanes: answers, streams, jobs, a failure of the model server, refusals, a wrong key."""
        chat = "/v1/chat/completions"
        for organisation, key in self.cluster.keys.items():
            with self.cluster.client(key) as client:
                slow = "fault=slow_first_byte:6000"  # held while the keeper looks, which it does every 3 s
                client.post(chat, json=_body("m", slow), headers={"prefer": "respond-async"})
                for model in ("m", "n"):
                    for wishes in ("tokens=20 cached_tokens=3", "fault=refuse:500", "fault=no_usage tokens=5"):
                        client.post(chat, json=_body(model, wishes, stream=True))
                        client.post(chat, json=_body(model, wishes))
                    client.post(chat, json=_body(model, "tokens=5"), headers={"prefer": "respond-async"})
                while organisation == "other" and client.post(chat, json=_body("m", "tokens=1")).status_code != 429:
                    pass
        with self.cluster.client("psk_acme_nobody_wrong") as stranger:
            assert stranger.post(chat, json=_body("m", "tokens=1")).status_code == 401


def _body(model: str, wishes: str, **others: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": "Say something, and count it."}]
    return {"model": model, "messages": said, "max_tokens": 30, "metadata": {"simulate": wishes}, **others}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    found = Watched(tmp_path_factory.mktemp("dashboards"))
    try:
        found.start()
        yield found
    finally:
        found.stop()


def targets() -> list[tuple[str, bool]]:
    """Every query, and whether it is asked for one moment only."""
    return [
        (target["expr"], bool(target.get("instant")))
        for path in sorted(DASHBOARDS.glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", ())
    ]


def filled(query: str, values: Mapping[str, list[str]]) -> str:
    """The query as Grafana would send it: a choice of several values becomes a pattern of them."""
    for name, found in values.items():
        query = query.replace(f"${name}", f"({'|'.join(map(re.escape, found))})" if len(found) > 1 else found[0])
    query = query.replace("$__rate_interval", f"{WINDOW_S}s").replace("$__range", f"{WINDOW_S}s")
    assert "$" not in query, query
    return query


def chosen(watched: Watched) -> dict[str, list[str]]:
    """What each variable offers, by its own query."""
    values = {}
    for name, query in CHOICES.items():
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query).groups()  # type: ignore[union-attr]
        values[name] = [each for each in watched.ask(f"label/{label}/values", **{"match[]": metric}) if each]
    return values


def gives_a_number(watched: Watched, query: str, is_instant: bool) -> bool:
    now = time.time()
    if is_instant:
        found = watched.ask("query", query=query, time=now)["result"]
        return any(math.isfinite(float(series["value"][1])) for series in found)
    found = watched.ask("query_range", query=query, start=now - 5, end=now, step=1)["result"]
    return any(math.isfinite(float(value)) for series in found for _, value in series["values"])


def test_every_query_of_every_dashboard_gives_a_number(watched: Watched) -> None:
    left = dict(targets())
    unheard = [query for query in left if any(metric in query for metric in ABSENT_WHEN_WELL)]
    assert len(left) - len(unheard) > 60

    def all_answered() -> bool:
        watched.work()
        values = chosen(watched)
        if not all(values.values()):
            return False  # nothing was scraped yet
        for query, is_instant in list(left.items()):
            if gives_a_number(watched, filled(query, values), is_instant) or query in unheard:
                del left[query]
        return not left

    try:
        until(all_answered, bound_s=BOUND_S)
    except AssertionError as error:
        raise AssertionError("without a number:\n" + "\n".join(left)) from error


def test_what_can_be_chosen_is_what_was_asked_for(watched: Watched) -> None:
    watched.work()
    until(lambda: {"acme", "other"} <= set(chosen(watched)["organisation"]))
    assert {"m", "n"} <= set(chosen(watched)["model"])


def test_a_query_that_prometheus_cannot_read_is_noticed(watched: Watched) -> None:
    with pytest.raises(AssertionError, match="parse error"):
        gives_a_number(watched, "sum by (", False)
