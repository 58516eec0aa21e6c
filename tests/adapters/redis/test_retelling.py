"""What was acknowledged while a lost state was being told again is told as well, if that is lost in its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest

from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.client import RedisClient
from penstock.adapters.redis.positions import Position
from penstock.adapters.redis.replaying import KEPT_MS
from penstock.adapters.redis.retelling import Retelling
from penstock.adapters.redis.wire import Refusal, Wire, pack
from penstock.errors import StoreUnavailable
from penstock.quota.operations import Call, ClockSkew, Done, NotReady, Reassert, Reserved, Settle, Settled, State
from tests.adapters.redis.desks import reserve, settle
from tests.system.services import Redis

T0_MS = 1_700_000_000_000
RESERVED = Reserved(deadline_ms=0, tokens_held=0, epoch=1, readings=())
SETTLED = Settled(State.POSTED, 0)
EARLIER, LATER = range(1, 5), 5


async def nothing_drained(organisations: Collection[str]) -> dict[str, Position]:
    return dict.fromkeys(organisations, Position(1, (1, 0), (1, 0)))


class SlowRedis:
    """Each call takes it more than half of the time for which acknowledgements are kept; lost again after the first."""

    def __init__(self) -> None:
        self.now_ms = T0_MS
        self.told: list[Call[Any]] = []
        self.retelling = Retelling(self.apply, lambda: self.now_ms, nothing_drained)

    def acknowledges(self, number: int) -> None:
        for call, answer in ((reserve(number), RESERVED), (settle(number), SETTLED)):
            self.retelling.note(replace(call, caller_now_ms=self.now_ms), answer)

    def is_lost(self) -> None:
        self.told.clear()
        self.retelling.note(replace(reserve(99), caller_now_ms=self.now_ms), NotReady())

    async def apply(self, call: Call[Any]) -> Any:
        is_first = self.now_ms == T0_MS
        self.now_ms += KEPT_MS // 2 + 1
        self.told.append(call)
        self.retelling.note(call, answer := Done() if isinstance(call, Reassert) else SETTLED)
        if is_first:
            self.acknowledges(LATER)
            self.is_lost()
        await asyncio.sleep(0)
        return answer


def test_what_is_acknowledged_while_a_loss_is_told_is_told_if_that_is_lost_too_however_long_it_takes() -> None:
    async def run() -> list[Call[Any]]:
        redis = SlowRedis()
        for number in EARLIER:
            redis.acknowledges(number)
        redis.is_lost()
        for _ in range(100):
            await asyncio.sleep(0)
        await redis.retelling.close()
        return redis.told

    told = asyncio.run(run())
    wanted = {settle(number).reservation for number in (*EARLIER, LATER)}
    assert {call.reservation for call in told if isinstance(call, Settle)} == wanted
    assert {call.arguments.reservation for call in told if isinstance(call, Reassert)} == wanted


@pytest.mark.parametrize("refused_with", [ClockSkew(), NotReady(), Refusal("OOM command not allowed")])
def test_what_is_not_taken_is_told_until_it_is(refused_with: object) -> None:
    told: list[Call[Any]] = []
    answers = iter([refused_with, refused_with])

    async def apply(call: Call[Any]) -> Any:
        answer = next(answers, None)
        if isinstance(answer, Refusal):
            raise StoreUnavailable(str(answer))
        if answer is None:
            told.append(call)
        return answer or (Done() if isinstance(call, Reassert) else SETTLED)

    async def send(_call: Call[Any]) -> object:
        return refused_with

    async def run() -> None:
        retelling = Retelling(apply, lambda: T0_MS, nothing_drained, tell_every_s=0)
        for call, answer in ((reserve(1), RESERVED), (settle(1), SETTLED)):
            retelling.note(replace(call, caller_now_ms=T0_MS), answer)
        await retelling.tell(send, lambda _: True)
        for _ in range(100):
            await asyncio.sleep(0)
        await retelling.close()

    asyncio.run(run())
    assert list(dict.fromkeys(type(call) for call in told)) == [Reassert, Settle]


@pytest.mark.slow
def test_a_client_that_is_closed_while_it_tells_again_leaves_no_connection(service: Redis) -> None:
    async def run() -> bool:
        telling: asyncio.Future[Wire] = asyncio.get_running_loop().create_future()

        async def tell(wire: Wire, _: object) -> None:
            telling.set_result(wire)
            await asyncio.Event().wait()

        client = RedisClient(read_address(service.url), bound_s=60, restarted=tell)
        await client.start()
        client.distrust()
        asked = asyncio.create_task(client.ask(pack("PING")))
        wire = await telling
        await client.close()
        await asyncio.gather(asked, return_exceptions=True)
        return wire.is_lost

    assert asyncio.run(run())
