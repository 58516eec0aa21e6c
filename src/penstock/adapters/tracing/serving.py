"""A server's spans, for one that is asked over HTTP and has no other place to make them: the simulated model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer

from penstock.adapters.tracing.exporting import parent_of

Application = Callable[[Any, Any, Any], Awaitable[None]]


class TracedServer:
    """An ASGI application around another: one span for each POST, in the trace that the request names.

    Args:
        tracer: Samples what begins here; what goes on here was decided by who asks.
    """

    def __init__(self, application: Application, tracer: Tracer) -> None:
        self._application = application
        self._tracer = tracer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._application(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        attributes = {"http.request.method": "POST", "penstock.reservation": headers.get(b"x-request-id", "")[:64]}
        span = self._tracer.start_span(
            f"POST {scope['path']}", parent_of(headers.get(b"traceparent")), SpanKind.SERVER, attributes
        )

        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    span.set_status(Status(StatusCode.ERROR))
            await send(message)

        try:
            await self._application(scope, receive, told)
        finally:
            span.end()
