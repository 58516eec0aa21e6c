"""The metrics that every process has, as far as they concern it: a list like ``catalogue``, for the same readers."""

from __future__ import annotations

from penstock.adapters.observing.catalogue import Metric

STORE_UP = Metric(
    "penstock_store_up",
    "gauge",
    ("store",),
    "1 while the last call to a store worked: redis, postgresql or rabbitmq, as far as this process uses it.",
)
CERTIFICATE_EXPIRY = Metric(
    "penstock_certificate_expiry_timestamp_seconds",
    "gauge",
    ("name",),
    "When a certificate that the configuration names ends, Unix seconds; 0 if it cannot be read.",
)
DEFINITIONS_AGE = Metric(
    "penstock_definitions_age_seconds",
    "gauge",
    (),
    "Since this process last knew its organisations, keys and limits to be the newest.",
)
PROCESS_METRICS = (STORE_UP, CERTIFICATE_EXPIRY, DEFINITIONS_AGE)
