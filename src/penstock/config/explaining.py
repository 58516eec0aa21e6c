"""What a configuration means, as plain data: for the tables of ``penstock check`` and for its JSON."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.config import checking
from penstock.config.compiling import limits, price
from penstock.config.notation import (
    NANOS_PER_USD,
    PICOS_PER_USD,
    TOKENS_PER_PRICE,
    format_limit,
    format_period,
    format_usd,
)
from penstock.config.settings import Configuration, Model
from penstock.quota.definitions import Kind, Limit
from penstock.quota.limits import MONTH_MS, WEEK_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMeaning:
    """One model.

    Args:
        *_usd: Decimal text, exact; prices of input, cached input and output per million tokens.
        full_request_tokens: What a strict reservation of the largest prompt and one output holds.
        full_request_usd: What that costs at most.
    """

    name: str
    upstreams: tuple[str, ...]
    kind: str
    context: int
    max_tokens: int
    input_usd: str
    cached_input_usd: str
    output_usd: str
    request_usd: str
    full_request_tokens: int
    full_request_usd: str
    tokens_per_second: int | None
    concurrency: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitMeaning:
    """One limit: its owner, the sentence that states it, its kind, and when what was used comes back."""

    owner: str
    model: str | None
    sentence: str
    kind: str
    comes_back: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganisationMeaning:
    """One organisation and everything that limits it."""

    name: str
    plan: str
    reserve: str
    overrun: str
    managed_by: str
    teams: tuple[str, ...]
    limits: tuple[LimitMeaning, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """The whole configuration. ``stores`` is "embedded" or "cluster"."""

    stores: str
    models: tuple[ModelMeaning, ...]
    organisations: tuple[OrganisationMeaning, ...]


def explain(configuration: Configuration) -> Meaning:
    """Say what a configuration means."""
    return Meaning(
        stores="cluster" if configuration.stores else "embedded",
        models=tuple(_model(name, model) for name, model in configuration.models.items()),
        organisations=tuple(_organisation(configuration, name) for name in configuration.organisations),
    )


def _model(name: str, model: Model) -> ModelMeaning:
    charged = price(model.price)
    per_million = PICOS_PER_USD // TOKENS_PER_PRICE
    return ModelMeaning(
        name=name,
        upstreams=tuple(upstream.url for upstream in model.upstreams),
        kind=model.kind.value,
        context=model.context,
        max_tokens=model.max_tokens,
        input_usd=format_usd(charged.prompt_picos, per_usd=per_million),
        cached_input_usd=format_usd(charged.cached_picos, per_usd=per_million),
        output_usd=format_usd(charged.completion_picos, per_usd=per_million),
        request_usd=format_usd(charged.request_picos, per_usd=PICOS_PER_USD),
        full_request_tokens=checking.full_request_tokens(model),
        full_request_usd=format_usd(checking.full_request_nanos(model), per_usd=NANOS_PER_USD),
        tokens_per_second=model.capacity.tokens_per_second if model.capacity else None,
        concurrency=model.capacity.concurrency if model.capacity else None,
    )


def _organisation(configuration: Configuration, name: str) -> OrganisationMeaning:
    organisation = configuration.organisations[name]
    plan = configuration.plans[organisation.plan]
    return OrganisationMeaning(
        name=name,
        plan=organisation.plan,
        reserve=plan.reserve.value,
        overrun=plan.overrun.value,
        managed_by=organisation.managed_by.value,
        teams=tuple(organisation.teams),
        limits=tuple(_limit(limit) for limit in limits(configuration, name)),
    )


def _limit(limit: Limit) -> LimitMeaning:
    return LimitMeaning(
        owner=limit.owner,
        model=limit.model,
        sentence=format_limit(limit),
        kind=limit.kind.value.replace("_", " "),
        comes_back=comes_back(limit),
    )


def comes_back(limit: Limit) -> str:
    """When what a limit counted may be used again, in words.

    Example:
        >>> from penstock.quota.definitions import Metric
        >>> comes_back(Limit(owner='acme', metric=Metric.TOKENS, kind=Kind.RATE, cap=200_000, period_ms=60_000))
        '3_333.3 a second, plus unused holds'
    """
    if limit.kind is Kind.CONCURRENCY:
        return "when a request ends"
    if limit.kind is Kind.ENQUEUED:
        return "when a queued job begins or ends"
    if limit.kind is Kind.WINDOW:
        return _window_text(limit)
    per_second = limit.cap * 1_000 / limit.period_ms
    text = f"{per_second:_.1f}".removesuffix(".0")
    refund = ", plus unused holds" if limit.kind is Kind.RATE else ""
    return f"{text} a second{refund}"


def _window_text(limit: Limit) -> str:
    if limit.period_ms == MONTH_MS:
        return "on the 1st of the month, 00:00 UTC"
    period = format_period(limit)
    if period == "hour":
        return "at each full hour"
    if period == "day":
        return "each day at 00:00 UTC"
    if limit.period_ms == WEEK_MS and period == "week":
        return "on Monday, 00:00 UTC"
    return f"every {period}, in UTC since 1970"
