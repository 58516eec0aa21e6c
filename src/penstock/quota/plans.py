"""Which limits a request falls under, worked out once per (team, key, model), and which definitions are refused."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.quota.counters import AMOUNT_MAX, CONCURRENCY, ENQUEUED, RATE, STRICT_RATE, WINDOW, Counter
from penstock.quota.definitions import Definitions, Kind, Limit, Metric, Model
from penstock.quota.limits import limit_id
from penstock.quota.sharding import SHARD_MAX

LIMITS_MAX = 32
RATE_PERIOD_MAX_MS = 1 << 21  # 2^31 tokens x this stay exact beside a debt of 2^52
TOKENS_BOUND_MAX = 1 << 31
TOKENS_PER_BYTE_MAX = 1 << 10
TOKEN_PICOS_MAX = 1 << 30  # $1,073 per million tokens; x 2^31 tokens / 1000 stays below 2^52
REQUEST_PICOS_MAX = 1 << 40


@dataclass(frozen=True, slots=True)
class Plan:
    """The counters that a request falls under, sorted by id, and the same by how they are held.

    Those that bound the queue are apart: only a job asks them, and only until it first runs.
    """

    counters: tuple[Counter, ...]
    windows: tuple[str, ...]
    rates: tuple[str, ...]
    concurrency: tuple[str, ...]
    window_counters: tuple[Counter, ...]
    run_counters: tuple[Counter, ...]  # rates and concurrency: what a job takes only when it runs
    concurrency_counters: tuple[Counter, ...]
    enqueued: tuple[str, ...]
    enqueued_counters: tuple[Counter, ...]


def make_plan(counters: Mapping[str, Counter], limits: Mapping[str, Limit], owners: frozenset[str], model: str) -> Plan:
    """Find every limit whose owner is among ``owners`` and whose model is this one or any."""
    ids = sorted(
        each
        for each, limit in limits.items()
        if limit.owner in owners and (limit.model is None or limit.model == model)
    )
    all_of_them = tuple(counters[each] for each in ids)
    found = tuple(each for each in all_of_them if each.kind is not ENQUEUED)
    enqueued = tuple(each for each in all_of_them if each.kind is ENQUEUED)
    return Plan(
        counters=found,
        windows=tuple(each.limit for each in found if each.kind is WINDOW),
        rates=tuple(each.limit for each in found if each.kind is RATE or each.kind is STRICT_RATE),
        concurrency=tuple(each.limit for each in found if each.kind is CONCURRENCY),
        window_counters=tuple(each for each in found if each.kind is WINDOW),
        run_counters=tuple(each for each in found if each.kind is not WINDOW),
        concurrency_counters=tuple(each for each in found if each.kind is CONCURRENCY),
        enqueued=tuple(each.limit for each in enqueued),
        enqueued_counters=enqueued,
    )


def owners_of(organisation: str, team: str | None, key: str) -> frozenset[str]:
    """Whose limits a request falls under.

    Example:
        >>> sorted(owners_of("acme", "search", "k1"))
        ['acme', 'acme:key:k1', 'acme:team:search']
    """
    own = {organisation, f"{organisation}:key:{key}"}
    return frozenset(own if team is None else own | {f"{organisation}:team:{team}"})


def fault_in(organisation: str, definitions: Definitions) -> str | None:
    """What makes these definitions unfit, in words; None if nothing does."""
    seen: set[str] = set()
    for limit in definitions.limits:
        text = limit_id(limit)
        fault = _fault_in_limit(organisation, limit) or ("is defined twice" if text in seen else None)
        if fault:
            return f"limit {text} {fault}"
        seen.add(text)
    if not 0 <= definitions.shard <= SHARD_MAX:
        return f"shard is {definitions.shard}; allowed are 0 to {SHARD_MAX}"
    for name, model in definitions.models.items():
        fault = _fault_in_model(name, model)
        if fault:
            return f"model {name} {fault}"
    for name, key in definitions.keys.items():
        if name != key.id:
            return f"key {name} calls itself {key.id}"
    return _too_many(organisation, definitions)


def _fault_in_limit(organisation: str, limit: Limit) -> str | None:
    if limit.owner != organisation and not limit.owner.startswith((f"{organisation}:team:", f"{organisation}:key:")):
        return f"belongs to {limit.owner}, which is not {organisation}"
    if "/" in limit.owner:
        return "has an owner with a slash"
    if (limit.metric is Metric.CONCURRENCY) is not (limit.kind is Kind.CONCURRENCY):
        return "counts requests in flight in another kind than concurrency, or the other way round"
    if limit.metric is Metric.COST and limit.kind is not Kind.WINDOW:
        return "counts cost in another kind than a window"
    return _fault_in_period(limit)


def _fault_in_period(limit: Limit) -> str | None:
    cap_max = AMOUNT_MAX
    if limit.kind is Kind.WINDOW:
        if not 0 <= limit.period_ms <= AMOUNT_MAX or not 0 <= limit.anchor_ms < max(1, limit.period_ms):
            return "has a window that does not begin within its own period"
    elif limit.kind is Kind.CONCURRENCY:
        if limit.period_ms or limit.anchor_ms:
            return "counts requests in flight, over a period"
    elif limit.kind is Kind.ENQUEUED:
        if limit.period_ms or limit.anchor_ms:
            return "counts what waits, over a period"
    else:
        if limit.anchor_ms or not 1 <= limit.period_ms <= RATE_PERIOD_MAX_MS:
            return f"needs a period of 1 to {RATE_PERIOD_MAX_MS} ms and no anchor"
        cap_max = AMOUNT_MAX // limit.period_ms
    if not 0 <= limit.cap <= cap_max:
        return f"has a cap of {limit.cap}; allowed are 0 to {cap_max}"
    return None


def _fault_in_model(name: str, model: Model) -> str | None:
    if name != model.name:
        return f"calls itself {model.name}"
    price = model.price
    bounds = (
        ("context", model.context, 1, TOKENS_BOUND_MAX),
        ("template_tokens", model.template_tokens, 0, TOKENS_BOUND_MAX),
        ("tokens_per_byte_max", model.tokens_per_byte_max, 1, TOKENS_PER_BYTE_MAX),
        ("prompt_picos", price.prompt_picos, 0, TOKEN_PICOS_MAX),
        ("cached_picos", price.cached_picos, 0, TOKEN_PICOS_MAX),
        ("completion_picos", price.completion_picos, 0, TOKEN_PICOS_MAX),
        ("request_picos", price.request_picos, 0, REQUEST_PICOS_MAX),
    )
    for what, value, least, most in bounds:
        if not least <= value <= most:
            return f"has {what} {value}; allowed are {least} to {most}"
    return None


def _too_many(organisation: str, definitions: Definitions) -> str | None:
    """More limits on one request than one atomic call may touch."""
    tally = Tally((limit.owner, limit.model) for limit in definitions.limits)
    models = [*definitions.models, *{limit.model for limit in definitions.limits if limit.model is not None}, ""]
    callers = {(key.team, key.id) for key in definitions.keys.values()} | {(None, "")}
    most = 0
    for team, key in callers:
        owners = owners_of(organisation, team, key)
        everywhere = sum(tally[owner, None] for owner in owners)
        most = max(most, everywhere + max(sum(tally[owner, model] for owner in owners) for model in models))
    return f"{most} limits on one request; at most {LIMITS_MAX} are possible" if most > LIMITS_MAX else None
