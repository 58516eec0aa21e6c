"""The operations port: metrics, health and the audit. Kept inside the cluster; it asks for no key."""

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

EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


def operations_application(
    *, metrics: Callable[[], bytes], readiness: Readiness, audit: Callable[[], Awaitable[Any]] | None
) -> Starlette:
    """Build the operations port's application.

    Args:
        metrics: Prometheus text exposition, made when it is asked for.
        audit: Anything that msgspec encodes: what ``penstock audit`` shows. None: this process keeps no ledger.
    """

    async def exposition(request: Request) -> Response:
        return Response(metrics(), media_type=EXPOSITION)

    async def ready(request: Request) -> Response:
        reasons = await readiness()
        return json_answer({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    pages: dict[str, Page] = {"/metrics": exposition, "/health/live": live, "/health/ready": ready}
    if audit is not None:

        async def audited(request: Request) -> Response:
            return json_answer(await audit())

        pages["/audit"] = audited
    application = Starlette(
        routes=[Route(path, page) for path, page in pages.items()],
        exception_handlers=HANDLERS,
    )
    application.router.redirect_slashes = False
    return application
