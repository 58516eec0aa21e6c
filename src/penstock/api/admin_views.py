"""Records as administrators see them. Times are Unix milliseconds, amounts integers; no secret is in any of them."""

from __future__ import annotations

from typing import Any

from penstock.config import format_limit
from penstock.lanes.administering import (
    AuditRecord,
    Erased,
    LimitRecord,
    OrganisationRecord,
    PriceRecord,
    StoredKey,
)


def organisation_view(record: OrganisationRecord) -> dict[str, Any]:
    """An organisation."""
    return {
        "object": "organisation",
        "name": record.name,
        "managed_by": record.managed_by,
        "reserve": record.reserve.value,
        "overrun": record.overrun.value,
        "created_at_ms": record.created_at_ms,
        "results_ms": record.results_ms,
        "answers_ms": record.answers_ms,
    }


def team_view(team: str) -> dict[str, Any]:
    """A team."""
    return {"object": "team", "name": team}


def key_view(stored: StoredKey) -> dict[str, Any]:
    """A key, without anything that would let somebody use it."""
    key = stored.key
    return {
        "object": "key",
        "id": key.id,
        "organisation": stored.organisation,
        "name": stored.name,
        "team": key.team,
        "models": None if key.models is None else sorted(key.models),
        "routes": None if key.routes is None else sorted(key.routes),
        "cost_nanos_max": key.cost_nanos_max,
        "admin": stored.admin.value,
        "creator": stored.creator,
        "created_at_ms": stored.created_at_ms,
        "expires_at_ms": key.expires_at_ms,
        "rotated_at_ms": stored.rotated_at_ms,
        "revoked_at_ms": stored.revoked_at_ms,
        "secrets_expire_at_ms": [expires_at_ms for _, expires_at_ms in key.macs],
    }


def limit_view(record: LimitRecord) -> dict[str, Any]:
    """A limit; the cap is in tokens, requests, nano-dollars or requests in flight."""
    limit = record.limit
    return {
        "object": "limit",
        "id": record.id,
        "organisation": record.organisation,
        "owner": limit.owner,
        "description": format_limit(limit),
        "metric": limit.metric.value,
        "kind": limit.kind.value,
        "period_ms": limit.period_ms,
        "model": limit.model,
        "cap": limit.cap,
    }


def price_view(record: PriceRecord) -> dict[str, Any]:
    """A price, in pico-dollars."""
    price = record.price
    return {
        "object": "price",
        "model": record.model,
        "valid_from_ms": record.since_ms,
        "in_force": record.in_force,
        "prompt_picos": price.prompt_picos,
        "cached_picos": price.cached_picos,
        "completion_picos": price.completion_picos,
        "request_picos": price.request_picos,
    }


def audit_view(record: AuditRecord) -> dict[str, Any]:
    """One entry of the audit log."""
    return {
        "object": "audit_entry",
        "id": record.id,
        "at_ms": record.at_ms,
        "actor": record.actor,
        "action": record.action,
        "organisation": record.organisation,
        "subject": record.subject,
        "before": record.before,
        "after": record.after,
    }


def erased_view(done: Erased) -> dict[str, Any]:
    """What an erasure did, and what stays and why."""
    return {
        "object": "erasure",
        "organisation": done.organisation,
        "job": done.job,
        "removed": {"prompts": done.prompts, "results": done.results, "answers": done.answers},
        "cancelled": done.cancelled,
        "stays": done.stays,
    }
