"""The part of the OpenAPI description about ``/admin/v1``; what is sent is described by the types that read it."""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.api import admin_bodies as bodies

ROOT = "/admin/v1"
_ORGANISATION = f"{ROOT}/organisations/{{organisation}}"
_SENT = (
    bodies.NewOrganisation,
    bodies.OrganisationChange,
    bodies.NewTeam,
    bodies.NewKey,
    bodies.KeyChange,
    bodies.Rotation,
    bodies.NewLimit,
    bodies.LimitChange,
    bodies.NewPrice,
)
_TEXT = {"type": "string"}
_REFUSALS = {
    "400": "The request is wrong.",
    "401": "The key is missing or not in force.",
    "403": "The key may not administrate this, or would give away more than it has.",
    "404": "There is no such thing, or it is not yours.",
    "503": "The database cannot answer now; try again.",
}
_CHANGED = _REFUSALS | {
    "409": "The configuration file owns it (managed_by_file), or it is there already.",
    "412": "Somebody else changed it since: If-Match is not its ETag.",
    "413": "The body is too large.",
    "415": "The body is not declared as JSON.",
}
_PAGED = [("limit", "Entries in a page, 1 to 100; 20 if not given."), ("cursor", "The next_cursor of the page before.")]
_AUDIT = [
    ("organisation", "Only changes of this organisation."),
    ("actor", "Only what they changed, such as key:acme/ab12cd."),
    ("action", "Only this kind of change, such as keys.revoke."),
    ("subject", "Only changes of this."),
    ("start", "An ISO date or time, or Unix seconds; included."),
    ("end", "The same; not included."),
]

# path, method, summary, type of the body, status
_OPERATIONS: tuple[tuple[str, str, str, type[bodies.Body] | None, int], ...] = (
    (f"{ROOT}/organisations", "get", "Organisations, by name.", None, 200),
    (f"{ROOT}/organisations", "post", "Add an organisation with its limits.", bodies.NewOrganisation, 201),
    (_ORGANISATION, "get", "One organisation.", None, 200),
    (_ORGANISATION, "patch", "Change policy and retention.", bodies.OrganisationChange, 200),
    (_ORGANISATION, "delete", "Remove it: it may use nothing more, its figures stay.", None, 204),
    (f"{_ORGANISATION}/teams", "get", "Its teams.", None, 200),
    (f"{_ORGANISATION}/teams", "post", "Add a team.", bodies.NewTeam, 201),
    (f"{_ORGANISATION}/teams/{{team}}", "delete", "Remove a team with its limits.", None, 204),
    (f"{_ORGANISATION}/keys", "get", "Its keys, by age, without secrets.", None, 200),
    (f"{_ORGANISATION}/keys", "post", "Make a key; the answer shows it, this once.", bodies.NewKey, 201),
    (f"{_ORGANISATION}/keys/{{key}}", "get", "One key, without its secret.", None, 200),
    (f"{_ORGANISATION}/keys/{{key}}", "patch", "Change name, team, scope or expiry.", bodies.KeyChange, 200),
    (f"{_ORGANISATION}/keys/{{key}}", "delete", "Revoke it, for good.", None, 200),
    (f"{_ORGANISATION}/keys/{{key}}/rotate", "post", "Give it a second secret, shown this once.", bodies.Rotation, 200),
    (f"{_ORGANISATION}/limits", "get", "Limits of the organisation, its teams and keys.", None, 200),
    (f"{_ORGANISATION}/limits", "post", "Add a limit.", bodies.NewLimit, 201),
    (f"{_ORGANISATION}/limits/{{limit}}", "get", "One limit; its id contains slashes.", None, 200),
    (f"{_ORGANISATION}/limits/{{limit}}", "patch", "Change its cap.", bodies.LimitChange, 200),
    (f"{_ORGANISATION}/limits/{{limit}}", "delete", "Take it away.", None, 204),
    (f"{_ORGANISATION}/content", "delete", "Erase stored prompts, results and answers.", None, 200),
    (f"{_ORGANISATION}/jobs/{{job}}/content", "delete", "The same of one job.", None, 200),
    (f"{ROOT}/prices", "get", "Prices of models and their history.", None, 200),
    (f"{ROOT}/prices", "post", "A price from a moment on.", bodies.NewPrice, 201),
    (f"{ROOT}/audit-log", "get", "Who changed what, newest first.", None, 200),
)
_LISTS = {f"{ROOT}/organisations", f"{_ORGANISATION}/keys", f"{ROOT}/prices", f"{ROOT}/audit-log"}


def admin_paths() -> dict[str, Any]:
    """Every path, with its methods."""
    paths: dict[str, Any] = {}
    for path, method, summary, sent, status in _OPERATIONS:
        paths.setdefault(path, {})[method] = _operation(path, method, summary, sent, status)
    return paths


def admin_schemas() -> dict[str, Any]:
    """What the paths refer to."""
    _, found = msgspec.json.schema_components(_SENT, ref_template="#/components/schemas/{name}")
    return {**found, "Record": {"type": "object", "required": ["object"], "properties": {"object": _TEXT}}}


def _operation(path: str, method: str, summary: str, sent: type[bodies.Body] | None, status: int) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": summary}
    if status != 204:
        answer["content"] = {"application/json": {"schema": {"$ref": "#/components/schemas/Record"}}}
    refusals = _REFUSALS if method == "get" else _CHANGED
    if method == "patch":
        refusals = refusals | {"428": "If-Match was not sent."}
    operation: dict[str, Any] = {
        "summary": summary,
        "operationId": ".".join(part.strip("{}") for part in path.strip("/").split("/")) + f".{method}",
        "security": [{"key": []}],
        "parameters": _parameters(path, method),
        "responses": {
            str(status): answer,
            **{
                code: {
                    "description": why,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                }
                for code, why in refusals.items()
            },
        },
    }
    if sent is not None:
        schema = {"$ref": f"#/components/schemas/{sent.__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _parameters(path: str, method: str) -> list[dict[str, Any]]:
    found = [
        {"name": part.strip("{}"), "in": "path", "required": True, "schema": _TEXT}
        for part in path.split("/")
        if part.startswith("{")
    ]
    asked = list(_PAGED) if method == "get" and path in _LISTS else []
    if method == "get" and path.endswith("/audit-log"):
        asked += _AUDIT
    if method == "get" and path.endswith("/prices"):
        asked.append(("model", "Only the prices of this model."))
    found += [
        {"name": name, "in": "query", "required": False, "schema": _TEXT, "description": why} for name, why in asked
    ]
    if method in ("patch", "delete"):
        why = "The ETag that was read, or * for whatever it is now. A PATCH needs it."
        found.append({"name": "If-Match", "in": "header", "required": False, "schema": _TEXT, "description": why})
    return found
