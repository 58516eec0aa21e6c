"""No end of a reservation is given up, whatever the store does meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.errors import StoreUnavailable
from penstock.lanes.settling import RetryInProcess, Settling
from penstock.quota.events import Usage
from penstock.quota.operations import Duplicate, Lane, NotReady, Reserve, Settle, Settled, State, Unknown, Void

RESERVE = Reserve(
    organisation="acme", caller_now_ms=0, reservation="r", nonce="n", fingerprint="f", key="k", key_mac="", route="x",
    model="m", body_bytes=1, outputs_bound=1, lane=Lane.REALTIME, job_deadline_ms=1,
)  # fmt: skip
SETTLE = Settle(organisation="acme", caller_now_ms=0, reservation="r", usage=Usage(1, 1))
VOID = Void(organisation="acme", caller_now_ms=0, reservation="r")


class Answering:
    """A store that gives these answers in turn; None: it is away."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls = 0

    async def apply(self, call: Any) -> Any:
        self.calls += 1
        answer = self.answers.pop(0)
        if answer is None:
            raise StoreUnavailable("away")
        return answer


class SlowSpool:
    """A spool that is written only when the test lets it."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.kept: list[tuple[Any, Reserve]] = []

    async def keep(self, ending: Settle | Void, reserve: Reserve) -> None:
        await self.let.wait()
        self.kept.append((ending, reserve))


@pytest.mark.parametrize("answer", [None, NotReady(), Unknown()], ids=["away", "not ready", "unknown"])
def test_what_the_store_does_not_acknowledge_is_in_the_spool_before_the_answer_ends(answer: Any) -> None:
    async def main() -> None:
        spool = SlowSpool()
        settling = Settling(Answering(answer), spool)
        ending = asyncio.ensure_future(settling.settle(SETTLE, RESERVE))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not ending.done()
        spool.let.set()
        assert await ending == 0
        assert spool.kept == [(SETTLE, RESERVE)]

    asyncio.run(main())


def test_interrupted_while_the_spool_is_written_it_is_written_all_the_same() -> None:
    async def main() -> None:
        spool = SlowSpool()
        settling = Settling(Answering(None), spool)
        ending = asyncio.ensure_future(settling.void(VOID, RESERVE))
        for _ in range(10):
            await asyncio.sleep(0)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        spool.let.set()
        await settling.close()
        assert spool.kept == [(VOID, RESERVE)]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "cost_nanos"), [(Settled(State.POSTED, 7), 7), (Settled(State.LATE, 3), 3), (Duplicate(State.POSTED), 0)]
)
def test_what_the_store_acknowledges_needs_no_spool(answer: Any, cost_nanos: int) -> None:
    async def main() -> None:
        spool = SlowSpool()
        assert await Settling(Answering(answer), spool).settle(SETTLE, RESERVE) == cost_nanos
        assert spool.kept == []

    asyncio.run(main())


def test_the_spool_in_process_tries_until_the_store_acknowledges() -> None:
    async def main() -> None:
        store = Answering(None, NotReady(), Settled(State.POSTED, 7))
        spool = RetryInProcess(store)
        await spool.keep(SETTLE, RESERVE)
        assert spool.waiting == 1
        await spool.close()
        assert (store.calls, store.answers, spool.waiting) == (3, [], 0)

    asyncio.run(main())
