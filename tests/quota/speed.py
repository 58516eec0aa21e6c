"""How long a reserve and a settle take: the model is on the request's own path.

Run it with ``python -m tests.quota.speed``. It prints CPU microseconds for one reserve and one settle together, under
eight limits, the least of five rounds.
"""

from __future__ import annotations

import sys
import time

from penstock.quota import Organisation, Reserve, Settle, Usage
from tests.quota.desk import T0, Desk

LIMITS = dict.fromkeys(
    ("acme/tokens/minute", "acme/requests/minute", "acme/tokens/month", "acme/cost/month",
     "acme/concurrency/concurrent", "acme:team:search/tokens/month", "acme:key:k1/tokens/day",
     "acme:key:k1/tokens/minute"),
    1 << 36,
)  # fmt: skip
ROUNDS, REQUESTS = 5, 10_000


def calls(desk: Desk, start: int) -> list[tuple[Reserve, Settle, int]]:
    """A round of requests, one each millisecond."""
    found = []
    for number in range(start, start + REQUESTS):
        now_ms, reservation = T0 + number, f"r{number}"
        arguments = {**desk.arguments(reservation), "caller_now_ms": now_ms, "job_deadline_ms": now_ms + 600_000}
        settle = Settle(organisation="acme", caller_now_ms=now_ms, reservation=reservation, usage=Usage(60, 20))
        found.append((Reserve(**arguments), settle, now_ms))
    return found


def round_us(organisation: Organisation, requests: list[tuple[Reserve, Settle, int]]) -> float:
    """CPU microseconds for each request."""
    began_ns = time.process_time_ns()
    for reserve, settle, now_ms in requests:
        organisation.apply(reserve, time_ms=now_ms)
        organisation.apply(settle, time_ms=now_ms)
    return (time.process_time_ns() - began_ns) / 1_000 / len(requests)


def main() -> None:
    """Measure, and print."""
    desk = Desk(LIMITS)
    rounds = []
    for number in range(ROUNDS):
        rounds.append(round_us(desk.organisation, calls(desk, number * REQUESTS)))
        desk.take_events()
        desk.organisation.changed.clear()
    sys.stdout.write(f"reserve + settle under {len(LIMITS)} limits: {min(rounds):.1f} us of CPU\n")


if __name__ == "__main__":
    main()
