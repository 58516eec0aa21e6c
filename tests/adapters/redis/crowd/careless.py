"""What the crowd's figures would be without an atomic reserve: read the counters, compare, then add.

Each step is right by itself, and between them others do the same. It is here to show that the crowd and its observer
can find what they look for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from penstock.adapters.redis.client import pack
from tests.adapters.redis.crowd.line import Line

AT_ONCE = 6


def caps(processes: int) -> dict[str, int]:
    """Four limits that as many processes fight over."""
    return {f"limit-{number}": share * processes for number, share in enumerate((1_500, 1_800, 2_100, 2_400))}


def live(port: int, seed: int, caps: Mapping[str, int], tried: Callable[[int], bool]) -> None:
    """A process's life: check, then increment; and decrement when done."""
    random, line = Random(seed), Line(port)
    held: list[int] = []
    ending = False
    while held or not ending:
        if not ending and len(held) < AT_ONCE and random.random() < 0.6:
            amount = random.randrange(1, 1_000)
            counted = [int(value or 0) for value in line.ask([pack("GET", key) for key in caps])]
            if all(used + amount <= cap for used, cap in zip(counted, caps.values(), strict=True)):
                line.ask([pack("INCRBY", key, amount) for key in caps])
                held.append(amount)
            ending = tried(1)
        elif held:
            amount = held.pop(random.randrange(len(held)))
            line.ask([pack("DECRBY", key, amount) for key in caps])
            ending = tried(0)
