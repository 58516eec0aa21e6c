"""The running sums behind the metrics: one object for each combination of labels, plain integers within.

Apart from ``metrics`` so that what runs for each request (here) and what runs for each scrape (there) stay legible.
"""

from __future__ import annotations

from penstock.adapters.observing.histograms import (
    DURATION_BOUNDS_S,
    FIRST_TOKEN_BOUNDS_S,
    INTER_TOKEN_BOUNDS_S,
    QUEUE_WAIT_BOUNDS_S,
    RESERVE_BOUNDS_S,
    TOKEN_BOUNDS,
    Histogram,
)
from penstock.ports import RequestRecord


class Pace:
    """Durations and sizes, summed over organisations: histograms for each would be too many series."""

    __slots__ = (
        "duration",
        "first_token",
        "input_tokens",
        "inter_token",
        "labels",
        "output_tokens",
        "queue_wait",
        "reached_model",
        "reserve",
    )

    def __init__(self, labels: dict[str, str], *, reached_model: bool) -> None:
        self.labels = labels
        self.reached_model = reached_model
        self.duration = Histogram(DURATION_BOUNDS_S)
        self.first_token = Histogram(FIRST_TOKEN_BOUNDS_S)
        self.inter_token = Histogram(INTER_TOKEN_BOUNDS_S)
        self.queue_wait = Histogram(QUEUE_WAIT_BOUNDS_S)
        self.reserve = Histogram(RESERVE_BOUNDS_S)
        self.input_tokens = Histogram(TOKEN_BOUNDS)
        self.output_tokens = Histogram(TOKEN_BOUNDS)


class Series:
    """What was counted for one organisation, model, route, lane, outcome and class of status."""

    __slots__ = (
        "attempts",
        "cached_tokens",
        "completion_tokens",
        "cost_nanos",
        "held_tokens",
        "labels",
        "local_usage",
        "over_tokens",
        "pace",
        "prompt_tokens",
        "requests",
    )

    def __init__(self, labels: dict[str, str], pace: Pace) -> None:
        self.labels = labels
        self.pace = pace
        self.requests = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.held_tokens = 0
        self.over_tokens = 0
        self.cost_nanos = 0
        self.local_usage = 0
        self.attempts = 0

    def add(self, record: RequestRecord) -> None:
        """Count one ended request. The hot path: no call that is not needed."""
        pace = self.pace
        self.requests += 1
        pace.duration.observe(record.total_ms / 1000)
        if record.reserved_ms:
            pace.reserve.observe(record.reserved_ms / 1000)
        if record.waited_ms:
            pace.queue_wait.observe(record.waited_ms / 1000)
        if not record.tokens_held and not record.attempts:
            return
        self.attempts += record.attempts
        self.held_tokens += record.tokens_held
        prompt, completion = record.prompt_tokens, record.completion_tokens
        used = prompt + completion
        if not used:
            return
        self.prompt_tokens += prompt
        self.cached_tokens += record.cached_tokens
        self.completion_tokens += completion
        self.cost_nanos += record.cost_nanos
        if used > record.tokens_held:
            self.over_tokens += used - record.tokens_held
        if record.usage_source == "local":
            self.local_usage += 1
        pace.input_tokens.observe(prompt)
        pace.output_tokens.observe(completion)
        if record.first_token_ms:
            pace.first_token.observe(record.first_token_ms / 1000)
            if record.chunks > 1:
                pace.inter_token.observe((record.total_ms - record.first_token_ms) / (record.chunks - 1) / 1000)


class Aftermath:
    """What became of reservations whose request never settled in time, for one organisation, model and lane."""

    __slots__ = ("expired_reservations", "expired_tokens", "labels", "late_settles", "late_tokens")

    def __init__(self, labels: dict[str, str]) -> None:
        self.labels = labels
        self.expired_reservations = 0
        self.expired_tokens = 0
        self.late_settles = 0
        self.late_tokens = 0
