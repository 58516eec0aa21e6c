"""The spans of one request, or of one job where it runs.

::

    POST /v1/chat/completions     from its arrival to its last byte       (a job: execute chat.completions)
      reserve                     until the quota's answer
      chat chat-small             each model server that was asked
      settle                      until what was used is durable

What was measured on the way is in the request's record already, so most is written at its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import time_ns
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from penstock.adapters.observing.gen_ai import PROVIDER, operation_name
from penstock.adapters.observing.vocabulary import Vocabulary
from penstock.adapters.tracing.exporting import parent_of, traceparent_in
from penstock.ports import RequestRecord

Attributes = dict[str, str | int]


class RequestTracer:
    """Implements ``penstock.ports.Tracer``, and ``Observer`` to see requests end.

    Args:
        vocabulary: Keeps names that a client made up out of spans.
        paths: By route, the path that clients ask.
    """

    def __init__(self, tracer: Tracer, vocabulary: Vocabulary, *, paths: Mapping[str, str]) -> None:
        self._tracer = tracer
        self._vocabulary = vocabulary
        self._paths = paths

    def begin(self, record: RequestRecord, parent: str | None) -> RequestTrace:
        """See ``penstock.ports.Tracer``."""
        if record.lane == "queue":
            name, kind, attributes = f"execute {record.route}", SpanKind.INTERNAL, None
        else:
            path = self._paths.get(record.route, record.route)
            name, kind = f"POST {path}", SpanKind.SERVER
            attributes = {"http.request.method": "POST", "http.route": path}
        span = self._tracer.start_span(name, parent_of(parent), kind, attributes)
        return RequestTrace(self._tracer, span, record, self._vocabulary)

    def started(self, record: RequestRecord) -> None:
        """Nothing: its trace began a moment before."""

    def finished(self, record: RequestRecord) -> None:
        """Its part of the trace is over."""
        if isinstance(record.trace, RequestTrace):
            record.trace.end()

    def upstream_changed(self, model: str, upstream: str, healthy: bool) -> None:
        """Nothing: it is no part of a request."""


class RequestTrace:
    """Implements ``penstock.ports.Trace``."""

    __slots__ = ("_asked", "_began_ns", "_context", "_names", "_record", "_settle", "_span", "_tracer", "traceparent")

    def __init__(self, tracer: Tracer, span: Span, record: RequestRecord, names: Vocabulary) -> None:
        self._tracer = tracer
        self._span = span
        self._context: Context = set_span_in_context(span, Context())
        self._record = record
        self._names = names
        self._began_ns = time_ns()
        self._asked: Span | None = None
        self._settle: Span | None = None
        self.traceparent = traceparent_in(self._context)

    @property
    def is_recorded(self) -> bool:
        """See ``penstock.ports.Trace``."""
        return self._span.is_recording()

    def calling(self) -> str:
        """See ``penstock.ports.Trace``."""
        if not self.is_recorded:
            return self.traceparent
        record = self._record
        if self._asked is not None:
            self._asked.set_status(Status(StatusCode.ERROR))
            self._asked.end()
        operation, model = operation_name(record.route), self._names.model(record.model)
        attributes: Attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": model,
            "penstock.attempt": record.attempts,
        }
        address = urlsplit(record.upstream)
        if address.hostname:
            attributes["server.address"] = address.hostname
            attributes["server.port"] = address.port or (443 if address.scheme == "https" else 80)
        self._asked = self._tracer.start_span(f"{operation} {model}", self._context, SpanKind.CLIENT, attributes)
        return traceparent_in(set_span_in_context(self._asked, Context()))

    def settling(self) -> None:
        """See ``penstock.ports.Trace``."""
        if self.is_recorded:
            self._end_asked()
            self._settle = self._tracer.start_span("settle", self._context)

    def end(self) -> None:
        """Write what the record has learned."""
        if not self.is_recorded:
            return
        record, span = self._record, self._span
        self._end_asked()
        if self._settle is not None:
            self._settle.end()
        if record.reserved_ms:
            reserved: Attributes = {"penstock.tokens_held": record.tokens_held}
            if record.denied_by:
                reserved["penstock.denied_by"] = record.denied_by
            reserve = self._tracer.start_span("reserve", self._context, attributes=reserved, start_time=self._began_ns)
            reserve.end(self._began_ns + round(record.reserved_ms * 1e6))
        span.set_attributes(self._told())
        if record.status:
            span.set_attribute("http.response.status_code", record.status)
        if record.status >= 500 or record.outcome == "upstream_error":
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def _end_asked(self) -> None:
        asked, record = self._asked, self._record
        if asked is None:
            return
        self._asked = None
        if record.first_token_ms:
            asked.add_event("first token", timestamp=self._began_ns + round(record.first_token_ms * 1e6))
        if record.prompt_tokens or record.completion_tokens:
            asked.set_attribute("gen_ai.usage.input_tokens", record.prompt_tokens)
            asked.set_attribute("gen_ai.usage.output_tokens", record.completion_tokens)
        if record.outcome == "upstream_error":
            asked.set_status(Status(StatusCode.ERROR))
        asked.end()

    def _told(self) -> Attributes:
        """What the request's log line says too, so that one leads to the other."""
        record, names = self._record, self._names
        told = {
            "penstock.request_id": record.request_id,
            "penstock.reservation": record.reservation,
            "penstock.lane": record.lane,
            "penstock.outcome": record.outcome,
            "penstock.organisation": names.organisation(record.organisation),
            "penstock.team": record.team or "",
            "gen_ai.request.model": names.model(record.model),
            "error.type": "" if record.outcome in ("ok", "accepted") else record.outcome,
        }
        attributes: Attributes = {name: value for name, value in told.items() if value}
        if record.cost_nanos:
            attributes["penstock.cost_nanos"] = record.cost_nanos
        return attributes
