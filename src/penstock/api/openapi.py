"""The OpenAPI 3.1 description of the public API, written out so that it says what we mean.

A test holds it against the routes, so a path without a description cannot be added.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

from penstock.api.permissions import PERMISSIONS, Audience

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 1}
_NATURAL = {"type": "integer", "minimum": 0}
_TOKENS = {"type": "array", "items": _NATURAL, "minItems": 1}
_PROMPTS = {
    "oneOf": [
        _TEXT,
        {"type": "array", "items": _TEXT, "minItems": 1},
        _TOKENS,
        {"type": "array", "items": _TOKENS, "minItems": 1},
    ]
}


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _list_of(name: str) -> dict[str, Any]:
    return {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}}


_GENERATION = {
    "model": _TEXT,
    "n": {**_COUNT, "maximum": 128},
    "max_tokens": {**_COUNT, "description": "Of each output. Not together with max_completion_tokens."},
    "max_completion_tokens": _COUNT,
    "stream": {"type": "boolean"},
    "stream_options": _object(include_usage={"type": "boolean"}),
}
_SUMS = {
    "requests": _NATURAL,
    "prompt_tokens": _NATURAL,
    "cached_tokens": {**_NATURAL, "description": "A part of prompt_tokens."},
    "completion_tokens": _NATURAL,
    "total_tokens": _NATURAL,
    "cost_nanos": {**_NATURAL, "description": "Nano-dollars."},
    "cost_usd": {"type": "string", "description": "The same, in dollars, exactly."},
}
_NULLABLE_TEXT = {"type": ["string", "null"]}
_SCHEMAS: dict[str, Any] = {
    "Error": _object(
        ("error",),
        error=_object(
            ("message", "type", "param", "code"),
            message=_TEXT,
            type=_TEXT,
            param=_NULLABLE_TEXT,
            code=_NULLABLE_TEXT,
        ),
    ),
    "ChatRequest": _object(
        ("model", "messages"),
        messages={"type": "array", "minItems": 1, "items": _object(("role",), role=_TEXT)},
        **_GENERATION,
    ),
    "CompletionRequest": _object(
        ("model", "prompt"), prompt=_PROMPTS, best_of={**_COUNT, "maximum": 128}, **_GENERATION
    ),
    "EmbeddingRequest": _object(
        ("model", "input"),
        model=_TEXT,
        input=_PROMPTS,
        encoding_format={"enum": ["float", "base64"]},
        dimensions=_COUNT,
    ),
    "Model": _object(
        ("id", "object"), id=_TEXT, object={"const": "model"}, created=_NATURAL, owned_by=_TEXT, context_window=_NATURAL
    ),
    "Models": _object(("object", "data"), object={"const": "list"}, data=_list_of("Model")),
    "UsageRow": _object(tuple(_SUMS), day=_TEXT, model=_TEXT, key=_TEXT, team=_NULLABLE_TEXT, **_SUMS),
    "Usage": _object(
        ("object", "start", "end", "group_by", "data", "totals", "held"),
        object={"const": "list"},
        start=_TEXT,
        end=_TEXT,
        group_by={"type": "array", "items": _TEXT},
        data=_list_of("UsageRow"),
        totals=_object(tuple(_SUMS), **_SUMS),
        held=_object(("requests", "tokens"), requests=_NATURAL, tokens=_NATURAL),
    ),
    "Limit": _object(
        ("id", "description", "metric", "kind", "cap", "used", "held", "available", "resets_at"),
        id=_TEXT,
        description=_TEXT,
        metric={"enum": ["tokens", "requests", "cost", "concurrency"]},
        kind={"enum": ["window", "rate", "strict_rate", "concurrency"]},
        model=_NULLABLE_TEXT,
        cap=_NATURAL,
        used=_NATURAL,
        held=_NATURAL,
        available={"type": "integer"},
        resets_at=_NULLABLE_TEXT,
        resets_at_ms={"type": ["integer", "null"]},
    ),
    "Limits": _object(("object", "data"), object={"const": "list"}, data=_list_of("Limit")),
    "Live": _object(("live",), live={"const": True}),
    "Ready": _object(("ready",), ready={"type": "boolean"}),
    "Any": {"type": "object"},
}


def _answer(schema: str, description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }


def _query(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": _TEXT, "description": description}


_INSTANT = "An ISO date, an ISO time (UTC unless it says otherwise), or Unix seconds"
_USAGE_PARAMETERS = [
    _query("start", f"{_INSTANT}; included. Default: the first of this month."),
    _query("end", f"{_INSTANT}; not included. Default: the first of next month."),
    _query("group_by", "Any of day, model, key, team, separated by commas."),
]
_NAME = {"name": "name", "in": "path", "required": True, "schema": _TEXT, "description": "May contain slashes."}

_POSTS = {
    "/v1/chat/completions": ("ChatRequest", "Answer a conversation."),
    "/v1/completions": ("CompletionRequest", "Continue a text."),
    "/v1/embeddings": ("EmbeddingRequest", "Turn texts into vectors."),
}
_GETS: dict[str, tuple[str, str, list[dict[str, Any]]]] = {
    "/v1/models": ("Models", "The models that this key may use.", []),
    "/v1/models/{name}": ("Model", "One model.", [_NAME]),
    "/v1/usage": ("Usage", "What the organisation used, and what it holds now.", _USAGE_PARAMETERS),
    "/v1/quota": ("Limits", "The limits that this key's requests fall under, as they stand.", []),
    "/health": ("Live", "Whether the process answers.", []),
    "/health/live": ("Live", "Whether the process answers.", []),
    "/health/ready": ("Ready", "Whether requests should be sent here.", []),
    "/v2/health/live": ("Live", "The same as /health/live, where KServe's clients look.", []),
    "/v2/health/ready": ("Ready", "The same as /health/ready, where KServe's clients look.", []),
    "/openapi.json": ("Any", "This description.", []),
}
_REFUSALS = {
    "400": "The request is wrong, or larger than a limit will ever allow.",
    "401": "The key is missing or not in force.",
    "403": "The key's scope excludes this.",
}
_INFERENCE_REFUSALS = _REFUSALS | {
    "404": "There is no such model.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not declared as JSON.",
    "429": "A limit refused: rate_limit_exceeded (try again) or insufficient_quota (do not).",
    "502": "The model server failed.",
    "503": "The quota store, the model server or this service cannot answer now; try again.",
    "504": "The model server was too slow.",
}


def _errors(refusals: dict[str, str]) -> dict[str, Any]:
    return {status: _answer("Error", why) for status, why in refusals.items()}


def _post(path: str, schema: str, summary: str) -> dict[str, Any]:
    answer = _answer("Any", "As OpenAI answers; with stream: true, server-sent events that end in [DONE].")
    if path != "/v1/embeddings":
        answer["content"]["text/event-stream"] = {"schema": _TEXT}
    return {
        "summary": summary,
        "operationId": PERMISSIONS[path].route,
        "security": [{"key": []}],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
        },
        "responses": {"200": answer, **_errors(_INFERENCE_REFUSALS)},
    }


def _get(path: str, schema: str, summary: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    is_open = PERMISSIONS[declared(path)].audience is Audience.ANYONE
    responses = {"200": _answer(schema, summary)}
    if schema == "Ready":
        responses["503"] = _answer("Ready", "Not now.")
    if not is_open:
        responses |= _errors(_REFUSALS | {"503": "The quota store cannot answer now; try again."})
    if path == "/v1/models/{name}":
        responses |= _errors({"404": "There is no such model, or not for this key."})
    return {
        "summary": summary,
        "operationId": path.strip("/").replace("/", ".").replace("{name}", "one"),
        "security": [] if is_open else [{"key": []}],
        "parameters": parameters,
        "responses": responses,
    }


def declared(path: str) -> str:
    """A path of the description as the routes spell it."""
    return path.replace("{name}", "{name:path}")


@cache
def description() -> dict[str, Any]:
    """The whole description."""
    paths: dict[str, Any] = {path: {"post": _post(path, *rest)} for path, rest in _POSTS.items()}
    paths |= {path: {"get": _get(path, *rest)} for path, rest in _GETS.items()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Penstock",
            "version": version("penstock"),
            "summary": "OpenAI-compatible inference with exact token quotas.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key, psk_..."}},
        },
    }
