"""Traces, where the configuration asks for them; where it does not, nothing of OpenTelemetry is even imported."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from penstock import __version__
from penstock.adapters.observing.fan_out import FanOut
from penstock.adapters.observing.vocabulary import Vocabulary
from penstock.config import Configuration
from penstock.errors import ConfigurationError
from penstock.lanes.generic import ROUTE
from penstock.lanes.models import PATHS
from penstock.ports import Observer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from penstock.adapters.tracing.ledger import LedgerTracer
    from penstock.adapters.tracing.requests import RequestTracer

SCOPE = "penstock"
Application = Callable[[Any, Any, Any], Awaitable[None]]


@asynccontextmanager
async def request_tracer(
    configuration: Configuration, service: str, vocabulary: Vocabulary
) -> AsyncIterator[RequestTracer | None]:
    """What follows requests and jobs through this process; None if nothing is traced.

    Args:
        service: ``service.name`` of its spans.

    Raises:
        ConfigurationError: Traces are wanted, and OpenTelemetry is not installed.
    """
    tracing = configuration.tracing
    async with _provider(tracing.endpoint, service, tracing.ratio) as provider:
        if provider is None:
            yield None
            return
        from penstock.adapters.tracing.requests import RequestTracer

        paths = {**PATHS, ROUTE: "/v2/models/{name}/infer"}
        yield RequestTracer(provider.get_tracer(SCOPE, __version__), vocabulary, paths=paths)


@asynccontextmanager
async def ledger_tracer(configuration: Configuration, service: str) -> AsyncIterator[LedgerTracer | None]:
    """What follows events into the ledger; None if nothing is traced. Raises like ``request_tracer``."""
    async with _provider(configuration.tracing.endpoint, service, 1.0) as provider:
        if provider is None:
            yield None
            return
        from penstock.adapters.tracing.ledger import LedgerTracer

        yield LedgerTracer(provider.get_tracer(SCOPE, __version__))


@asynccontextmanager
async def traced_server(endpoint: str | None, service: str) -> AsyncIterator[Callable[[Application], Application]]:
    """What to put around a server so that it is part of its callers' traces; itself if there is no ``endpoint``."""
    async with _provider(endpoint, service, 0.0) as provider:
        if provider is None:
            yield lambda application: application
            return
        from penstock.adapters.tracing.serving import TracedServer

        tracer = provider.get_tracer(SCOPE, __version__)
        yield lambda application: TracedServer(application, tracer)


def observers(tracer: RequestTracer | None, *others: Observer) -> FanOut:
    """All observers of a process, the tracer among them if there is one."""
    return FanOut(*others) if tracer is None else FanOut(*others, tracer)


@asynccontextmanager
async def _provider(endpoint: str | None, service: str, ratio: float) -> AsyncIterator[TracerProvider | None]:
    """What sends spans on, and at the end what is left of them."""
    if endpoint is None:
        yield None
        return
    try:
        from penstock.adapters.tracing.exporting import open_provider
    except ImportError as error:
        raise ConfigurationError(
            (f"tracing.endpoint: needs OpenTelemetry ({error.name} is missing); pip install 'penstock[tracing]'",)
        ) from error
    provider = open_provider(endpoint, service=service, version=__version__, ratio=ratio)
    try:
        yield provider
    finally:
        await asyncio.to_thread(provider.shutdown)
