"""The one place where the tree of ``penstock.errors`` becomes HTTP: status, headers, and a body in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from penstock.api.headers import Headers, retry_headers
from penstock.errors import (
    InvalidRequest,
    MethodNotAllowed,
    PenstockError,
    QuotaDenied,
    RequestError,
    StoreUnavailable,
    Unauthenticated,
    UpstreamError,
    UpstreamTimeout,
)
from penstock.lanes.calling import CLIENTS_FAULT
from penstock.quota.definitions import Kind
from penstock.quota.limits import parse_limit_id
from penstock.quota.operations import Denied, Reading, Refusal

HELD_RETRY_MS = 1000
UPSTREAM_RETRY_MS = 1000
_CHARACTERS_MAX = 2000

T = TypeVar("T", str, str | None)

BAD_KEY = "the API key is missing, or not valid; send `Authorization: Bearer psk_...` with a key that is in force"
"""One text for every cause, so that nobody learns which keys exist."""


class Failure(NamedTuple):
    """An answer that is an error.

    Args:
        outcome: For the request's record.
        headers: Beside those that every answer carries.
    """

    status: int
    body: bytes
    outcome: str
    headers: Headers = []  # noqa: RUF012 - never changed: answers copy it
    readings: tuple[Reading, ...] = ()


def error_body(message: str, *, kind: str, param: str | None = None, code: str | None = None) -> bytes:
    """``{"error": {...}}`` as OpenAI's clients read it, with what can be shown of others' words."""
    told = {"message": _shown(message), "type": kind, "param": _shown(param), "code": _shown(code)}
    return msgspec.json.encode({"error": told})


def _shown(text: T) -> T:
    """Without what moves cursors or turns lines around: names of fields and words of upstreams are repeated here."""
    if text is None or (text.isprintable() and len(text) <= _CHARACTERS_MAX):
        return text
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text[:_CHARACTERS_MAX])


BUG = Failure(
    500,
    error_body("something is wrong on our side; quote the x-request-id of this answer", kind="server_error"),
    "error",
)
STOPPING = Failure(
    503,
    error_body("the service is stopping; send the request again", kind="server_error", code="stopping"),
    "unavailable",
    retry_headers(1000),
)

_OUTCOMES = {401: "unauthenticated", 403: "forbidden"}
_CODES = {401: "invalid_api_key", 403: "insufficient_permissions", 404: "not_found", 405: "method_not_allowed"}


def failure(error: PenstockError) -> Failure:
    """Turn an error into its answer."""
    if isinstance(error, RequestError):
        return _of_request(error)
    if isinstance(error, QuotaDenied):
        return _of_denial(error)
    if isinstance(error, StoreUnavailable):
        return Failure(
            503,
            error_body(error.message, kind="server_error", code=error.code),
            "unavailable",
            retry_headers(max(1, error.retry_after_ms)),
        )
    if isinstance(error, UpstreamError):
        return _of_upstream(error)
    return BUG


def _of_request(error: RequestError) -> Failure:
    headers: Headers = []
    message = error.message
    if isinstance(error, Unauthenticated):
        message = BAD_KEY
        headers = [(b"www-authenticate", b"Bearer")]
    elif isinstance(error, MethodNotAllowed):
        headers = [(b"allow", (error.param or "GET").encode())]
        error.param = None
    return Failure(
        error.status,
        error_body(message, kind=error.type, param=error.param, code=error.code or _CODES.get(error.status)),
        _OUTCOMES.get(error.status, "invalid"),
        headers,
    )


def _of_denial(error: QuotaDenied) -> Failure:
    denied: Denied = error.denied
    limit = parse_limit_id(denied.limit)
    if denied.refusal is Refusal.NEVER:
        body = error_body(error.message, kind=InvalidRequest.type, code="larger_than_limit")
        return Failure(400, body, "denied", [], denied.readings)
    if denied.refusal is Refusal.USED_UP and limit.kind is Kind.WINDOW:
        body = error_body(error.message, kind="insufficient_quota", code="insufficient_quota")
        headers = [*retry_headers(max(1, denied.retry_after_ms)), (b"x-should-retry", b"false")]
        return Failure(429, body, "denied", headers, denied.readings)
    wait_ms = HELD_RETRY_MS if denied.refusal is Refusal.HELD else max(1, denied.retry_after_ms)
    body = error_body(error.message, kind=limit.metric.value, code="rate_limit_exceeded")
    return Failure(429, body, "denied", retry_headers(wait_ms), denied.readings)


def _of_upstream(error: UpstreamError) -> Failure:
    if isinstance(error, UpstreamTimeout):
        body = error_body(error.message, kind="server_error", code="upstream_timeout")
        return Failure(504, body, "upstream_error")
    if error.status in CLIENTS_FAULT:
        return Failure(error.status, _refusal_body(error), "upstream_refused")
    if error.status in (429, 503):
        body = error_body(
            "the model server is overloaded; send the request again", kind="server_error", code="upstream_overloaded"
        )
        return Failure(503, body, "upstream_error", retry_headers(max(1, error.retry_after_ms or UPSTREAM_RETRY_MS)))
    return Failure(502, error_body(error.message, kind="server_error", code="upstream_error"), "upstream_error")


def _refusal_body(error: UpstreamError) -> bytes:
    """The model server's own words for refusing, and nothing else of its answer."""
    try:
        answer = msgspec.json.decode(error.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        answer = None
    said: Mapping[str, Any] = answer if isinstance(answer, dict) else {}
    said = said["error"] if isinstance(said.get("error"), dict) else said

    def text(name: str) -> str | None:
        value = said.get(name)
        return value[:_CHARACTERS_MAX] if isinstance(value, str) else None

    message = text("message") or "the model server refused the request"
    return error_body(message, kind=InvalidRequest.type, param=text("param"), code=text("code") or "upstream_refused")
