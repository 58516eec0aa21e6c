"""The keeper's spans: one for each event that the ledger took, in the trace of its request, and one for the batch.

A batch serves many traces, so it is a trace of its own whose span links to all of them, and they to it.
"""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Tracer, get_current_span

from penstock.adapters.tracing.exporting import parent_of
from penstock.quota.events import Event


class LedgerTracer:
    """Tells of batches; implements ``penstock.lanes.keeping.BatchTracer``.

    Args:
        tracer: That samples all: only events whose request is recorded are told of.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def drained(self, traced: Iterable[tuple[str, Event]], *, began_ms: int, ended_ms: int) -> None:
        """See ``penstock.lanes.keeping.BatchTracer``."""
        events = [(parent_of(traceparent), event) for traceparent, event in traced]
        if not events:
            return
        began_ns, ended_ns = began_ms * 1_000_000, ended_ms * 1_000_000
        links = [Link(get_current_span(parent).get_span_context()) for parent, _ in events]
        batch = self._tracer.start_span(
            "drain", Context(), SpanKind.CONSUMER, {"messaging.batch.message_count": len(events)}, links, began_ns
        )
        link = Link(batch.get_span_context())
        for parent, event in events:
            attributes: dict[str, str | int] = {
                "penstock.reservation": event.reservation,
                "penstock.organisation": event.organisation,
                "penstock.lane": event.lane,
                "gen_ai.request.model": event.model,
                "penstock.tokens": event.charge.tokens,
                "penstock.cost_nanos": event.charge.cost_nanos,
            }
            span = self._tracer.start_span(
                f"ledger {event.kind}", parent, SpanKind.CONSUMER, attributes, [link], began_ns
            )
            span.end(ended_ns)
        batch.end(ended_ns)
