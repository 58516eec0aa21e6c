"""What a process shows of its surroundings at each scrape: stores, certificates, definitions. No store is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from cryptography import x509

from penstock import __version__
from penstock.adapters.observing.catalogue_process import CERTIFICATE_EXPIRY, DEFINITIONS_AGE, STORE_UP
from penstock.adapters.observing.gauges import Gauges, Rows
from penstock.adapters.observing.lines import LineWriter
from penstock.adapters.observing.metrics import Metrics
from penstock.adapters.observing.vocabulary import Vocabulary
from penstock.config import Configuration
from penstock.wiring.doctoring.references import certificates_in
from penstock.wiring.governing import Governing
from penstock.wiring.readiness import FallibleStore
from penstock.wiring.stores import Service

FRESH_S = 5.0
"""The version of the definitions is read twice a second: after so long without, the database did not answer."""


def measured(configuration: Configuration, vocabulary: Vocabulary, writer: LineWriter, governing: Governing) -> Metrics:
    """The metrics of a process without services, with what surrounds it."""
    metrics = Metrics(vocabulary, version=__version__, dropped_lines=lambda: writer.dropped)
    show_surroundings(metrics.process, configuration, governing=governing)
    return metrics


def show_surroundings(
    gauges: Gauges,
    configuration: Configuration,
    *,
    governing: Governing | None = None,
    quota: FallibleStore | None = None,
) -> None:
    """Have them read at each scrape.

    Args:
        governing: Where definitions are kept up to date. In a cluster they come from PostgreSQL.
        quota: In Redis.
    """
    files = {
        path: Path(reference.file) for path, reference in certificates_in(configuration)
    }  # may be replaced at any time
    gauges.read(CERTIFICATE_EXPIRY, lambda: {(path,): expiry_s(file) for path, file in files.items()})
    stores: dict[Service, Callable[[], bool]] = {}
    if quota is not None:
        stores[Service.REDIS] = lambda: quota.failure is None
    if governing is not None:
        gauges.read(DEFINITIONS_AGE, lambda: {(): governing.age_s})
        if stores:
            stores[Service.POSTGRESQL] = lambda: governing.age_s < FRESH_S
    if stores:
        gauges.read(STORE_UP, partial(_stores, stores))


def _stores(works: Mapping[Service, Callable[[], bool]]) -> Rows:
    return {(service.value,): float(is_up()) for service, is_up in works.items()}


def expiry_s(file: Path) -> float:
    """When the first of a file's certificates ends, Unix seconds; 0 if it holds none that can be read."""
    try:
        found = x509.load_pem_x509_certificates(file.read_bytes())
    except (OSError, ValueError):
        return 0.0
    return min(each.not_valid_after_utc.timestamp() for each in found)
