"""The public door as one ASGI callable: hot paths go straight to ``Inference``, everything else through Starlette."""

from __future__ import annotations

import logging
from collections.abc import Awaitable

from starlette.applications import Starlette

from penstock.api.answers import HANDLERS
from penstock.api.departure import Receive
from penstock.api.exchange import Message, Scope, Send
from penstock.api.failures import BUG
from penstock.api.generic import inferred_model
from penstock.api.identification import request_id
from penstock.api.inference import Inference
from penstock.api.pages import Pages
from penstock.api.permissions import HOT, PERMISSIONS, Audience
from penstock.api.services import Services
from penstock.lanes.generic import ROUTE
from penstock.ports import RequestRecord

_log = logging.getLogger("penstock.api")
_QUIET = frozenset(path for path, permission in PERMISSIONS.items() if permission.audience is Audience.ANYONE)
"""Probes and the description are neither logged nor counted."""


class Application:
    """An ASGI application; made by ``application``."""

    def __init__(self, services: Services) -> None:
        self._inference = Inference(services)
        self._services = services
        self._pages = Starlette(routes=Pages(services).routes(), exception_handlers=HANDLERS)
        self._pages.router.redirect_slashes = False

    def paths(self) -> list[str]:
        """Every path that is answered, as it is declared."""
        return [*HOT, *(getattr(route, "path", "") for route in self._pages.routes)]

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http":
            route = HOT.get(scope["path"])
            if route is not None:
                return self._inference(route, scope, receive, send)
            if inferred_model(scope["path"]) is not None:
                return self._inference(ROUTE, scope, receive, send)
            return self._page(scope, receive, send)
        return self._pages(scope, receive, send)

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        clock = self._services.clock
        asked = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
        record = RequestRecord(request_id=request_id(asked), received_at_s=clock.monotonic_s())
        scope["penstock.record"] = record
        is_seen = scope["path"] not in _QUIET
        if is_seen:
            self._services.observer.started(record)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"].append((b"x-request-id", record.request_id.encode()))
            await send(message)

        try:
            await self._pages(scope, receive, send_named)
        except Exception as error:  # noqa: BLE001 - a bug must end one request only
            _log.exception("request %s: a bug ended it", record.request_id)
            record.error, record.outcome = type(error).__name__, BUG.outcome
        finally:
            failed = scope.get("penstock.failure")
            if failed is not None:
                record.outcome = failed.outcome
            record.total_ms = (clock.monotonic_s() - record.received_at_s) * 1000
            if is_seen:
                self._services.observer.finished(record)


def application(services: Services) -> Application:
    """Build the API.

    Args:
        services: Everything it calls; given by wiring.
    """
    return Application(services)
