"""One observer that tells several: the service has one place to report to."""

from __future__ import annotations

from penstock.ports import Observer, RequestRecord


class FanOut:
    """Tells every observer, in order; implements ``penstock.ports.Observer``."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def started(self, record: RequestRecord) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.started(record)

    def finished(self, record: RequestRecord) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.finished(record)

    def upstream_changed(self, model: str, upstream: str, healthy: bool) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.upstream_changed(model, upstream, healthy)
