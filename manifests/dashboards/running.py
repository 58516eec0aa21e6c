"""The dashboards of what runs it: who pays, how much is needed, and whether the stores hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from grafana_foundation_sdk.builders.dashboard import Dashboard

from manifests.dashboards.forms import board, figure, graph, listing
from manifests.dashboards.lanes import RATE

RANGE: Final = "[$__range]"


def tenants() -> Dashboard:
    """Who uses how much, what it costs, and who is held back. Bills come from the ledger, never from here."""
    chosen = 'organisation=~"$organisation", model=~"$model"'
    billed = f'penstock_used_tokens_total{{{chosen}, token_type=~"prompt|completion"}}'
    of_range = (
        figure("Cost", "currencyUSD", f"sum(increase(penstock_cost_usd_total{{{chosen}}}{RANGE}))",
               says="Charged within the chosen time; an estimate of the ledger's exact sum."),
        figure("Tokens", "short", f"sum(increase({billed}{RANGE}))", says="Of prompts and answers."),
        figure("Requests", "short", f"sum(increase(penstock_requests_total{{{chosen}}}{RANGE}))", says="Ended ones."),
        figure("Refusals", "short", f"sum(increase(penstock_refusals_total{{{chosen}}}{RANGE}))", says="By limits."),
        figure("Held for each token used", "short", says="The price of not knowing an answer's length; 1 is perfect.",
               query=f"sum(increase(penstock_held_tokens_total{{{chosen}}}{RANGE})) / sum(increase({billed}{RANGE}))",
               warn=10),
        figure("From the cache", "percentunit", says="Share of prompts that model servers had in their cache.",
               query=f'sum(increase(penstock_used_tokens_total{{{chosen}, token_type="cached"}}{RANGE}))'
                     f' / sum(increase(penstock_used_tokens_total{{{chosen}, token_type="prompt"}}{RANGE}))'),
    )  # fmt: skip
    most = (
        listing("Cost by organisation", "currencyUSD", says="Within the chosen time, the 20 highest.",
                query=f"topk(20, sum by (organisation) (increase(penstock_cost_usd_total{{{chosen}}}{RANGE})))"),
        listing("Cost by model", "currencyUSD", says="Within the chosen time.",
                query=f"sort_desc(sum by (model) (increase(penstock_cost_usd_total{{{chosen}}}{RANGE})))"),
        listing("Refused", "short", says="By the limit that refused, within the chosen time, the 20 most frequent.",
                query="topk(20, sum by (organisation, metric, kind) "
                      f"(increase(penstock_refusals_total{{{chosen}}}{RANGE})))"),
    )  # fmt: skip
    by = "sum by (organisation)"
    course = (
        graph("Tokens per second", "short", says="Of prompts and answers.", is_stacked=True, queries={
            "{{organisation}}": f"{by} (rate({billed}{RATE}))"}),
        graph("Cost per hour", "currencyUSD", says="Charged, at the present rate.", is_stacked=True, queries={
            "{{organisation}}": f"3600 * {by} (rate(penstock_cost_usd_total{{{chosen}}}{RATE}))"}),
        graph("Refused", "reqps", says="Requests that a limit refused.", is_stacked=True, queries={
            "{{organisation}}": f"{by} (rate(penstock_refusals_total{{{chosen}}}{RATE}))"}),
    )  # fmt: skip
    wrong = (
        graph("Beyond what was held", "short", span=6, says="Tokens per second; 0 under a strict plan.", queries={
            "{{organisation}}": f"{by} (rate(penstock_over_tokens_total{{{chosen}}}{RATE}))"}),
        graph("Expired", "short", span=6, says="Tokens charged to requests whose process died.", queries={
            "{{organisation}}": f"{by} (increase(penstock_expired_tokens_total{{{chosen}}}{RANGE}))"}),
        graph("Came late", "short", span=6, says="Tokens that settles added after their hold had expired.", queries={
            "{{organisation}}": f"{by} (increase(penstock_late_tokens_total{{{chosen}}}{RANGE}))"}),
        graph("Counters and ledger differ", "short", span=6, says="Tokens; anything but 0 is a bug.", queries={
            "{{organisation}}": 'max by (organisation) '
                                '(abs(penstock_audit_differences{organisation=~"$organisation"}))'}),
    )  # fmt: skip
    rows = {"In the chosen time": of_range, "Who": most, "Course": course, "What should be 0": wrong}
    says = "Who uses how much, what it costs, and who is held back. Bills come from the ledger: penstock export."
    return board("tenants", "tenants and cost", says, rows, choices=("organisation", "model"))


def scaling() -> Dashboard:
    """What the keeper asks for, and from which figures."""
    chosen = 'model=~"$model"'
    asked = (
        graph("Replicas asked for", "short", span=12, says="Of the model servers; what KEDA is answered.", queries={
            "{{model}}": f"max by (model) (penstock_scaling_replicas{{{chosen}}})"}),
        graph("Workers asked for", "short", span=12, says="Of each model's queue.", queries={
            "{{model}}": f"max by (model) (penstock_scaling_workers{{{chosen}}})"}),
    )  # fmt: skip
    inputs = f"max by (model, input) (penstock_scaling_input{{{chosen}}})"
    why = (
        graph(
            "All that they follow from",
            "short",
            span=16,
            says="Every number that went in, by its name.",
            queries={"{{model}} {{input}}": inputs},
        ),
        listing("Now", "short", inputs, says="The same, at this moment."),
    )
    load = (
        graph("Backlog", "short", says="Tokens that waiting jobs hold.", queries={
            "{{model}}": f"max by (model) (penstock_queue_backlog_tokens{{{chosen}}})"}),
        graph("Arriving", "short", says="Tokens per second that requests used.", queries={
            "{{model}}": f'sum by (model) (rate(penstock_used_tokens_total{{{chosen}, '
                         f'token_type=~"prompt|completion"}}{RATE}))'}),
        graph("Age of the figures", "s", says="A scaler that is blind answers nothing, and KEDA keeps what runs.",
              queries={"all models": "min(penstock_scaling_figures_age_seconds)"}),
    )  # fmt: skip
    rows = {"Asked for": asked, "Why": why, "Load": load}
    return board("scaling", "scaling", "What the keeper asks for, and why.", rows, choices=("model",))


def stores() -> Dashboard:
    """Redis, PostgreSQL, RabbitMQ, and the way from the quota to the ledger."""
    now = (
        figure("Ledger is behind", "s", "max(penstock_outbox_oldest_age_seconds)", warn=30, bad=120,
               says="Age of the oldest event that the ledger does not have yet."),
        figure("Events to write", "short", "max(penstock_outbox_events)", says="In Redis, and not in the ledger.",
               warn=10_000, bad=100_000),
        figure("Settles on disk", "short", "sum(penstock_spool_entries)", warn=1, bad=1_000,
               says="Noted by the API services while Redis is away."),
        figure("Holds overdue", "short", "max(penstock_overdue_holds)", says="Past their lease by more than a sweep.",
               warn=1, bad=100),
        figure("Since the last audit", "s", "time() - max(penstock_audit_last_success_timestamp_seconds)", bad=7_200,
               says="Counters were last compared with the ledger so long ago."),
        figure("Keepers that write", "short", "sum(penstock_keeper_active)", says="1: the others stand by."),
    )  # fmt: skip
    reached = (
        graph("Stores", "bool", says="1 while a process's last call worked.", queries={
            "{{store}} {{job}}": "min by (store, job) (penstock_store_up)"}),
        graph("Reserve, 99 of 100", "s", says="Redis, as requests feel it.", queries={
            "{{lane}}": "histogram_quantile(0.99, sum by (le, lane) "
                        f"(rate(penstock_reserve_duration_seconds_bucket{RATE})))"}),
        graph("Definitions", "s", says="Since each process last knew its organisations, keys and limits.", queries={
            "{{job}}": "max by (job) (penstock_definitions_age_seconds)"}),
    )  # fmt: skip
    books = (
        graph("Written to the ledger", "short", says="Events per second; repeated ones were there already.", queries={
            "new": f"sum(rate(penstock_keeper_events_total{RATE}))",
            "repeated": f"sum(rate(penstock_keeper_repeated_events_total{RATE}))"}),
        graph("Lag", "s", says="Age of the oldest event of a batch when it was written.", queries={
            "{{instance}}": "penstock_keeper_lag_seconds"}),
        graph("A service was away", "short", says="Times that the keeper had to wait, and times that one took over.",
              queries={"away": f"sum(increase(penstock_keeper_failures_total{RANGE}))",
                       "took over": f"sum(increase(penstock_keeper_terms_total{RANGE}))"}),
        graph("Open holds", "short", says="Requests and jobs that have reserved and not ended.", queries={
            "{{model}}": "max by (model) (penstock_open_holds)"}),
        graph("Tokens held", "short", says="By those.", queries={
            "{{model}}": "max by (model) (penstock_open_held_tokens)"}),
        graph("Rebuilding", "short", says="Organisations whose state Redis lost, and that admit nothing meanwhile.",
              queries={"organisations": "max(penstock_keeper_rebuilding_organisations)"}),
    )  # fmt: skip
    rest = (
        graph("Memory", "bytes", says="Of each Python process.", queries={
            "{{job}}": 'max by (job) (process_resident_memory_bytes{job=~"penstock-.+"})'}),
        graph("Open files", "short", says="Of each Python process.", queries={
            "{{job}}": 'max by (job) (process_open_fds{job=~"penstock-.+"})'}),
        graph("Certificates end in", "s", says="Those that the configuration names.", queries={
            "{{name}}": "min by (name) (penstock_certificate_expiry_timestamp_seconds) - time()"}),
    )  # fmt: skip
    rows = {"Now": now, "Reached": reached, "Books": books, "Processes": rest}
    return board("stores", "stores", "Redis, PostgreSQL, RabbitMQ, and the way to the ledger.", rows)


def boards() -> Iterator[tuple[str, Dashboard]]:
    """Each of these dashboards, by the name of its file."""
    yield "tenants", tenants()
    yield "scaling", scaling()
    yield "stores", stores()
