"""How often a test repeats itself: a tenth in ``make test``, in full in ``make torture``, one number for both."""

from __future__ import annotations

import os
from typing import Final

TORTURE: Final = os.environ.get("PENSTOCK_TORTURE") == "1"


def count(full: int, *, short: int | None = None) -> int:
    """Give ``full`` under ``make torture``; else ``short``, which is a tenth of it if not said."""
    if TORTURE:
        return full
    return max(1, full // 10) if short is None else short
