"""The machine's clock, for a service that runs; tests pass their own."""

from __future__ import annotations

import time


class SystemClock:
    """Implements ``penstock.ports.Clock``."""

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return time.time_ns() // 1_000_000

    monotonic_s = staticmethod(time.monotonic)
