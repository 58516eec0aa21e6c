"""Turns the quota's refusals into the errors that a client is shown."""

from __future__ import annotations

from penstock.errors import (
    AlreadyReserved,
    Forbidden,
    InvalidRequest,
    Mismatched,
    PenstockError,
    QuotaDenied,
    StoreUnavailable,
    Unauthenticated,
)
from penstock.quota.operations import (
    ClockSkew,
    Denied,
    Duplicate,
    Invalid,
    Mismatch,
    NoKey,
    NotReady,
    OutOfScope,
    Refusal,
)

_SCOPES = {
    "model": "this API key may not use this model; ask for a key whose scope includes it",
    "route": "this API key may not use this endpoint; ask for a key whose scope includes it",
    "cost": "this request may cost more than this API key allows for one; lower max_tokens or n",
}


def refusal_error(
    answer: Denied | Duplicate | Mismatch | NoKey | OutOfScope | NotReady | ClockSkew | Invalid,
) -> PenstockError:
    """The error for a reservation that was not granted."""
    match answer:
        case Denied():
            return QuotaDenied(denial_text(answer), denied=answer)
        case NoKey():
            return Unauthenticated("the API key is unknown, wrong, revoked or expired", code="invalid_api_key")
        case OutOfScope(what):
            return Forbidden(_SCOPES.get(what, "this API key's scope excludes this request"), code="out_of_scope")
        case Invalid(why):
            return InvalidRequest(f"the request cannot be accounted: {why}")
        case NotReady():
            return StoreUnavailable("the quota store has no state yet; retry in 1 s")
        case ClockSkew():
            return StoreUnavailable("this service's clock and the quota store's differ by more than 30 s; correct it")
        case Duplicate(state):
            return AlreadyReserved("the same request is under way already", state=state.value)
        case Mismatch():
            return Mismatched("the same reservation was made with another body")


def denial_text(denied: Denied) -> str:
    """What was refused, how much is missing, and when to come again.

    Example:
        >>> denial_text(Denied("team-a/tokens/day", Refusal.USED_UP, 101, 20, 3_600_000))
        'team-a/tokens/day: needs 101 tokens, 20 left; retry in 3600 s'
    """
    amount, left = _in_unit(denied.limit, denied.amount), _number(denied.limit, denied.available)
    if denied.refusal is Refusal.NEVER:
        return f"{denied.limit}: needs {amount}, which is more than it ever allows; ask for less"
    wait_s = -(-denied.retry_after_ms // 1000)
    held = ""
    if denied.refusal is Refusal.HELD:
        by = "jobs that have not begun" if _word(denied.limit) == "enqueued" else "requests in flight"
        held = f", more is held by {by}"
    return f"{denied.limit}: needs {amount}, {left} left{held}; retry in {wait_s} s"


_UNITS = {"tokens": "tokens", "requests": "requests", "concurrency": "in flight", "cost": "usd"}


def _in_unit(limit: str, amount: int) -> str:
    return f"{_number(limit, amount)} {_UNITS[_metric(limit)]}"


def _number(limit: str, amount: int) -> str:
    return f"{amount / 1e9:.6f}" if _metric(limit) == "cost" else str(amount)


def _metric(limit: str) -> str:
    return limit.split("/", 2)[1]  # owner/metric/...


def _word(limit: str) -> str:
    return limit.split("/", 3)[2]  # owner/metric/period/...
