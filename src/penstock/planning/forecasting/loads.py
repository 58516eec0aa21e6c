"""What is simulated: when requests come and how long they are, from a trace, from history, or made up from a seed.

Columns of plain numbers and not one object for each request: there may be millions, and they are gone through once for
each setting that is compared.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import Final

from penstock.errors import InvalidRequest
from penstock.planning.rehearsing.traces import Arrival

SECOND_US: Final = 1_000_000
MILLISECOND_US: Final = 1_000
DAY_S: Final = 86_400
BURST_S: Final = 1.0
"""A burst's requests come within this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests in order of their arrival.

    Args:
        at_us: Microseconds after the first one.
        prompt: Tokens of each prompt.
        completion: Tokens of each answer.
    """

    at_us: Sequence[int]
    prompt: Sequence[int]
    completion: Sequence[int]

    def __len__(self) -> int:
        return len(self.at_us)

    @property
    def tokens(self) -> int:
        """Of all prompts and answers."""
        return sum(self.prompt) + sum(self.completion)

    @property
    def work(self) -> int:
        """In tokens, counted as a model's capacity is: of answers, or of prompts where nothing is answered."""
        return sum(self.works())

    def works(self) -> Iterator[int]:
        """The same of each request."""
        return (answer or prompt for prompt, answer in zip(self.prompt, self.completion, strict=True))

    @property
    def lasts_s(self) -> float:
        """From the first arrival to the last."""
        return (self.at_us[-1] - self.at_us[0]) / SECOND_US


class Shape(StrEnum):
    """How generated requests are spread over time."""

    POISSON = "poisson"
    DIURNAL = "diurnal"
    BURSTS = "bursts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """What to make up.

    Args:
        requests: How many.
        rate: Of them per second, on average.
        peak: ``diurnal``: the busiest moment's rate, as a multiple of the average; the quietest is as far below.
        every_s: ``bursts``: between two of them; half of all requests come in bursts, the others evenly.
        seed: The same seed draws the same load.
    """

    shape: Shape
    requests: int
    rate: float
    seed: int
    peak: float = 1.8
    every_s: float = 600.0

    def __post_init__(self) -> None:
        if self.requests < 1 or not 0 < self.rate < math.inf or self.every_s <= BURST_S:
            raise InvalidRequest(
                f"a load has 1 request or more, a rate above 0 and bursts more than {BURST_S:g} s apart; "
                f"found {self.requests} requests, {self.rate:g} per second, every {self.every_s:g} s"
            )
        if not 1 <= self.peak <= 2:
            raise InvalidRequest(
                f"--peak: found {self.peak:g}, wanted 1 to 2 times the average: at 2 the quietest moment has none"
            )


def of_arrivals(arrivals: Iterable[Arrival], *, speed: float = 1.0, repeat: int = 1) -> Load:
    """A load of a trace's requests.

    Args:
        speed: Times the trace's own: 2 brings twice as many requests per second.
        repeat: How often the trace is gone through; it begins anew one mean gap after its last request.

    Raises:
        InvalidRequest: There is no request.
    """
    found = list(arrivals)
    if not found:
        raise InvalidRequest("there is no request in it; give a trace or a time that has some")
    at_us = [round(arrival.at_ms * MILLISECOND_US / speed) for arrival in found]
    whole_us = at_us[-1] + (at_us[-1] // (len(found) - 1) if len(found) > 1 else SECOND_US)
    return Load(
        at_us=[turn * whole_us + each for turn in range(repeat) for each in at_us],
        prompt=[arrival.prompt for arrival in found] * repeat,
        completion=[arrival.completion for arrival in found] * repeat,
    )


def generate(wanted: Generator, lengths: Sequence[Arrival]) -> Load:
    """Make a load up.

    Args:
        lengths: Prompt and answer of each request are drawn from these, together, as they were.
    """
    source = random.Random(wanted.seed)
    times_s = _TIMES[wanted.shape](wanted, source)
    drawn = source.choices(lengths, k=wanted.requests)
    at_us = [int(at_s * SECOND_US) for at_s in times_s]
    first_us = at_us[0]
    return Load(
        at_us=[each - first_us for each in at_us],
        prompt=[arrival.prompt for arrival in drawn],
        completion=[arrival.completion for arrival in drawn],
    )


def _poisson(wanted: Generator, source: random.Random) -> Iterator[float]:
    return accumulate(source.expovariate(wanted.rate) for _ in range(wanted.requests))


def _diurnal(wanted: Generator, source: random.Random) -> Iterator[float]:
    """A sine over the day from its quietest moment on, by thinning a stream as dense as its peak.

    Source: Lewis and Shedler, "Simulation of nonhomogeneous Poisson processes by thinning", 1979.
    """
    swing, densest = wanted.peak - 1, wanted.rate * wanted.peak
    at_s, made = 0.0, 0
    while made < wanted.requests:
        at_s += source.expovariate(densest)
        if source.random() * wanted.peak <= 1 - swing * math.cos(2 * math.pi * at_s / DAY_S):
            made += 1
            yield at_s


def _bursts(wanted: Generator, source: random.Random) -> Iterator[float]:
    in_bursts = wanted.requests // 2
    evenly = wanted.requests - in_bursts
    times_s = list(accumulate(source.expovariate(wanted.rate / 2) for _ in range(evenly)))
    bursts = max(1, round(wanted.requests / wanted.rate / wanted.every_s))
    times_s += [(number % bursts + 0.5) * wanted.every_s + BURST_S * source.random() for number in range(in_bursts)]
    return iter(sorted(times_s))


_TIMES: Final = {Shape.POISSON: _poisson, Shape.DIURNAL: _diurnal, Shape.BURSTS: _bursts}
