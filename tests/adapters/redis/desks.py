"""Calls of one organisation, acme, that a test may send as they are: one of each operation, and what comes first."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from penstock.quota import (
    Acquire,
    Call,
    Cancel,
    Define,
    Definitions,
    Extend,
    Inspect,
    Key,
    Kind,
    Lane,
    Limit,
    Look,
    Metric,
    Model,
    Post,
    Price,
    Published,
    Ready,
    Reassert,
    Reserve,
    Settle,
    Sweep,
    Touch,
    Usage,
    Void,
    reservation_id,
)
from penstock.quota.state import LEASE_MS

TOKENS_HELD = 300  # 200 bytes and at most 100 tokens of output
LIMITS = (
    Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.WINDOW, cap=1 << 40),
    Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.RATE, period_ms=60_000, cap=1 << 30),
    Limit(owner="acme", metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY, cap=1 << 20),
)
WINDOW = "acme/tokens/month"
IN_FLIGHT = "acme/concurrency/concurrent"


def now_ms() -> int:
    """The machine's clock, which a Redis beside us shares."""
    return time.time_ns() // 1_000_000


def define(version: int = 1) -> Define:
    """Three limits, a key and a model."""
    definitions = Definitions(
        limits=LIMITS,
        keys={"k1": Key(id="k1", macs=(("ab12", 0),))},
        models={"m": Model(name="m", context=8_192, price=Price(prompt_picos=1_000_000, completion_picos=2_000_000))},
    )
    return Define(organisation="acme", caller_now_ms=now_ms(), version=version, definitions=definitions)


def ready() -> Ready:
    """Admissions may begin."""
    return Ready(organisation="acme", caller_now_ms=now_ms(), epoch=1)


def reserve(number: int, *, nonce: str = "n", lane: Lane = Lane.REALTIME) -> Reserve:
    """One of many requests; the same number is the same request."""
    at_ms = now_ms()
    return Reserve(
        organisation="acme", caller_now_ms=at_ms, reservation=reservation_id(0, number), nonce=nonce, fingerprint="f",
        key="k1", key_mac="ab12", route="chat.completions", model="m", body_bytes=200, outputs_bound=100, lane=lane,
        job_deadline_ms=at_ms + 600_000,
    )  # fmt: skip


def settle(number: int) -> Settle:
    """Its end, with 120 tokens used."""
    return Settle(
        organisation="acme", caller_now_ms=now_ms(), reservation=reservation_id(0, number), usage=Usage(100, 20)
    )


def pages(whole: Inspect, number: int) -> tuple[Inspect, ...]:
    """Pages of what an inspection of all shows: a first one, and some that begin where leases of this instant end."""
    lease_ms = whole.caller_now_ms + LEASE_MS
    after = f"{whole.organisation}-{number:05}"
    return (
        replace(whole, holds_max=number % 4),
        replace(whole, holds_max=1 + number % 3, after_ms=lease_ms, after=after),
        replace(whole, holds_max=100, after_ms=lease_ms),
    )


def calls_of_a_life() -> list[Call[Any]]:
    """One of each operation."""
    job = reserve(2, lane=Lane.QUEUE)
    arguments = {name: getattr(job, name) for name in Reserve.__dataclass_fields__}
    common: dict[str, Any] = {"organisation": "acme", "caller_now_ms": now_ms()}
    one: dict[str, Any] = {**common, "reservation": reservation_id(0, 1)}
    return [
        define(), ready(), reserve(1), job, Acquire(**arguments, epoch=1), Touch(**one, prompt=1, completion=1),
        Extend(**one, total_tokens=400), Look(**one), Inspect(**common), Inspect(**common, holds_max=1), settle(1),
        Published(**{**one, "reservation": job.reservation}), Cancel(**{**one, "reservation": job.reservation}),
        Void(**{**one, "reservation": reservation_id(0, 3)}), Sweep(**common, count_max=1),
        Reassert(**common, arguments=reserve(4), acquired=False, prompt=0, completion=0, renewed_at_ms=now_ms()),
        Post(**common, arguments=reserve(5), usage=Usage(1, 1)),
    ]  # fmt: skip
