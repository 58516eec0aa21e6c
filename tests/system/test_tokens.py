"""Tokens of a real identity provider at a running service, in both lanes; and what the gateway is shown of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx2 as httpx
import pytest
import yaml

from penstock.lanes.credentials import Credential, Credentials
from tests.adapters.openid.provider import AUDIENCE, Provider
from tests.system.deployments import BOUND_S, Embedded

pytestmark = pytest.mark.slow

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "metadata": {"simulate": "tokens=5"}}
ALL = "penstock:chat.completions penstock:jobs penstock:usage"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    with Provider(tmp_path_factory.mktemp("provider")) as running:
        yield running


@pytest.fixture(scope="module")
def embedded(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    deployed = Embedded(tmp_path_factory.mktemp("embedded"))
    file = deployed.service.folder / "penstock.yaml"
    issuer = {
        "issuer": provider.url, "jwks": f"{provider.url}/jwks", "ca": {"file": str(provider.authority)},
        "audience": AUDIENCE, "organisations": ["acme"], "organisation_claim": "org", "scope_claim": "scope",
    }  # fmt: skip
    described = yaml.safe_load(file.read_text()) | {"auth": {"issuers": {"corp": issuer}}}
    file.write_text(yaml.safe_dump(described))
    deployed.start()
    try:
        yield deployed
        deployed.audited()
    finally:
        deployed.stop()


def client(embedded: Embedded, token: str) -> httpx.Client:
    return httpx.Client(
        base_url=embedded.url, headers={"authorization": f"Bearer {token}"}, timeout=60, trust_env=False
    )


def test_a_token_is_served_in_both_lanes_and_its_subject_is_billed(provider: Provider, embedded: Embedded) -> None:
    with client(embedded, provider.token("ann", org="acme", scope=ALL)) as ann:
        answer = ann.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 200, answer.text
        accepted = ann.post("/v1/chat/completions", json=CHAT, headers={"prefer": "respond-async"})
        assert accepted.status_code == 202, accepted.text
        job, ends_s = accepted.json()["id"], time.monotonic() + BOUND_S
        while (told := ann.get(f"/v1/jobs/{job}", params={"wait": "5s"}).json())["status"] != "succeeded":
            assert time.monotonic() < ends_s, told
        while not (rows := ann.get("/v1/usage", params={"group_by": "key"}).json()["data"]) or rows[0]["requests"] < 2:
            assert time.monotonic() < ends_s, rows
    (row,) = rows
    assert row["key"].startswith("jwt.corp~")
    assert row["completion_tokens"] == 10


def test_a_token_does_no_more_than_it_says(provider: Provider, embedded: Embedded) -> None:
    with client(embedded, provider.token("bob", org="acme", scope="penstock:usage")) as bob:
        assert bob.get("/v1/usage").status_code == 200
        assert bob.post("/v1/chat/completions", json=CHAT).status_code == 403
        assert bob.get("/v1/jobs").status_code == 403
    with client(embedded, provider.token("bob", org="other", scope=ALL)) as bob:
        assert bob.get("/v1/usage").status_code == 401
    with client(embedded, provider.token("bob", audience="another", org="acme", scope=ALL)) as bob:
        assert bob.get("/v1/usage").status_code == 401


def test_the_word_that_the_gateway_is_shown_opens_no_public_door(embedded: Embedded) -> None:
    pepper = (embedded.service.data / "pepper").read_text().strip().encode()
    subject = Credential("acme", "jwt.corp~" + "0" * 20, ("",))
    word = Credentials((pepper,)).vouch(subject, expires_at_ms=time.time_ns() // 1_000_000 + 30_000)
    with client(embedded, word) as forged:
        assert forged.get("/v1/usage").status_code == 401
        assert forged.post("/v1/chat/completions", json=CHAT).status_code == 401


def test_a_revoked_issuer_is_refused_within_seconds_and_no_token_is_logged(
    provider: Provider, embedded: Embedded
) -> None:
    token = provider.token("eve", org="acme", scope=ALL)
    with client(embedded, token) as eve:
        assert eve.get("/v1/usage").status_code == 200
        listed = json.loads(embedded.service.command("keys", "list", "--json"))
        assert {"jwt.corp"} <= {each["id"] for each in listed if each["organisation"] == "acme"}
        embedded.service.command("keys", "revoke", "acme", "jwt.corp")
        ends_s = time.monotonic() + BOUND_S
        while eve.get("/v1/usage").status_code != 401:
            assert time.monotonic() < ends_s
        assert eve.post("/v1/chat/completions", json=CHAT).status_code == 401
    assert token.rpartition(".")[2] not in embedded.service.log.read_text()
