"""Responses and inferences as jobs: what the tests of jobs ask of them, in either mode."""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple

import httpx2 as httpx

from tests.system.deployments import Client, Deployment, until

PIXELS: Final = {"name": "pixels", "shape": [2, 3], "datatype": "FP32", "data": [0.5, 1, 2, 3, 4, 5]}
MASK: Final = {"name": "mask", "shape": [2], "datatype": "BOOL", "data": [True, False]}
ASK: Final = {"model": "m", "input": "Say something.", "metadata": {"simulate": "tokens=7"}}
INFER: Final = "/v2/models/g/infer"
GENERIC: Final = {"kind": "kserve-v2", "units": "element of pixels", "context": 500, "max_tokens": 1}


class Route(NamedTuple):
    """A route, a request to it, and the tokens or units of its answer's charge."""

    path: str
    body: dict[str, Any]
    completion: int

    def told(self, answer: dict[str, Any]) -> str:
        """An answer without what names it and says when."""
        return re.sub(r"_(?:0[0-9a-f]{31}(?:-\d+)?)", "_ID", json.dumps({**answer, "created_at": 0}, sort_keys=True))


ROUTES: Final = (
    Route("/v1/responses", ASK, 7),
    Route("/v1/responses", ASK | {"tools": [{"type": "function", "name": "f"}], "max_output_tokens": 5}, 5),
    Route(INFER, {"inputs": [PIXELS, MASK]}, 0),
)
REFUSED: Final = (
    ("/v1/responses", ASK | {"previous_response_id": "resp_1"}),
    ("/v1/responses", ASK | {"background": True}),
    ("/v1/responses", ASK | {"store": True}),
    ("/v1/responses", ASK | {"tools": [{"type": "web_search"}]}),
    ("/v1/responses", ASK | {"input": []}),
    ("/v1/responses", ASK | {"max_output_tokens": 0}),
    ("/v1/responses", ASK | {"model": "g"}),
    ("/v1/responses", ASK | {"model": "none"}),
    ("/v1/chat/completions", {"model": "g", "messages": [{"role": "user", "content": "hi"}]}),
    ("/v2/models/m/infer", {"inputs": [PIXELS]}),
    ("/v2/models/none/infer", {"inputs": [PIXELS]}),
    (INFER, {"inputs": [MASK]}),
    (INFER, {"inputs": [PIXELS | {"data": [1] * 501}]}),
    (INFER, {"inputs": [PIXELS | {"parameters": {"shared_memory_region": "r"}}]}),
)


def defer(client: Client, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    """Hand a request in as a job."""
    return client.http.post(path, json=body, headers={"prefer": "respond-async", **headers})


def answered_alike(deployment: Deployment, client: Client, route: Route) -> None:
    """A job's result is the realtime lane's answer, and what is charged is what the model server produced, once."""
    at_once = client.http.post(route.path, json=route.body)
    assert at_once.status_code == 200, at_once.text
    handed_in = defer(client, route.path, route.body)
    assert (handed_in.status_code, handed_in.headers["preference-applied"]) == (202, "respond-async"), handed_in.text
    job = client.ended(handed_in.json()["id"])
    assert (job["status"], job["result"]["status_code"], job["endpoint"]) == ("succeeded", 200, route.path)
    assert route.told(job["result"]["body"]) == route.told(at_once.json())
    usage = job["usage"]

    def lines() -> list[dict[str, Any]]:
        return [line for line in deployment.model.produced() if line["request_id"] == job["id"]]

    until(lambda: bool(lines()))
    (line,) = lines()
    units = 6 if route.path == INFER else line["prompt"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (units, route.completion)
    assert line["completion"] == route.completion
    until(lambda: job["id"] in deployment.charges())
    assert deployment.charges()[job["id"]] == [units + route.completion]
    assert job["cost_nanos"] == 1000 * units + 2000 * route.completion


def repeated_alike(deployment: Deployment, client: Client, route: Route, key: str) -> None:
    """A key is one request, whichever lane it comes to, charged once."""
    first = defer(client, route.path, route.body, **{"idempotency-key": key})
    job = client.ended(first.json()["id"])
    again = defer(client, route.path, route.body, **{"idempotency-key": key})
    at_once = client.http.post(route.path, json=route.body, headers={"idempotency-key": key})
    for answer in (again, at_once):
        assert (answer.status_code, answer.json()) == (200, job["result"]["body"])
    changed = route.body | {"parameters" if route.path == INFER else "metadata": {"other": "body"}}
    other = defer(client, route.path, changed, **{"idempotency-key": key})
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_mismatch")
    begun = client.http.post(route.path, json=route.body, headers={"idempotency-key": f"{key}-at-once"})
    assert begun.status_code == 200

    def later() -> httpx.Response:
        return defer(client, route.path, route.body, **{"idempotency-key": f"{key}-at-once"})

    until(lambda: later().status_code == 200)  # before, the gateway knows that it ended, and nobody with what
    assert route.told(later().json()) == route.told(begun.json())
    assert len(deployment.charges()[job["id"]]) == 1
