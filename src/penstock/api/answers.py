"""Answers of everything but the hot path: JSON, and errors in OpenAI's shape whoever raised them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.failures import BUG, Failure, failure
from penstock.api.headers import Headers, rate_headers
from penstock.errors import InvalidRequest, MethodNotAllowed, NotFound, PenstockError

Page = Callable[[Request], Awaitable[Response]]


def json_answer(content: Any, *, status: int = 200, headers: Headers = []) -> Response:  # noqa: B006 - never changed
    """Anything that msgspec encodes."""
    return raw_answer(msgspec.json.encode(content), status=status, headers=headers)


def raw_answer(body: bytes, *, status: int, headers: Headers) -> Response:
    """JSON that is bytes already."""
    response = Response(body, status_code=status, media_type="application/json")
    response.raw_headers.extend(headers)
    return response


def failed_answer(failed: Failure) -> Response:
    """An error."""
    return raw_answer(failed.body, status=failed.status, headers=[*rate_headers(failed.readings), *failed.headers])


async def on_penstock_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of our own errors."""
    assert isinstance(error, PenstockError)
    failed = failure(error)
    request.scope["penstock.failure"] = failed
    return failed_answer(failed)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's handler of its own errors: no such path, no such method. The path is not repeated."""
    assert isinstance(error, HTTPException)
    mapped: PenstockError
    if error.status_code == 404:
        mapped = NotFound("there is nothing at this path; /openapi.json lists what there is", code="unknown_url")
    elif error.status_code == 405:
        mapped = MethodNotAllowed(
            "this path does not answer this method", param=(error.headers or {}).get("Allow", "GET")
        )
    else:
        mapped = InvalidRequest("the request cannot be understood")
    return await on_penstock_error(request, mapped)


async def on_bug(request: Request, error: Exception) -> Response:
    """Starlette's handler of everything else: it answers, and raises the error again for somebody to log."""
    return failed_answer(BUG)


HANDLERS = {PenstockError: on_penstock_error, HTTPException: on_http_exception, Exception: on_bug}
