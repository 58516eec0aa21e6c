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


READING_TO_WRITING: Final = 10
"""A prompt's tokens are read in so much faster than a full replica writes: a prompt is one large batch by itself."""
READING_PERMILLE_MAX: Final = 500
"""Of a request's time, whatever its prompt's length."""


def speeds_of(load: Load, *, tokens_per_second: int, concurrency: int) -> tuple[float, float]:
    """Prefill and decode of one request, such that a full replica does ``tokens_per_second`` on this load.

    Work is counted as capacity is, in tokens of answers, or of prompts where nothing is answered (embeddings): see
    ``penstock.planning.flow``.

    Example:
        >>> load = Load(at_us=[0], prompt=[1000], completion=[500])
        >>> speeds_of(load, tokens_per_second=2000, concurrency=64)  # 16 s: 0.05 s for the prompt, then 500 tokens
        (20000.0, 31.347962382445143)
    """
    requests, prompt, completion = len(load), sum(load.prompt), sum(load.completion)
    whole_s = concurrency * load.work / requests / tokens_per_second
    if not completion:
        return prompt / requests / whole_s, 0.0
    reading_s = prompt / requests / (READING_TO_WRITING * tokens_per_second)
    reading_s = min(reading_s, whole_s * READING_PERMILLE_MAX / 1_000)
    return prompt / requests / reading_s, completion / requests / (whole_s - reading_s)
