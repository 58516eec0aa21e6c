"""What sends spans on: the SDK's provider with its exporter, one for each process."""

from __future__ import annotations

from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

EXPORT_S: Final = 5
"""How long one batch may take to be sent, and so what a stop waits for at most."""

_PROPAGATOR: Final = TraceContextTextMapPropagator()


def open_provider(endpoint: str, *, service: str, version: str, ratio: float) -> TracerProvider:
    """A provider whose spans go to a collector, in batches and from a thread of its own.

    What cannot be sent is dropped, and the log says so. ``shutdown`` sends what is left; it blocks.

    Args:
        endpoint: Of a collector that takes OTLP over HTTP, without a path.
        service: ``service.name`` of every span.
        ratio: Of the traces that begin here; those that go on here were decided where they began.
    """
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(ratio)),
        resource=Resource({"service.name": service, "service.version": version}),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def parent_of(traceparent: str | None) -> Context:
    """The context that a ``traceparent`` names; that of a new trace if there is none, or it is malformed."""
    nothing = Context()
    return nothing if traceparent is None else _PROPAGATOR.extract({"traceparent": traceparent}, nothing)


def traceparent_in(context: Context) -> str:
    """The ``traceparent`` of a context's span."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context)
    return carrier["traceparent"]
