"""The operations port: metrics, health with reasons, the audit, what is held."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from penstock.api.operations import operations_application
from tests.api.door import Door, listening

REASONS: list[str] = []


@pytest.fixture
def port() -> Iterator[Door]:
    """The operations port, listening."""

    async def readiness() -> tuple[str, ...]:
        return tuple(REASONS)

    async def audit() -> dict[str, list[str]]:
        return {"differences": []}

    async def holds() -> dict[str, int]:
        return {"acme": 1}

    app = operations_application(metrics=lambda: b"penstock_up 1\n", readiness=readiness, audit=audit, holds=holds)
    with listening(app) as (number, _):
        yield Door(port=number)
    REASONS.clear()


def test_metrics_are_prometheus_text(port: Door) -> None:
    answer = port.ask("GET", "/metrics", token=None)
    assert (answer.status, answer.body) == (200, b"penstock_up 1\n")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_readiness_says_why_not(port: Door) -> None:
    assert port.ask("GET", "/health/ready", token=None).status == 200
    REASONS.append("the ledger cannot be written")
    answer = port.ask("GET", "/health/ready", token=None)
    assert (answer.status, answer.json()) == (503, {"ready": False, "reasons": ["the ledger cannot be written"]})
    assert port.ask("GET", "/health/live", token=None).status == 200


def test_the_audit_is_json(port: Door) -> None:
    assert port.ask("GET", "/audit", token=None).json() == {"differences": []}


def test_what_is_held_is_json(port: Door) -> None:
    assert port.ask("GET", "/holds", token=None).json() == {"acme": 1}


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/models", 404), ("POST", "/metrics", 405)])
def test_nothing_else_is_there(port: Door, method: str, path: str, status: int) -> None:
    answer = port.ask(method, path, token=None)
    assert answer.status == status
    assert answer.error()["code"]
