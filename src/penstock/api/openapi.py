"""The OpenAPI 3.1 description of the public API, written out so that it says what we mean.

A test holds it against the routes, so a path without a description cannot be added.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

from penstock.api.admin_openapi import admin_paths, admin_schemas
from penstock.api.permissions import ASYNC_PREFIX, PERMISSIONS, Audience
from penstock.ports import JobState

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
    "ResponseRequest": _object(
        ("model", "input"),
        model=_TEXT,
        input={"oneOf": [_TEXT, {"type": "array", "minItems": 1, "items": {"type": "object"}}]},
        instructions=_NULLABLE_TEXT,
        max_output_tokens=_COUNT,
        stream={"type": "boolean"},
        store={"const": False, "description": "Nothing is kept: previous_response_id is refused."},
        tools={"type": "array", "items": _object(("type", "name"), type={"const": "function"}, name=_TEXT)},
    ),
    "InferenceRequest": _object(
        ("inputs",),
        inputs={
            "type": "array",
            "minItems": 1,
            "items": _object(
                ("name", "shape", "datatype", "data"),
                name=_TEXT,
                shape={"type": "array", "items": _NATURAL},
                datatype=_TEXT,
                data={"type": "array"},
            ),
        },
        outputs={"type": "array", "items": _object(("name",), name=_TEXT)},
    ),
    "GenericModel": _object(("name", "platform"), name=_TEXT, platform=_TEXT, versions={"type": "array"}),
    "GenericReady": _object(("name", "ready"), name=_TEXT, ready={"type": "boolean"}),
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
    "Job": _object(
        ("id", "object", "status", "model"),
        id=_TEXT,
        object={"const": "job"},
        status={"enum": [state.value for state in JobState]},
        model=_TEXT,
        endpoint={**_NULLABLE_TEXT, "description": "Known once it has a result."},
        team=_NULLABLE_TEXT,
        key=_TEXT,
        created_at=_NULLABLE_TEXT,
        started_at=_NULLABLE_TEXT,
        finished_at=_NULLABLE_TEXT,
        expires_at={**_NULLABLE_TEXT, "description": "Its own deadline."},
        cancel_requested={"type": "boolean", "description": "It still runs, and will stop within seconds."},
        reason={**_NULLABLE_TEXT, "description": "Why it did not succeed."},
        usage={
            "oneOf": [
                _object(
                    ("prompt_tokens", "cached_tokens", "completion_tokens", "total_tokens", "source"),
                    prompt_tokens=_NATURAL,
                    cached_tokens=_NATURAL,
                    completion_tokens=_NATURAL,
                    total_tokens=_NATURAL,
                    source={"enum": ["upstream", "local", "none"]},
                ),
                {"type": "null"},
            ]
        },
        cost_nanos={"type": ["integer", "null"], "description": "Nano-dollars, once they are charged."},
        result={
            "oneOf": [_object(("status_code", "body"), status_code=_NATURAL, body={}), {"type": "null"}],
            "description": "What the endpoint would have answered. Not in lists.",
        },
    ),
    "Jobs": _object(
        ("object", "data", "has_more", "next_cursor"),
        object={"const": "list"},
        data=_list_of("Job"),
        has_more={"type": "boolean"},
        next_cursor=_NULLABLE_TEXT,
    ),
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

_JOB = {"name": "id", "in": "path", "required": True, "schema": _TEXT, "description": "As Location told it."}
_WAIT = _query("wait", "Answer once the job has ended, or after this long: 0s to 60s.")
_JOB_FILTERS = [
    _query("state", "Only jobs in this state."),
    _query("model", "Only jobs for this model."),
    _query("created_after", f"{_INSTANT}; included."),
    _query("created_before", f"{_INSTANT}; not included."),
    _query("limit", "Jobs in a page, 1 to 100; 20 if not given."),
    _query("cursor", "The next_cursor of the page before."),
]


def _header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": _TEXT, "description": description}


_PREFER = _header(
    "Prefer", "`respond-async` for a job instead of an answer; with `wait=10`, the answer if it comes within 10 s."
)
_IDEMPOTENCY_KEY = _header(
    "Idempotency-Key", "The same key is the same request, billed once. Bare or quoted, up to 255 characters."
)
_POSTS = {
    "/v1/chat/completions": ("ChatRequest", "Answer a conversation."),
    "/v1/completions": ("CompletionRequest", "Continue a text."),
    "/v1/embeddings": ("EmbeddingRequest", "Turn texts into vectors."),
    "/v1/responses": ("ResponseRequest", "Answer a conversation, as a response."),
    "/v2/models/{name}/infer": ("InferenceRequest", "Ask a generic model, by the Open Inference Protocol."),
    "/v1/async/chat/completions": ("ChatRequest", "Answer a conversation later."),
    "/v1/async/completions": ("CompletionRequest", "Continue a text later."),
    "/v1/async/embeddings": ("EmbeddingRequest", "Turn texts into vectors later."),
    "/v1/async/responses": ("ResponseRequest", "Answer a conversation later, as a response."),
}
_GETS: dict[str, tuple[str, str, list[dict[str, Any]]]] = {
    "/v1/models": ("Models", "The models that this key may use.", []),
    "/v1/models/{name}": ("Model", "One model.", [_NAME]),
    "/v2/models/{name}": ("GenericModel", "One model, where KServe's clients look.", [_NAME]),
    "/v2/models/{name}/ready": ("GenericReady", "Whether it can be asked, where KServe's clients look.", [_NAME]),
    "/v1/usage": ("Usage", "What the organisation used, and what it holds now.", _USAGE_PARAMETERS),
    "/v1/jobs": ("Jobs", "The organisation's jobs, newest first.", _JOB_FILTERS),
    "/v1/jobs/{id}": ("Job", "One job, with its result once it has one.", [_JOB, _WAIT]),
    "/v1/jobs/{id}/events": (
        "Job",
        "Each step of a job as a server-sent event, until its end.",
        [_JOB, _header("Last-Event-ID", "Of the last event seen: those after it follow.")],
    ),
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
    "409": "A request with this Idempotency-Key is under way, or has ended without an answer that was kept.",
    "422": "This Idempotency-Key came with another body.",
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
    is_async = path.startswith(ASYNC_PREFIX)
    answer = _answer("Any", "As OpenAI answers; with stream: true, server-sent events that end in [DONE].")
    responses = {"200": answer, **_errors(_INFERENCE_REFUSALS)}
    parameters = [_IDEMPOTENCY_KEY, _PREFER]
    responses["202"] = _answer("Job", "It is a job now; Location says where to look.")
    if "{name}" in path:
        parameters.append(_NAME)
    if path != "/v1/embeddings" and not is_async and "{name}" not in path:
        answer["content"]["text/event-stream"] = {"schema": _TEXT}
    return {
        "summary": summary,
        "operationId": ("async." if is_async else "") + PERMISSIONS[declared(path)].route,
        "security": [{"key": []}],
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
        },
        "responses": responses,
    }


def _get(path: str, schema: str, summary: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    is_open = PERMISSIONS[declared(path)].audience is Audience.ANYONE
    responses = {"200": _answer(schema, summary)}
    if schema == "Ready":
        responses["503"] = _answer("Ready", "Not now.")
    if not is_open:
        responses |= _errors(_REFUSALS | {"503": "The quota store cannot answer now; try again."})
    if path.startswith("/v1/jobs/{id}"):
        responses |= _errors({"404": "There is no such job, or it is not yours."})
    if path.endswith("/events"):
        responses["200"] = {"description": summary, "content": {"text/event-stream": {"schema": _TEXT}}}
        responses["204"] = {"description": "The last event was seen already: do not come again."}
    if "/models/{name}" in path:
        responses |= _errors({"404": "There is no such model, or not for this key."})
    return {
        "summary": summary,
        "operationId": path.strip("/").replace("/", ".").replace("{name}", "one").replace("{id}", "one"),
        "security": [] if is_open else [{"key": []}],
        "parameters": parameters,
        "responses": responses,
    }


def _delete() -> dict[str, Any]:
    refusals = _REFUSALS | {"404": "There is no such job, or it is not yours.", "409": "The job has ended already."}
    return {
        "summary": "Cancel a job: one that waits ends at once, one that runs stops within seconds.",
        "operationId": "v1.jobs.one.cancel",
        "security": [{"key": []}],
        "parameters": [_JOB],
        "responses": {
            "200": _answer("Job", "It is cancelled, and nothing is charged."),
            "202": _answer("Job", "It runs, will stop, and is charged for what was produced."),
            **_errors(refusals | {"503": "The quota store cannot answer now; try again."}),
        },
    }


def declared(path: str) -> str:
    """A path of the description as the routes spell it."""
    return path.replace("{name}", "{name:path}").replace("{limit}", "{limit:path}")


@cache
def description() -> dict[str, Any]:
    """The whole description."""
    paths: dict[str, Any] = {path: {"post": _post(path, *rest)} for path, rest in _POSTS.items()}
    paths |= {path: {"get": _get(path, *rest)} for path, rest in _GETS.items()}
    paths["/v1/jobs/{id}"]["delete"] = _delete()
    paths |= admin_paths()
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
            "schemas": _SCHEMAS | admin_schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key, psk_..."}},
        },
    }
