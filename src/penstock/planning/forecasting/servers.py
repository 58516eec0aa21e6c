"""How long a model server takes for a request: the parameters of ``penstock simulate-model``, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from penstock.planning.forecasting.loads import SECOND_US, Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One replica: so many requests at a time, others wait; each is read in, then answered, at speeds of its own.

    Args:
        concurrency: Requests at a time.
        prefill: Prompt tokens per second and request; 0: at once.
        decode: Tokens of the answer per second and request; 0: at once.
        latency_us: Added to each.
        at_once: How many requests all replicas together are given, as by a fixed number of workers; None: no bound.
    """

    concurrency: int
    prefill: float
    decode: float
    latency_us: int = 0
    at_once: int | None = None

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.prefill < 0 or self.decode < 0 or self.latency_us < 0:
            raise ValueError("a server has a concurrency of 1 or more, and speeds and a latency of 0 or more")
        if self.at_once is not None and self.at_once < 1:
            raise ValueError("workers take 1 request or more")

    def times_us(self, load: Load) -> tuple[Sequence[int], Sequence[int]]:
        """For each request, from its start: until its first token, and until its end."""
        per_prompt_us = SECOND_US / self.prefill if self.prefill else 0.0
        per_token_us = SECOND_US / self.decode if self.decode else 0.0
        latency_us = self.latency_us
        first_us = [
            latency_us + int(prompt * per_prompt_us + (per_token_us if completion else 0.0))
            for prompt, completion in zip(load.prompt, load.completion, strict=True)
        ]
        whole_us = [
            latency_us + int(prompt * per_prompt_us + completion * per_token_us)
            for prompt, completion in zip(load.prompt, load.completion, strict=True)
        ]
        return first_us, whole_us

    def places(self, replicas: int) -> int:
        """Requests that so many replicas work on at once."""
        wanted = replicas * self.concurrency
        return wanted if self.at_once is None else min(wanted, self.at_once)


DECODE_LEAST: Final = 0.001


def speeds_of(load: Load, *, tokens_per_second: int, concurrency: int) -> tuple[float, float]:
    """Prefill and decode of one request, such that a full replica does ``tokens_per_second`` on this load.

    A prompt is read in at the replica's whole speed, since it is one large batch by itself; what is left of the time
    goes into the answer's tokens, which share each step with those of the other requests.

    Example:
        >>> load = Load(at_us=[0], prompt=[1000], completion=[500])
        >>> speeds_of(load, tokens_per_second=3000, concurrency=1)
        (3000.0, 3000.0)
        >>> speeds_of(load, tokens_per_second=3000, concurrency=64)[1]  # (64 x 1500 - 1000) / 3000 s for 500 tokens
        15.789473684210526
    """
    prompt, completion = sum(load.prompt), sum(load.completion)
    prefill = float(tokens_per_second)
    left_s = concurrency * (prompt + completion) / tokens_per_second - prompt / prefill
    return prefill, max(DECODE_LEAST, completion / left_s) if completion else 0.0
