"""Who may use which path: one table, and what is not in it is refused.

A scope of a key (``routes``) names the right-hand names, so that a key made for chat alone reads no usage.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Audience(StrEnum):
    """Whom a path serves."""

    ANYONE = "anyone"
    KEY = "key"  # any key in force whose scope allows the route; checked before the page runs
    ADMINISTRATOR = "administrator"  # a key that may administrate; how far it reaches is checked with each record
    RESERVATION = "reservation"  # the quota store checks key and scope in the same step that reserves


class Permission(NamedTuple):
    """Audience of a path, and its route's name in scopes, logs and metrics."""

    audience: Audience
    route: str


PERMISSIONS: dict[str, Permission] = {
    "/v1/chat/completions": Permission(Audience.RESERVATION, "chat.completions"),
    "/v1/completions": Permission(Audience.RESERVATION, "completions"),
    "/v1/embeddings": Permission(Audience.RESERVATION, "embeddings"),
    "/v1/responses": Permission(Audience.RESERVATION, "responses"),
    "/v2/models/{name:path}/infer": Permission(Audience.RESERVATION, "infer"),
    "/v1/async/chat/completions": Permission(Audience.RESERVATION, "chat.completions"),
    "/v1/async/completions": Permission(Audience.RESERVATION, "completions"),
    "/v1/async/embeddings": Permission(Audience.RESERVATION, "embeddings"),
    "/v1/async/responses": Permission(Audience.RESERVATION, "responses"),
    "/v1/jobs": Permission(Audience.KEY, "jobs"),
    "/v1/jobs/{id}": Permission(Audience.KEY, "jobs"),
    "/v1/jobs/{id}/events": Permission(Audience.KEY, "jobs"),
    "/v1/models": Permission(Audience.KEY, "models"),
    "/v1/models/{name:path}": Permission(Audience.KEY, "models"),
    "/v2/models/{name:path}/ready": Permission(Audience.KEY, "models"),
    "/v2/models/{name:path}": Permission(Audience.KEY, "models"),
    "/v1/usage": Permission(Audience.KEY, "usage"),
    "/v1/quota": Permission(Audience.KEY, "quota"),
    **{
        f"/admin/v1/{path}": Permission(Audience.ADMINISTRATOR, "admin")
        for path in (
            "organisations",
            "organisations/{organisation}",
            "organisations/{organisation}/teams",
            "organisations/{organisation}/teams/{team}",
            "organisations/{organisation}/keys",
            "organisations/{organisation}/keys/{key}",
            "organisations/{organisation}/keys/{key}/rotate",
            "organisations/{organisation}/limits",
            "organisations/{organisation}/limits/{limit:path}",
            "organisations/{organisation}/content",
            "organisations/{organisation}/jobs/{job}/content",
            "prices",
            "audit-log",
        )
    },
    "/health": Permission(Audience.ANYONE, "health"),
    "/health/live": Permission(Audience.ANYONE, "health"),
    "/health/ready": Permission(Audience.ANYONE, "health"),
    "/v2/health/live": Permission(Audience.ANYONE, "health"),
    "/v2/health/ready": Permission(Audience.ANYONE, "health"),
    "/openapi.json": Permission(Audience.ANYONE, "openapi"),
}

SCOPES = tuple(
    dict.fromkeys(each.route for each in PERMISSIONS.values() if each.audience in (Audience.KEY, Audience.RESERVATION))
)
"""The names of routes that a key's scope may have. Administration is no route: a key has the right to it apart."""

ASYNC_PREFIX = "/v1/async/"
"""Under it the same endpoints as elsewhere in ``/v1``, always answered with a job."""

HOT = {path: route for path, (audience, route) in PERMISSIONS.items() if audience is Audience.RESERVATION}
"""The paths that are dispatched without a framework."""

ENDPOINTS = {route: path.replace(":path", "") for path, route in HOT.items() if not path.startswith(ASYNC_PREFIX)}
"""Where clients find each route that takes requests."""
