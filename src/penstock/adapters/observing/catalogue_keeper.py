"""The metrics that only the keeper has: a list like ``catalogue``, for the same readers."""

from __future__ import annotations

from penstock.adapters.observing.catalogue import Metric

_MODEL = ("model",)

ACTIVE = Metric("penstock_keeper_active", "gauge", (), "1 for the keeper that writes, 0 for one that stands by.")
LAG = Metric(
    "penstock_keeper_lag_seconds",
    "gauge",
    (),
    "Age of the oldest event of the last batch when it was written; 0 if none waits.",
)
REBUILDING = Metric(
    "penstock_keeper_rebuilding_organisations",
    "gauge",
    (),
    "Organisations whose state Redis lost, and that admit nothing until it is rebuilt.",
)
TERMS = Metric("penstock_keeper_terms_total", "counter", (), "Times that this process became the active keeper.")
EVENTS = Metric("penstock_keeper_events_total", "counter", (), "Events that were new to the ledger: its rows.")
REPEATED = Metric("penstock_keeper_repeated_events_total", "counter", (), "Events that the ledger had already.")
EXPIRED = Metric("penstock_keeper_expired_total", "counter", (), "Reservations that the keeper's sweeps ended.")
FAILURES = Metric("penstock_keeper_failures_total", "counter", (), "Times that a service was away.")
TALLIED = (ACTIVE, LAG, REBUILDING, TERMS, EVENTS, REPEATED, EXPIRED, FAILURES)

QUEUE_WAITING = Metric(
    "penstock_queue_waiting_jobs",
    "gauge",
    _MODEL,
    "Jobs that were accepted and do not run yet, as the ledger knows them.",
)
QUEUE_RUNNING = Metric("penstock_queue_running_jobs", "gauge", _MODEL, "Jobs that run.")
QUEUE_BACKLOG = Metric("penstock_queue_backlog_tokens", "gauge", _MODEL, "Tokens that waiting jobs hold.")
QUEUE_OLDEST = Metric(
    "penstock_queue_oldest_age_seconds",
    "gauge",
    _MODEL,
    "Since the acceptance of the job that waits longest; 0 if none waits.",
)
OUTBOX_EVENTS = Metric("penstock_outbox_events", "gauge", (), "Events in Redis that the ledger does not have yet.")
OUTBOX_OLDEST = Metric(
    "penstock_outbox_oldest_age_seconds", "gauge", (), "Age of the oldest of them; 0 if there is none."
)
OPEN_HOLDS = Metric("penstock_open_holds", "gauge", _MODEL, "Reservations that are open.")
OPEN_HELD_TOKENS = Metric("penstock_open_held_tokens", "gauge", _MODEL, "Tokens that they hold.")
OVERDUE_HOLDS = Metric(
    "penstock_overdue_holds", "gauge", (), "Open reservations that nobody swept 15 s after their lease or deadline."
)
DEAD_LETTERS = Metric("penstock_dead_letters", "gauge", ("queue",), "Messages in the broker's queue of dead letters.")
AUDIT_DIFFERENCES = Metric(
    "penstock_audit_differences",
    "gauge",
    ("organisation",),
    "The largest difference between a counter and its open holds or its ledger, in the limit's unit; 0 is right.",
)
AUDIT_LAST_SUCCESS = Metric(
    "penstock_audit_last_success_timestamp_seconds",
    "gauge",
    (),
    "When every organisation that was not too busy had last been compared, Unix seconds.",
)
SCALING_REPLICAS = Metric(
    "penstock_scaling_replicas",
    "gauge",
    _MODEL,
    "Replicas that a model server should have; none while that cannot be known.",
)
SCALING_WORKERS = Metric(
    "penstock_scaling_workers", "gauge", _MODEL, "Workers that a model's queue should have; likewise."
)
SCALING_INPUT = Metric(
    "penstock_scaling_input", "gauge", ("model", "input"), "Every number that the two were computed from, by its name."
)
SCALING_AGE = Metric(
    "penstock_scaling_figures_age_seconds", "gauge", (), "Since the scaling figures were computed, by whichever keeper."
)
FIGURED = (
    QUEUE_WAITING,
    QUEUE_RUNNING,
    QUEUE_BACKLOG,
    QUEUE_OLDEST,
    OUTBOX_EVENTS,
    OUTBOX_OLDEST,
    OPEN_HOLDS,
    OPEN_HELD_TOKENS,
    OVERDUE_HOLDS,
    DEAD_LETTERS,
    AUDIT_DIFFERENCES,
    AUDIT_LAST_SUCCESS,
    SCALING_REPLICAS,
    SCALING_WORKERS,
    SCALING_INPUT,
    SCALING_AGE,
)
KEEPER_METRICS = (*TALLIED, *FIGURED)
"""All that only the keeper has."""
