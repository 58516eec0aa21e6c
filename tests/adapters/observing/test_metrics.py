"""The numbers that operators watch: each says what it says, and no client can make a label."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from penstock.adapters.observing.catalogue import METRICS, as_markdown
from penstock.adapters.observing.catalogue_keeper import KEEPER_METRICS
from penstock.adapters.observing.catalogue_process import PROCESS_METRICS
from penstock.adapters.observing.fan_out import FanOut
from penstock.adapters.observing.keeping import KeeperMetrics
from penstock.adapters.observing.metrics import Metrics
from penstock.adapters.observing.vocabulary import Vocabulary
from penstock.lanes.keeping import Tally
from penstock.ports import RequestRecord
from penstock.quota.definitions import Price
from penstock.quota.events import Charge, Event, EventKind, Usage

DOCS = Path(__file__).parents[3] / "docs"

OK = RequestRecord(
    request_id="r-1",
    route="chat.completions",
    organisation="acme",
    model="chat-small",
    key="k1",
    status=200,
    attempts=1,
    prompt_tokens=100,
    cached_tokens=40,
    completion_tokens=50,
    usage_source="upstream",
    tokens_held=200,
    cost_nanos=1_500_000_000,
    reserved_ms=0.3,
    first_token_ms=90.0,
    total_ms=700.0,
)
TENANT = {"organisation": "acme", "model": "chat-small", "lane": "realtime"}


def make_metrics(dropped: int = 0) -> Metrics:
    names = Vocabulary(organisations={"acme", "globex"}, models={"chat-small"})
    return Metrics(names, version="0.1.0", dropped_lines=lambda: dropped)


def count(metrics: Metrics, *records: RequestRecord) -> None:
    for record in records:
        metrics.started(record)
        metrics.finished(record)


def value_of(metrics: Metrics, sample: str, **labels: str) -> float | None:
    """The value of one sample of the exposition; None if it is not there."""
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for found in family.samples:
            if found.name == sample and found.labels == labels:
                return float(found.value)
    return None


def labels_seen(metrics: Metrics) -> set[str]:
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {value for family in families for sample in family.samples for value in sample.labels.values()}


def test_used_tokens_are_counted_by_type() -> None:
    metrics = make_metrics()
    count(metrics, OK, OK)
    for token_type, tokens in (("prompt", 200), ("cached", 80), ("completion", 100)):
        assert value_of(metrics, "penstock_used_tokens_total", **TENANT, token_type=token_type) == tokens


def test_held_tokens_and_cost_are_summed_over_routes_and_outcomes() -> None:
    metrics = make_metrics()
    count(metrics, OK, replace(OK, route="completions", outcome="client_gone"))
    assert value_of(metrics, "penstock_held_tokens_total", **TENANT) == 400
    assert value_of(metrics, "penstock_cost_usd_total", **TENANT) == 3.0


def test_cost_of_a_single_nano_dollar_is_not_lost_beside_a_million_dollars() -> None:
    metrics = make_metrics()
    count(metrics, replace(OK, cost_nanos=10**15), replace(OK, cost_nanos=1))
    assert value_of(metrics, "penstock_cost_usd_total", **TENANT) == (10**15 + 1) / 1e9


def test_over_tokens_count_only_what_exceeds_the_hold() -> None:
    metrics = make_metrics()
    count(metrics, replace(OK, tokens_held=200), replace(OK, tokens_held=150), replace(OK, tokens_held=149))
    assert value_of(metrics, "penstock_over_tokens_total", **TENANT) == 1


def test_requests_are_counted_by_outcome_and_class_of_status() -> None:
    metrics = make_metrics()
    count(metrics, OK, replace(OK, status=204), replace(OK, status=502, outcome="upstream_error"))
    shared = {**TENANT, "route": "chat.completions"}
    assert value_of(metrics, "penstock_requests_total", **shared, outcome="ok", status_class="2xx") == 2
    assert value_of(metrics, "penstock_requests_total", **shared, outcome="upstream_error", status_class="5xx") == 1


def test_refusals_are_counted_by_metric_and_kind_never_by_limit() -> None:
    metrics = make_metrics()
    denied = replace(OK, status=429, outcome="denied", denied_by="acme/tokens/day", attempts=0, tokens_held=0)
    count(metrics, denied)
    assert value_of(metrics, "penstock_refusals_total", **TENANT, metric="tokens", kind="window") == 1
    assert "acme/tokens/day" not in labels_seen(metrics)


def test_a_refusal_without_a_limit_is_counted_and_ends_nothing() -> None:
    metrics = make_metrics()
    count(metrics, replace(OK, status=429, outcome="denied", denied_by=""))
    assert value_of(metrics, "penstock_refusals_total", **TENANT, metric="unknown", kind="unknown") == 1


def test_usage_counted_locally_raises_its_counter() -> None:
    metrics = make_metrics()
    count(metrics, OK)
    assert value_of(metrics, "penstock_usage_counted_locally_total", **TENANT) == 0
    count(metrics, replace(OK, usage_source="local"))
    assert value_of(metrics, "penstock_usage_counted_locally_total", **TENANT) == 1


def test_in_flight_rises_with_started_and_falls_with_finished() -> None:
    metrics = make_metrics()
    metrics.started(OK)
    metrics.started(OK)
    metrics.finished(OK)
    assert value_of(metrics, "penstock_in_flight_requests") == 1


def test_durations_fall_into_their_buckets() -> None:
    metrics = make_metrics()
    count(metrics, OK, replace(OK, total_ms=640.0))
    pace = {"model": "chat-small", "route": "chat.completions", "lane": "realtime"}
    name = "penstock_request_duration_seconds"
    assert value_of(metrics, f"{name}_bucket", **pace, outcome="ok", le="0.64") == 1
    assert value_of(metrics, f"{name}_bucket", **pace, outcome="ok", le="1.28") == 2
    assert value_of(metrics, f"{name}_sum", **pace, outcome="ok") == pytest.approx(1.34)
    assert value_of(metrics, "penstock_first_token_duration_seconds_count", **pace) == 2
    assert value_of(metrics, "penstock_reserve_duration_seconds_bucket", **pace, le="0.0005") == 2


def test_gen_ai_names_carry_the_same_requests() -> None:
    metrics = make_metrics()
    count(metrics, OK, replace(OK, outcome="upstream_error", status=502, prompt_tokens=0, completion_tokens=0))
    shared = {
        "gen_ai_operation_name": "chat",
        "gen_ai_provider_name": "penstock",
        "gen_ai_request_model": "chat-small",
    }
    assert value_of(metrics, "gen_ai_client_token_usage_sum", **shared, gen_ai_token_type="input") == 100
    assert value_of(metrics, "gen_ai_client_token_usage_sum", **shared, gen_ai_token_type="output") == 50
    durations = "gen_ai_client_operation_duration_seconds_count"
    assert value_of(metrics, durations, **shared, error_type="") == 1
    assert value_of(metrics, durations, **shared, error_type="upstream_error") == 1
    assert value_of(metrics, "gen_ai_server_time_to_first_token_seconds_count", **shared) == 1


def test_a_request_that_reached_no_model_is_no_gen_ai_operation() -> None:
    metrics = make_metrics()
    count(metrics, replace(OK, outcome="denied", status=429, attempts=0, denied_by="acme/tokens/day"))
    assert b"gen_ai_client_operation_duration_seconds_count" not in metrics.exposition()


def test_names_that_a_client_made_up_create_no_labels() -> None:
    metrics = make_metrics()
    for number in range(100):
        count(metrics, replace(OK, model=f"made-up-{number}", status=404, outcome="not_found", attempts=0))
        count(metrics, replace(OK, organisation=f"evil-{number}", status=401, outcome="unauthenticated", attempts=0))
        count(metrics, replace(OK, route=f"/../{number}", status=404, outcome="not_found", attempts=0))
    before = len(metrics.exposition())
    count(metrics, replace(OK, model="made-up-101", status=404, outcome="not_found", attempts=0))
    assert len(metrics.exposition()) - before < 20
    assert not [value for value in labels_seen(metrics) if "made-up" in value or "evil" in value or ".." in value]


def test_even_well_formed_routes_are_bounded() -> None:
    metrics = make_metrics()
    count(metrics, *(replace(OK, route=f"route-{number}") for number in range(100)))
    routes = {value for value in labels_seen(metrics) if value.startswith("route-")}
    assert len(routes) == 64
    assert "unknown" in labels_seen(metrics)


def test_unauthenticated_requests_are_charged_to_no_organisation() -> None:
    metrics = make_metrics()
    count(metrics, replace(OK, status=401, outcome="unauthenticated", attempts=0))
    assert "acme" not in labels_seen(metrics)


def test_requests_without_a_right_are_counted_by_what_was_wrong() -> None:
    metrics = make_metrics()
    refused = replace(OK, status=401, outcome="unauthenticated", attempts=0)
    count(metrics, refused, refused, replace(refused, key=""), replace(OK, status=403, outcome="forbidden"), OK)
    for reason, failures in (("refused", 2), ("unreadable", 1), ("forbidden", 1)):
        assert value_of(metrics, "penstock_authentication_failures_total", reason=reason) == failures


def test_an_answer_in_pieces_has_a_mean_gap_and_one_in_a_piece_has_none() -> None:
    metrics = make_metrics()
    count(metrics, replace(OK, chunks=11, first_token_ms=100.0, total_ms=300.0), replace(OK, chunks=1))
    labels = {"model": "chat-small", "lane": "realtime"}
    assert value_of(metrics, "penstock_inter_token_duration_seconds_count", **labels) == 1
    assert value_of(metrics, "penstock_inter_token_duration_seconds_sum", **labels) == pytest.approx(0.02)


def test_a_jobs_wait_is_measured_and_a_realtime_request_has_none() -> None:
    metrics = make_metrics()
    count(metrics, replace(OK, lane="queue", waited_ms=1_500.0), OK)
    assert value_of(metrics, "penstock_queue_wait_seconds_count", model="chat-small") == 1
    assert value_of(metrics, "penstock_queue_wait_seconds_sum", model="chat-small") == 1.5


def test_keys_and_request_ids_are_no_labels() -> None:
    metrics = make_metrics()
    count(metrics, replace(OK, key="key-canary", request_id="id-canary", reservation="reservation-canary"))
    assert not [value for value in labels_seen(metrics) if "canary" in value]


def test_expired_and_late_events_are_counted_and_others_are_not() -> None:
    metrics = make_metrics()
    event = Event(
        kind=EventKind.EXPIRED,
        reservation="018bcfe56800000000000000000000ff",
        organisation="acme",
        team=None,
        key="k1",
        model="chat-small",
        lane="realtime",
        occurred_at_ms=1,
        usage=Usage(prompt=7, completion=3),
        charge=Charge(tokens=10, requests=1, cost_nanos=5),
        amounts=(),
        price=Price(),
        tokens_held=100,
        job_deadline_ms=2,
    )
    late = dataclasses.replace(event, kind=EventKind.LATE, charge=Charge(tokens=4))
    metrics.committed([event, late, dataclasses.replace(event, kind=EventKind.POSTED)], 0.004)
    assert value_of(metrics, "penstock_expired_reservations_total", **TENANT) == 1
    assert value_of(metrics, "penstock_expired_tokens_total", **TENANT) == 10
    assert value_of(metrics, "penstock_late_settles_total", **TENANT) == 1
    assert value_of(metrics, "penstock_late_tokens_total", **TENANT) == 4
    assert value_of(metrics, "penstock_group_commit_events_sum") == 3


def test_an_ejected_upstream_reads_0_until_it_is_back() -> None:
    metrics = make_metrics()
    labels = {"model": "chat-small", "upstream": "http://a:8000"}
    metrics.upstream_changed("chat-small", "http://a:8000", False)
    assert value_of(metrics, "penstock_upstream_healthy", **labels) == 0
    metrics.upstream_changed("chat-small", "http://a:8000", True)
    assert value_of(metrics, "penstock_upstream_healthy", **labels) == 1
    assert value_of(metrics, "penstock_upstream_ejections_total", **labels) == 1


def test_group_commits_and_dropped_lines_are_shown() -> None:
    metrics = make_metrics(dropped=3)
    metrics.committed([], 0.004)
    metrics.commit_failed()
    assert value_of(metrics, "penstock_group_commit_events_count") == 1
    assert value_of(metrics, "penstock_group_commit_duration_seconds_bucket", le="0.005") == 1
    assert value_of(metrics, "penstock_group_commit_failures_total") == 1
    assert value_of(metrics, "penstock_log_lines_dropped_total") == 3


def test_every_metric_of_the_catalogue_is_exposed_and_no_other() -> None:
    metrics = make_metrics()
    exposed = {line.split()[2] for line in metrics.exposition().decode().splitlines() if line.startswith("# TYPE ")}
    ours = {name for name in exposed if name.startswith(("penstock_", "gen_ai_"))}
    assert ours == {metric.name for metric in (*PROCESS_METRICS, *METRICS)}
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes"} <= exposed


def test_a_keeper_exposes_its_catalogue_and_no_other() -> None:
    text = KeeperMetrics(Tally()).exposition().decode()
    exposed = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    ours = {name for name in exposed if name.startswith("penstock_")}
    assert ours == {metric.name for metric in (*PROCESS_METRICS, *KEEPER_METRICS)}


def test_counters_end_in_total_and_other_metrics_in_their_unit() -> None:
    units = ("seconds", "tokens", "requests", "events", "usage", "healthy", "info", "entries")
    for metric in METRICS:
        suffix = metric.name.rsplit("_", 1)[1]
        assert (suffix == "total") if metric.kind == "counter" else (suffix in units), metric.name


def test_the_docs_page_lists_exactly_the_metrics() -> None:
    page = (DOCS / "04-operations" / "monitoring.md").read_text()
    for metrics in (PROCESS_METRICS, METRICS, KEEPER_METRICS):
        assert as_markdown(metrics) in page


def test_fan_out_tells_every_observer() -> None:
    first, second = make_metrics(), make_metrics()
    both = FanOut(first, second)
    both.started(OK)
    both.finished(OK)
    both.upstream_changed("chat-small", "http://a:8000", True)
    for metrics in (first, second):
        assert value_of(metrics, "penstock_held_tokens_total", **TENANT) == 200
        assert value_of(metrics, "penstock_upstream_healthy", model="chat-small", upstream="http://a:8000") == 1
