"""Every store behind TLS with an authority of the test's own: reached by all, refused under another one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from penstock.errors import ConfigurationError, StoreUnavailable
from penstock.lanes.credentials import mint
from penstock.wiring.bento import stream_environment
from tests.system.bento import CHAT, Bento, send
from tests.system.secured_stores import Stores, define, prepare
from tests.system.services import answers, free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    made = Stores(tmp_path_factory.mktemp("secured"))
    made.start()
    yield made
    made.stop()


def test_setup_and_a_stream_reach_every_store_over_tls(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = stores.folder / "bundle.pem"  # each store may have its own authorities, in one stream too
    bundle.write_bytes(stores.other.read_bytes() + stores.ca.read_bytes())
    configuration = stores.configuration(redis={"ca": {"file": str(bundle)}})
    told = prepare(stores, configuration, monkeypatch)
    assert {line.partition(":")[0].partition(" ")[0] for line in told} == {"postgresql", "redis", "rabbitmq"}
    token = mint("acme", "k1", secret=bytes(32))
    assert not asyncio.run(define(configuration, token)).holds
    port = free_port()
    own = {"PENSTOCK_GATEWAY_ADDRESS": f"127.0.0.1:{port}"}
    gateway = Bento(stores.folder, "gateway", stream_environment(configuration, "gateway", stores.environment) | own)
    gateway.start(is_up=gateway.publishes)
    try:
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        answer = send(f"http://127.0.0.1:{port}/v1/async/chat/completions", CHAT, **headers)
        assert answer.status == 202, answer.raw + gateway.log.read_bytes()
    finally:
        gateway.stop()


def test_a_stream_that_trusts_another_authority_accepts_nothing(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"ca": {"file": str(stores.other)}}
    configuration = stores.configuration(redis=wrong, rabbitmq=wrong)
    port = free_port()
    own = {"PENSTOCK_GATEWAY_ADDRESS": f"127.0.0.1:{port}"}
    gateway = Bento(
        stores.folder / "wrong", "gateway", stream_environment(configuration, "gateway", stores.environment) | own
    )
    gateway.start(is_up=lambda: answers(port))
    try:
        headers = {
            "authorization": f"Bearer {mint('acme', 'k1', secret=bytes(32))}",
            "content-type": "application/json",
        }
        assert send(f"http://127.0.0.1:{port}/v1/async/chat/completions", CHAT, **headers).status == 503
    finally:
        gateway.stop()


@pytest.mark.parametrize("store", ["postgresql", "redis", "rabbitmq"])
def test_a_store_that_another_authority_vouches_for_is_not_used(
    stores: Stores, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = stores.configuration(**{store: {"ca": {"file": str(stores.other)}}})
    with pytest.raises((StoreUnavailable, ConfigurationError), match=r"(?i)certificate|TLS"):
        prepare(stores, configuration, monkeypatch)
