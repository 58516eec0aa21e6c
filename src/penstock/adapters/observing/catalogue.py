"""Every metric, once: its name, labels and meaning. The code, the docs page and its test all read this list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family.

    Args:
        name: As exposed, the unit last; counters end in ``_total``.
        kind: counter, gauge or histogram.
        labels: Bounded by the configuration or by our own words.
        meaning: One sentence, with the unit where the name cannot say it.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


_TENANT = ("organisation", "model", "lane")
_PACE = ("model", "route", "lane")

REQUESTS = Metric(
    "penstock_requests_total",
    "counter",
    ("organisation", "model", "route", "lane", "outcome", "status_class"),
    "Requests that ended, by outcome and by class of the HTTP status (2xx, 4xx, 5xx).",
)
REFUSALS = Metric(
    "penstock_refusals_total",
    "counter",
    (*_TENANT, "metric", "kind"),
    "Requests that a limit refused, by the limit's metric (tokens, requests, cost, concurrency) and kind.",
)
AUTHENTICATION_FAILURES = Metric(
    "penstock_authentication_failures_total",
    "counter",
    ("reason",),
    "Requests without a right: unreadable (no key, or nothing that could be one), refused (a key or token that is "
    "unknown, wrong, revoked or expired), forbidden (outside the key's scope).",
)
USED_TOKENS = Metric(
    "penstock_used_tokens_total",
    "counter",
    (*_TENANT, "token_type"),
    "Tokens used: prompt, cached (a part of prompt) and completion.",
)
HELD_TOKENS = Metric(
    "penstock_held_tokens_total",
    "counter",
    _TENANT,
    "Tokens that ended requests had held; divided by tokens used it judges the estimate.",
)
OVER_TOKENS = Metric(
    "penstock_over_tokens_total",
    "counter",
    _TENANT,
    "Tokens used beyond what was held; 0 under a strict plan.",
)
COST = Metric("penstock_cost_usd_total", "counter", _TENANT, "Cost charged, in US dollars.")
LOCAL_USAGE = Metric(
    "penstock_usage_counted_locally_total",
    "counter",
    _TENANT,
    "Requests whose usage we counted, since the model server's report was missing or absurd. Alarm on it.",
)
ATTEMPTS = Metric(
    "penstock_upstream_attempts_total",
    "counter",
    ("model", "lane"),
    "Requests sent to model servers, retries included.",
)
EXPIRED_RESERVATIONS = Metric(
    "penstock_expired_reservations_total",
    "counter",
    _TENANT,
    "Reservations that nobody settled before their lease ended.",
)
EXPIRED_TOKENS = Metric(
    "penstock_expired_tokens_total", "counter", _TENANT, "Tokens charged to expired reservations (a lower bound)."
)
LATE_SETTLES = Metric(
    "penstock_late_settles_total", "counter", _TENANT, "Settles that arrived after their reservation had expired."
)
LATE_TOKENS = Metric("penstock_late_tokens_total", "counter", _TENANT, "Tokens that late settles added.")
IN_FLIGHT = Metric("penstock_in_flight_requests", "gauge", (), "Requests received and not yet ended.")
REQUEST_DURATION = Metric(
    "penstock_request_duration_seconds",
    "histogram",
    (*_PACE, "outcome"),
    "From the request's arrival to its last byte.",
)
FIRST_TOKEN = Metric(
    "penstock_first_token_duration_seconds",
    "histogram",
    _PACE,
    "From the request's arrival to the first byte of the answer's content.",
)
INTER_TOKEN = Metric(
    "penstock_inter_token_duration_seconds",
    "histogram",
    ("model", "lane"),
    "Mean gap between the pieces of one answer that came in several.",
)
QUEUE_WAIT = Metric(
    "penstock_queue_wait_seconds",
    "histogram",
    ("model",),
    "From a job's acceptance to each start of its execution.",
)
RESERVE_DURATION = Metric(
    "penstock_reserve_duration_seconds",
    "histogram",
    _PACE,
    "From the request's arrival to the quota's answer.",
)
UPSTREAM_HEALTHY = Metric(
    "penstock_upstream_healthy", "gauge", ("model", "upstream"), "1 while an upstream takes requests, 0 while ejected."
)
UPSTREAM_EJECTIONS = Metric(
    "penstock_upstream_ejections_total", "counter", ("model", "upstream"), "Times that an upstream was ejected."
)
COMMIT_EVENTS = Metric(
    "penstock_group_commit_events", "histogram", (), "Events that one group commit of the embedded store carried."
)
COMMIT_DURATION = Metric(
    "penstock_group_commit_duration_seconds", "histogram", (), "How long one group commit of the embedded store took."
)
COMMIT_FAILURES = Metric(
    "penstock_group_commit_failures_total", "counter", (), "Group commits that failed; admission stops meanwhile."
)
SPOOL_ENTRIES = Metric(
    "penstock_spool_entries",
    "gauge",
    (),
    "Ends of reservations on this process's disk that Redis has not acknowledged.",
)
DROPPED_LINES = Metric(
    "penstock_log_lines_dropped_total",
    "counter",
    (),
    "Log lines dropped since whoever reads the log had stalled.",
)
BUILD = Metric("penstock_build_info", "gauge", ("version",), "Always 1; carries the version.")
GEN_AI_TOKENS = Metric(
    "gen_ai_client_token_usage",
    "histogram",
    ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_token_type"),
    "Tokens in one request (input) and its answer (output); OpenTelemetry's gen_ai.client.token.usage.",
)
GEN_AI_DURATION = Metric(
    "gen_ai_client_operation_duration_seconds",
    "histogram",
    ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "error_type"),
    "Duration of requests that reached a model; OpenTelemetry's gen_ai.client.operation.duration.",
)
GEN_AI_FIRST_TOKEN = Metric(
    "gen_ai_server_time_to_first_token_seconds",
    "histogram",
    ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"),
    "Time to the first token; OpenTelemetry's gen_ai.server.time_to_first_token.",
)

METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All of them, in the order above."""


def as_markdown(metrics: Sequence[Metric] = METRICS) -> str:
    """The table of the docs page; ``tests/adapters/observing`` compares the page with it."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.meaning} |")
    return "\n".join(rows) + "\n"
