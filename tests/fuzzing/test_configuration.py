"""Configuration files changed at random: a configuration, or problems that say where; nothing is raised."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.config.loading import examine_text
from tests.counts import count
from tests.fuzzing.mutating import Kept, found, inputs

ROOT = Path(__file__).parents[2]
CLUSTER = b"""
models:
  m:
    upstream: [{url: "https://a:1", credential: {env: A}, ca: {file: /x}, weight: 2}, http://b]
    context: 8k
    price: {input: 0.15}
plans:
  p: {limits: [200k tokens/minute, 300 usd/month, 32 concurrent, 5 requests/second], reserve: learned, overrun: debt}
organisations: {acme: {plan: p, teams: {search: {limits: [1M tokens/day]}}, models: {m: {limits: [1k tokens/hour]}}}}
auth:
  pepper: {env: PEPPER}
  issuers: {corp: {issuer: "https://i", jwks: "https://i/k", audience: a, organisations: [acme], algorithms: [RS256]}}
stores:
  redis: {url: "rediss://r:1", username: u, password: {env: P}, ca: {file: c}}
  postgresql: {url: "postgresql://d", accounts: {api: {env: Q}}}
  rabbitmq: {url: "amqps://q/v", management: "https://q:15671"}
queue: {deadline: 1h, concurrency: 4}
"""


def check(raw: bytes) -> None:
    text = raw.decode("utf-8", "replace")
    examined = examine_text(text)
    assert (examined.configuration is None) == bool(examined.problems)
    for problem in examined.problems:
        assert str(problem)


@pytest.mark.torture
def test_no_configuration_is_our_fault(seed: int) -> None:
    corpus = [(ROOT / "penstock.yaml").read_bytes(), CLUSTER]
    assert examine_text(CLUSTER.decode()).problems == ()
    for raw in found("configuration"):
        check(raw)
    for number, raw in inputs(seed, corpus, count(40_000, short=100)):
        with Kept("configuration", number, raw):
            check(raw)
