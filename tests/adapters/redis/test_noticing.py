"""A process notices a loss of the quota's state by whatever it is answered, and tells again what it was promised."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.adapters.redis.retelling import Retelling
from penstock.quota import Done, Inspect, Inspected, NotReady, Organisation, Reassert, Settle, Touch, Unknown, Usage
from tests.adapters.redis.desks import define, ready, reserve
from tests.adapters.redis.test_replaying import T0_MS, at
from tests.adapters.redis.test_retelling import nothing_drained

MINE: dict[str, Any] = {"organisation": "acme", "caller_now_ms": T0_MS, "reservation": reserve(1).reservation}
INSPECT = Inspect(organisation="acme", caller_now_ms=T0_MS, holds_max=0)


def told_after(*heard: tuple[Any, object]) -> list[str]:
    """Which calls a process tells again that was let in, and was then answered this."""
    told: list[Any] = []

    async def apply(call: Any) -> Any:
        told.append(call)
        return Done()

    async def main() -> None:
        organisation, retelling = Organisation("acme"), Retelling(apply, lambda: T0_MS, nothing_drained)
        for call in (at(define(), T0_MS), at(ready(), T0_MS), at(reserve(1), T0_MS), INSPECT):
            retelling.note(call, organisation.apply(call, time_ms=T0_MS))
        for call, answer in heard:
            retelling.note(call, answer)
        for _ in range(5):
            await asyncio.sleep(0)
        await retelling.close()

    asyncio.run(main())
    return [type(call).__name__ for call in told]


def inspected(epoch: int) -> tuple[Any, object]:
    return INSPECT, Inspected(T0_MS, epoch, (), ())


@pytest.mark.parametrize(
    "heard",
    [
        (INSPECT, NotReady()),
        inspected(0),
        inspected(2),
        (Touch(**MINE, prompt=0, completion=0), Unknown()),
        (Settle(**MINE, usage=Usage(1, 1)), Unknown()),
    ],
)
def test_a_loss_is_noticed_even_if_it_was_put_back_since_the_last_answer(heard: tuple[Any, object]) -> None:
    assert told_after(heard) == [Reassert.__name__]


def test_nothing_is_told_while_nothing_is_lost() -> None:
    assert told_after(inspected(1), (Touch(**MINE, prompt=0, completion=0), Done())) == []
