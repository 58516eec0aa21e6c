"""What a crowd asks for: limits that are all fought over, and requests that come in three kinds of weather.

Time is virtual and made of attempts: the clock moves on with how much was tried, so that a slow machine meets the same
contention as a quick one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from penstock.quota import Definitions, Key, Limit, Model, Price, parse_limit_id

T0_MS: Final = 1_700_000_000_000
ORGANISATION: Final = "acme"
MS_PER_ATTEMPT: Final = 10
WEATHER_MS: Final = 15_000
MAC: Final = "ab12"
PRICE: Final = Price(prompt_picos=150_000, cached_picos=75_000, completion_picos=600_000, request_picos=1_001)
BIG, LONG, SMALL = range(3)
# (bytes of a body, tokens of output, open at once in one process)
SIZES: Final = {BIG: (400, 1_600, 8), LONG: (100, 100, 14), SMALL: (20, 40, 8)}


def weather(now_ms: int) -> int:
    """Big requests, long ones or small ones, in turn."""
    return (now_ms - T0_MS) // WEATHER_MS % 3


def limits(processes: int) -> tuple[Limit, ...]:
    """Eight, of every kind and owner; a hundred requests come in each second of the clock."""
    caps = {
        "acme/tokens/minute": 400_000,
        "acme/tokens/strict_rate-60000/m": 540_000,
        "acme/requests/minute": 1_800,
        "acme/requests/window-60000-0": 2_000,
        "acme/concurrency/concurrent": 9 * processes,
        "acme:team:search/concurrency/concurrent": 5 * processes,
        "acme:team:search/cost/window-20000-0": 160_000_000,
        "acme:key:k2/tokens/window-10000-0": 140_000,
    }
    return tuple(replace(parse_limit_id(text), cap=cap) for text, cap in caps.items())


def definitions(processes: int) -> Definitions:
    """Two keys, one of them of a team, and one model."""
    keys = {
        "k1": Key(id="k1", team="search", macs=((MAC, 0),)),
        "k2": Key(id="k2", macs=((MAC, 0),)),
    }
    return Definitions(
        limits=limits(processes), keys=keys, models={"m": Model(name="m", context=8_192, price=PRICE)}
    )  # fmt: skip
