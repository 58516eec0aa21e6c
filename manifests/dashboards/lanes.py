"""The dashboards of the request's way: the overview, the realtime lane, the queue lane."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from grafana_foundation_sdk.builders.dashboard import Dashboard

from manifests.dashboards.forms import board, figure, graph

RATE: Final = "[$__rate_interval]"
FAILED: Final = 'status_class="5xx", outcome!~"released|dropped"'
SERVED: Final = 'outcome!~"released|dropped"'
"""A delivery that the worker is asked to bring again is no request that ended: the alerts leave it out as well."""


def quantile(share: float, histogram: str, matchers: str, by: str = "") -> str:
    """The value below which ``share`` of a histogram's observations lie."""
    labels = ", ".join(label for label in ("le", by) if label)
    return f"histogram_quantile({share}, sum by ({labels}) (rate({histogram}_bucket{{{matchers}}}{RATE})))"


def overview() -> Dashboard:
    """Whether all is well, and where to look if not."""
    chosen = 'model=~"$model"'
    requests = f"sum(rate(penstock_requests_total{{{chosen}, {SERVED}}}{RATE}))"
    failed = f"sum(rate(penstock_requests_total{{{chosen}, {FAILED}}}{RATE}))"
    refused = f"sum(rate(penstock_refusals_total{{{chosen}}}{RATE}))"
    now = (
        figure("Requests", "reqps", requests, says="Requests that ended, of both lanes."),
        figure("Failed", "percentunit", f"{failed} / {requests}", warn=0.001, bad=0.01,
               says="Share that ended with a 5xx status: ours or the model server's fault, never the client's."),
        figure("Refused", "percentunit", f"{refused} / {requests}", says="Share that a limit refused.", warn=0.2),
        figure("First token, 95 of 100", "s", warn=1, bad=2.5,
               query=quantile(0.95, "penstock_first_token_duration_seconds", f'{chosen}, lane="realtime"'),
               says="Realtime lane: from the request's arrival to the first byte of the answer's content."),
        figure("Jobs that wait", "short", "sum(max by (model) (penstock_queue_waiting_jobs{model=~\"$model\"}))",
               says="Accepted, and not running yet."),
        figure("Ledger is behind", "s", "max(penstock_outbox_oldest_age_seconds)", warn=30, bad=120,
               says="Age of the oldest event that the ledger does not have yet."),
    )  # fmt: skip
    traffic = (
        graph("Requests by outcome", "reqps", says="What clients were answered.", is_stacked=True, queries={
            "{{outcome}}": f"sum by (outcome) (rate(penstock_requests_total{{{chosen}}}{RATE}))"}),
        graph("Tokens", "short", says="Tokens used per second; cached ones are a part of the prompt's.", queries={
            "{{token_type}}": f"sum by (token_type) (rate(penstock_used_tokens_total{{{chosen}}}{RATE}))"}),
        graph("Cost per hour", "currencyUSD", says="Charged, at the present rate.", is_stacked=True, queries={
            "{{model}}": f"3600 * sum by (model) (rate(penstock_cost_usd_total{{{chosen}}}{RATE}))"}),
        graph("Duration, 95 of 100", "s", says="From arrival to the last byte. A job's is that of its execution.",
              queries={"{{lane}}": quantile(0.95, "penstock_request_duration_seconds", chosen, "lane")}),
        graph("Requests by lane", "reqps", says="Both lanes, and pages of neither.", is_stacked=True, queries={
            "{{lane}}": f"sum by (lane) (rate(penstock_requests_total{{{chosen}}}{RATE}))"}),
        graph("Processes that answer", "short", says="Of each component, as Prometheus finds them.", queries={
            "{{job}}": 'sum by (job) (up{job=~"penstock-.+"})'}),
    )  # fmt: skip
    stores = (
        graph("Stores", "bool", span=12, says="1 while every process that uses a store reaches it.", queries={
            "{{store}}": "min by (store) (penstock_store_up)"}),
        graph("Versions", "short", span=12, says="Processes of each version: two only during an upgrade.", queries={
            "{{version}}": "count by (version) (penstock_build_info)"}),
    )  # fmt: skip
    rows = {"Now": now, "Traffic": traffic, "Below": stores}
    return board("overview", "overview", "Is all well, and where to look if not.", rows, choices=("model",))


def realtime() -> Dashboard:
    """The API service and the model servers behind it."""
    chosen = 'model=~"$model", lane="realtime"'
    first, between, whole, reserve = (
        f"penstock_{name}_duration_seconds" for name in ("first_token", "inter_token", "request", "reserve")
    )

    def quantiles(histogram: str) -> dict[str, str]:
        return {f"{share:.0%} are below": quantile(share, histogram, chosen) for share in (0.5, 0.95, 0.99)}

    waiting = (
        graph("First token", "s", quantiles(first), says="From arrival to the first byte of the answer's content."),
        graph("Between tokens", "s", quantiles(between), says="The mean gap between the chunks of one answer."),
        graph("Whole answer", "s", quantiles(whole), says="From arrival to the last byte."),
    )
    load = (
        graph("Requests", "reqps", says="By what they came to.", is_stacked=True, queries={
            "{{status_class}} {{outcome}}":
                f"sum by (status_class, outcome) (rate(penstock_requests_total{{{chosen}}}{RATE}))"}),
        graph("In flight", "short", says="Received, and not yet ended.", queries={
            "{{instance}}": 'penstock_in_flight_requests{job="penstock-api"}'}),
        graph("Refused", "reqps", says="By the limit that refused.", is_stacked=True, queries={
            "{{metric}} {{kind}}": f"sum by (metric, kind) (rate(penstock_refusals_total{{{chosen}}}{RATE}))"}),
        graph("Reserve", "s", quantiles(reserve), says="From arrival to the quota's answer: what the quota costs."),
        graph("No credential", "reqps", says="Refused before an organisation was known.", is_stacked=True, queries={
            "{{reason}}": f"sum by (reason) (rate(penstock_authentication_failures_total{RATE}))"}),
        graph("Processor", "percentunit", says="Of one core, each process of the API service.", queries={
            "{{instance}}": f'rate(process_cpu_seconds_total{{job="penstock-api"}}{RATE})'}),
    )  # fmt: skip
    servers = (
        graph("Take requests", "bool", says="0 while a model server is ejected.", queries={
            "{{model}} {{upstream}}": 'min by (model, upstream) (penstock_upstream_healthy{model=~"$model"})'}),
        graph("Tries for each request", "short", says="Above 1 by what was tried again.", queries={
            "{{model}}": f"sum by (model) (rate(penstock_upstream_attempts_total{{{chosen}}}{RATE}))"
                         f" / sum by (model) (rate(penstock_requests_total{{{chosen}}}{RATE}))"}),
        graph("Usage counted here", "reqps", says="A model server's report was missing or absurd.", queries={
            "{{model}}": f"sum by (model) (rate(penstock_usage_counted_locally_total{{{chosen}}}{RATE}))"}),
    )  # fmt: skip
    rows = {"How long it takes": waiting, "Load": load, "Model servers": servers}
    return board("realtime", "realtime lane", "Whether clients wait, and for what.", rows, choices=("model",))


def queue() -> Dashboard:
    """Jobs from their acceptance to their end."""
    chosen = 'model=~"$model"'

    def of_models(name: str, measure: str) -> dict[str, str]:
        return {"{{model}}": f"{measure} by (model) (penstock_queue_{name}{{{chosen}}})"}

    now = (
        graph("Wait", "short", of_models("waiting_jobs", "max"), span=6, says="Accepted, and not running yet."),
        graph("Run", "short", of_models("running_jobs", "max"), span=6, says="Being executed."),
        graph("Backlog", "short", of_models("backlog_tokens", "max"), span=6, says="Tokens that waiting jobs hold."),
        graph("The oldest", "s", of_models("oldest_age_seconds", "max"), span=6,
              says="How long the job waits that waits longest."),
    )  # fmt: skip
    ended = f'penstock_requests_total{{{chosen}, lane="queue"}}'
    held = 'penstock_held_tokens_total{model=~"$model", lane="queue"}'
    pace = (
        graph("Waited", "s", says="From acceptance to the start of the execution, of jobs that began.", queries={
            f"{share:.0%} are below": quantile(share, "penstock_queue_wait_seconds", chosen) for share in (0.5, 0.95)}),
        graph("Executions", "reqps", says="By outcome; `released` is brought again, since a limit is in its way.",
              is_stacked=True, queries={"{{outcome}}": f"sum by (outcome) (rate({ended}{RATE}))"}),
        graph("Tokens held by what ended", "short", says="Tokens per second.", queries={
            "{{model}}": f"sum by (model) (rate({held}{RATE}))"}),
    )  # fmt: skip
    stages = '{job=~"penstock-(gateway|worker|collector|dead-letters)"}'
    streams = (
        graph("Taken in", "mps", says="Messages per second that each stream took.", queries={
            "{{job}}": f"sum by (job) (rate(input_received{stages}{RATE}))"}),
        graph("Given out", "mps", says="Messages per second that each stream delivered.", queries={
            "{{job}}": f"sum by (job) (rate(output_sent{stages}{RATE}))"}),
        graph("Not given out", "mps", says="Deliveries that failed and are tried again.", queries={
            "{{job}}": f"sum by (job) (rate(output_error{stages}{RATE}))"}),
        graph("Steps that failed", "mps", says="By the label of the step in its stream's file.", queries={
            "{{job}} {{label}}": f"sum by (job, label) (rate(processor_error{stages}{RATE}))"}),
        graph("Connected to the broker", "bool", says="0 while a stream has lost its input.", queries={
            "{{job}}": f"min by (job) (input_connection_up{stages} - input_connection_lost{stages})"}),
        graph("Dead letters", "short", says="What nobody could handle, until it is written down.", queries={
            "{{queue}}": "max by (queue) (penstock_dead_letters)"}),
    )  # fmt: skip
    rows = {"Now": now, "Pace": pace, "Streams": streams}
    return board("queue", "queue lane", "Jobs from acceptance to their end.", rows, choices=("model",))


def boards() -> Iterator[tuple[str, Dashboard]]:
    """Each of these dashboards, by the name of its file."""
    yield "overview", overview()
    yield "realtime", realtime()
    yield "queue", queue()
