"""What governs an organisation follows from the file exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.config import Configuration, Term, definitions, examine_text, format_limit
from penstock.quota.definitions import Definitions, Kind, Limit, Metric, Model, Overrun, Price, ReservePolicy
from penstock.quota.limits import limit_id
from penstock.quota.plans import fault_in
from tests.config.strategies import terms

TEXT = """
models:
  meta-llama/Llama-3.1-8B-Instruct:
    upstream: [http://a:8000, {url: "https://b", credential: {env: TOKEN}, ca: {file: ca.pem}, weight: 3}]
    context: 128k
    max_tokens: 2048
    template_tokens: 30
    tokens_per_byte_max: 2
    price: {input: 0.15, cached_input: 0.075, output: 0.60, request: 0.0001}
  plain: {upstream: local, context: 8192, price: {input: 2}}
plans:
  team: {limits: [200k tokens/minute, 300 usd/month], reserve: learned, overrun: debt}
organisations:
  acme:
    plan: team
    limits: [32 concurrent]
    models: {plain: {limits: [10 requests/second]}}
    teams: {search: {limits: [1M tokens/week]}, idle: }
  other: {plan: team}
"""


@pytest.fixture(name="configuration")
def _configuration() -> Configuration:
    examined = examine_text(TEXT)
    assert examined.problems == ()
    assert examined.configuration is not None
    return examined.configuration


def test_definitions_are_compiled_exactly_and_hold_no_keys(configuration: Configuration) -> None:
    assert definitions(configuration, "acme") == Definitions(
        limits=(
            Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.RATE, cap=200_000, period_ms=60_000),
            Limit(owner="acme", metric=Metric.COST, kind=Kind.WINDOW, cap=300 * 10**9),
            Limit(owner="acme", metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY, cap=32),
            Limit(owner="acme", metric=Metric.REQUESTS, kind=Kind.STRICT_RATE, cap=10, period_ms=1_000, model="plain"),
            Limit(
                owner="acme:team:search",
                metric=Metric.TOKENS,
                kind=Kind.WINDOW,
                cap=10**6,
                period_ms=604_800_000,
                anchor_ms=345_600_000,
            ),
        ),
        models={
            "meta-llama/Llama-3.1-8B-Instruct": Model(
                name="meta-llama/Llama-3.1-8B-Instruct",
                context=128_000,
                template_tokens=30,
                tokens_per_byte_max=2,
                price=Price(
                    prompt_picos=150_000, cached_picos=75_000, completion_picos=600_000, request_picos=100_000_000
                ),
            ),
            "plain": Model(
                name="plain",
                context=8192,
                template_tokens=64,
                price=Price(prompt_picos=2_000_000, cached_picos=2_000_000),
            ),
        },
        reserve=ReservePolicy.LEARNED,
        overrun=Overrun.DEBT,
    )


def test_another_organisation_has_the_plans_limits_and_no_others(configuration: Configuration) -> None:
    assert [(limit.owner, limit.metric) for limit in definitions(configuration, "other").limits] == [
        ("other", Metric.TOKENS),
        ("other", Metric.COST),
    ]


def test_upstreams_keep_references_and_never_secrets(configuration: Configuration) -> None:
    first, second = configuration.models["meta-llama/Llama-3.1-8B-Instruct"].upstreams
    assert (first.url, first.credential, first.weight) == ("http://a:8000", None, 1)
    assert second.credential is not None
    assert (second.credential.env, second.credential.file, second.weight) == ("TOKEN", None, 3)
    assert second.ca is not None
    assert second.ca.file == "ca.pem"
    assert configuration.models["plain"].is_local
    assert not configuration.models["meta-llama/Llama-3.1-8B-Instruct"].is_local


def test_a_team_without_anything_below_it_exists(configuration: Configuration) -> None:
    assert configuration.organisations["acme"].teams["idle"].limits == ()


@given(terms=st.lists(terms(), max_size=8), below=st.lists(terms(), max_size=8))
def test_what_the_check_passes_the_quota_accepts(terms: list[Term], below: list[Term]) -> None:
    def sentences(written: list[Term]) -> str:
        return "[" + ", ".join(format_limit(term) for term in written) + "]"

    organisation = f"{{plan: p, limits: {sentences(below)}, teams: {{t: {{limits: {sentences(terms)}}}}}}}"
    model = "{upstream: local, context: 8192, price: {input: 1073.741824, request: 1.099511627776}}"
    examined = examine_text(
        f"models: {{m: {model}}}\nplans: {{p: {{limits: {sentences(terms)}}}}}\norganisations: {{o: {organisation}}}"
    )
    doubled = len(set(map(identity, terms + below))) < len(terms + below)
    assert bool(examined.problems) == doubled
    if examined.configuration is not None:
        assert fault_in("o", definitions(examined.configuration, "o")) is None


def identity(term: Term) -> str:
    return limit_id(term.limit(owner="o"))
