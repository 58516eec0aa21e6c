"""How a service lets itself be observed, as penstock.yaml says it."""

from __future__ import annotations

from penstock.config.values import Setting, Share, Url


class Tracing(Setting, frozen=True, kw_only=True):
    """Traces for OpenTelemetry: one for each request or job, through every process. Needs the extra `tracing`.

    Args:
        endpoint: A collector that takes OTLP over HTTP, such as `http://otel-collector:4318`; without it nothing is
            traced.
        ratio: Of the requests whose client sends no `traceparent`; one that does decides by its flag.
    """

    endpoint: Url | None = None
    ratio: Share = 0.01
