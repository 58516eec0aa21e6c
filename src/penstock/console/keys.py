"""API keys as a table. No secret, and no HMAC of one, ever comes here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.table import Table

from penstock.console.amounts import dollars
from penstock.quota.definitions import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRow:
    """One key as people see it. Times are Unix milliseconds, 0 for never."""

    organisation: str
    name: str
    created_at_ms: int
    key: Key


def key_state(key: Key, *, now_ms: int) -> str:
    """revoked, expired, rotating (two live secrets) or active.

    Example:
        >>> key_state(Key(id="k1", macs=(("new", 0), ("old", 5_000))), now_ms=4_000)
        'rotating until 1970-01-01 00:00'
    """
    if key.revoked:
        return "revoked"
    if key.expires_at_ms and key.expires_at_ms <= now_ms:
        return "expired"
    live = [expires_ms for _, expires_ms in key.macs if not expires_ms or expires_ms > now_ms]
    ending = [expires_ms for expires_ms in live if expires_ms]
    if not live:
        return "expired"
    return f"rotating until {moment(max(ending))}" if len(live) > 1 and ending else "active"


def moment(at_ms: int) -> str:
    """Minutes are enough for people; UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M") if at_ms else "never"


def scope(key: Key) -> str:
    """What a key may be used for.

    Example:
        >>> scope(Key(id="k1")), scope(Key(id="k1", models=frozenset({"chat-small"}), cost_nanos_max=50_000_000))
        ('everything', 'chat-small, at most $0.05 a request')
    """
    parts = [", ".join(sorted(names)) for names in (key.models, key.routes) if names is not None]
    if key.cost_nanos_max is not None:
        parts.append(f"at most {dollars(key.cost_nanos_max)} a request")
    return ", ".join(parts) or "everything"


def keys_table(rows: Sequence[KeyRow], *, now_ms: int) -> Table:
    """One line for each key; times are UTC."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("organisation", "key", "team", "name", "may use", "created", "expires", "state"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("key", "created", "expires"))
    for row in rows:
        key = row.key
        created, expires = moment(row.created_at_ms)[:10], moment(key.expires_at_ms)[:10]
        state = key_state(key, now_ms=now_ms)
        table.add_row(row.organisation, key.id, key.team or "-", row.name, scope(key), created, expires, state)
    return table
