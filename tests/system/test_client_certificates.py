"""Stores that ask their clients for a certificate: with one they serve processes and streams, without one nobody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import trustme
from sqlalchemy import text

from penstock.errors import ConfigurationError, StoreUnavailable
from penstock.lanes.credentials import mint
from penstock.wiring.bento import stream_environment
from penstock.wiring.broker import open_management
from penstock.wiring.database import cluster_engine
from tests.system.bento import CHAT, VHOST, Bento, send
from tests.system.queue_lane import until
from tests.system.secured_stores import Stores, define, prepare
from tests.system.services import free_port

pytestmark = pytest.mark.slow

WITHOUT: dict[str, Any] = {"certificate": None, "key": None}
TOKEN = mint("acme", "k1", secret=bytes(32))
STORES = ["postgresql", "redis", "rabbitmq"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    made = Stores(tmp_path_factory.mktemp("asking"), asks=True)
    made.start()
    yield made
    made.stop()


def gateway(stores: Stores, name: str, **changes: dict[str, Any]) -> tuple[Bento, str]:
    """The stream, not yet started, and where it listens."""
    port = free_port()
    environment = stream_environment(stores.configuration(**changes), "gateway", stores.environment)
    stream = Bento(stores.folder / name, "gateway", {**environment, "PENSTOCK_GATEWAY_ADDRESS": f"127.0.0.1:{port}"})
    return stream, f"http://127.0.0.1:{port}/v1/async/chat/completions"


def accepted(url: str) -> Any:
    return send(url, CHAT, **{"authorization": f"Bearer {TOKEN}", "content-type": "application/json"})


def result_of(job: str) -> bytes:
    return json.dumps({
        "job": job, "organisation": "acme", "model": "m", "status": "failed", "http_status": 502, "body": None,
        "reason": "x", "usage": None, "attempts": 1, "started_at_ms": 1, "finished_at_ms": 2,
        "arguments": {"reservation": job, "organisation": "acme", "model": "m", "route": "chat.completions"},
    }).encode()  # fmt: skip


async def published(stores: Stores, body: bytes) -> None:
    message = {"properties": {}, "routing_key": "results", "payload": body.decode(), "payload_encoding": "string"}
    async with open_management(stores.configuration(), None, stores.environment) as api:
        _, said = await api.ask("POST", "exchanges", VHOST, "penstock.results", "publish", body=message)
    assert said == {"routed": True}


def is_settled(stores: Stores, job: str, **changes: dict[str, Any]) -> bool:
    engine = cluster_engine(stores.configuration(**changes), None)
    try:
        with engine.connect() as connection:
            return bool(connection.scalar(text("SELECT settled FROM results WHERE job = :job"), {"job": job}))
    finally:
        engine.dispose()


def test_with_a_certificate_a_job_goes_through_every_store(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of two of them is no name in their certificates: ``server_name`` is what is checked."""
    named = {
        "postgresql": {"url": f"postgresql://127.0.0.1:{stores.postgresql.port}/postgres", "server_name": "localhost"},
        "rabbitmq": {
            "url": f"amqps://127.0.0.1:{stores.rabbitmq.port}/penstock", "server_name": "localhost",
            "management": f"https://127.0.0.1:{stores.rabbitmq.management_port}",
        },
    }  # fmt: skip
    prepare(stores, stores.configuration(**named), monkeypatch)
    assert not asyncio.run(define(stores.configuration(), TOKEN)).holds
    collector = Bento(
        stores.folder, "collector", stream_environment(stores.configuration(**named), "collector", stores.environment)
    )
    collector.start()
    door, url = gateway(stores, "with", **named)
    door.start(is_up=door.publishes)
    try:
        answer = accepted(url)
        assert answer.status == 202, answer.raw + door.log.read_bytes()
        job = answer.body["id"]
        asyncio.run(published(stores, result_of(job)))
        until(lambda: is_settled(stores, job, **named), "the result is stored and settled")
    finally:
        door.stop()
        collector.stop()


@pytest.mark.parametrize("store", STORES)
def test_without_a_certificate_a_store_is_not_used_and_the_error_says_what_to_give(
    stores: Stores, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreUnavailable, match=rf"give `certificate` and `key` of stores\.{store}"):
        prepare(stores, stores.configuration(**{store: WITHOUT}), monkeypatch)


@pytest.mark.parametrize("store", STORES)
def test_a_certificate_of_another_authority_opens_no_store(
    stores: Stores, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = stores.certificate(trustme.CA(), "foreign")
    with pytest.raises(StoreUnavailable, match=r"stores\.|unknown ca|TLS"):
        prepare(stores, stores.configuration(**{store: foreign}), monkeypatch)


def test_a_stream_without_certificates_accepts_nothing_and_its_log_says_why(stores: Stores) -> None:
    door, url = gateway(stores, "without", rabbitmq=WITHOUT)
    door.start()
    try:
        assert accepted(url).status == 503
        until(lambda: "certificate required" in door.log.read_text(), "the log names the cause")
    finally:
        door.stop()


def test_a_key_of_another_certificate_is_a_problem_with_its_fix(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = stores.certificate(trustme.CA(), "another")
    with pytest.raises(ConfigurationError, match=r"stores\.redis\.key: .* name a pair that belongs together"):
        prepare(stores, stores.configuration(redis={"key": other["key"]}), monkeypatch)


def test_redis_is_reached_by_an_address_that_its_certificate_does_not_name(stores: Stores) -> None:
    """And no stream of Bento does it: what it would check is the address."""
    named = {"url": f"rediss://127.0.0.1:{stores.redis.port}", "server_name": "localhost"}
    configuration = stores.configuration(redis=named)
    with pytest.MonkeyPatch.context() as patch:
        prepare(stores, configuration, patch)
    with pytest.raises(ConfigurationError, match=r"stores\.redis\.server_name: .* into the address"):
        stream_environment(configuration, "gateway", stores.environment)
