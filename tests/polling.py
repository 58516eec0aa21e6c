"""Waiting for what nobody tells: it is asked again and again, within a bound that is generous to a busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY_S = 0.05


def until(holds: Callable[..., object], what: str = "it holds", *, bound_s: float) -> None:
    """Ask until it holds; past the bound the test fails with ``what`` it waited for."""
    ends_s = time.monotonic() + bound_s
    while not holds():
        assert time.monotonic() < ends_s, f"{what}: not within {bound_s} s"
        time.sleep(EVERY_S)
