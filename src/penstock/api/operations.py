"""The operations port: metrics, health, the audit, holds and scaling. Kept inside the cluster; it asks for no key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from penstock.api.answers import HANDLERS, Page, json_answer
from penstock.api.pages import live
from penstock.api.services import Readiness

Asked = Callable[[], Awaitable[Any]]
"""Anything that msgspec encodes, made when it is asked for."""

EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


def operations_application(
    *,
    metrics: Callable[[], bytes],
    readiness: Readiness,
    audit: Asked | None = None,
    holds: Asked | None = None,
    scaling: Callable[[str | None], Any] | None = None,
) -> Starlette:
    """Build the operations port's application.

    Args:
        metrics: Prometheus text exposition, made when it is asked for.
        audit: What ``penstock audit`` shows; no page where there is none to make.
        holds: What each organisation holds at this moment; the same.
        scaling: The figures of one model, or of all; the same.
    """

    async def exposition(request: Request) -> Response:
        return Response(metrics(), media_type=EXPOSITION)

    async def ready(request: Request) -> Response:
        reasons = await readiness()
        return json_answer({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def figures(request: Request) -> Response:
        assert scaling is not None
        return json_answer(scaling(request.query_params.get("model")))

    def answered(ask: Asked) -> Page:
        async def page(request: Request) -> Response:
            return json_answer(await ask())

        return page

    pages: dict[str, Page] = {"/metrics": exposition, "/health/live": live, "/health/ready": ready}
    pages |= {path: answered(ask) for path, ask in (("/audit", audit), ("/holds", holds)) if ask is not None}
    if scaling is not None:
        pages["/scaling"] = figures
    application = Starlette(
        routes=[Route(path, page) for path, page in pages.items()],
        exception_handlers=HANDLERS,
    )
    application.router.redirect_slashes = False
    return application
