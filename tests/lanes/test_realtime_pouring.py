"""A stream that is poured: the same events, charges and ends as one that is asked for event by event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from penstock.lanes.requests import StreamReply
from penstock.quota.events import UsageSource
from tests.lanes.stage import ANSWER, STREAM_HEAD, Stage, ending, request, staged, tokens, usage
from tests.lanes.test_realtime_charges import PROMPT_ESTIMATE, assert_charged

TEXTS = [b" t%d" % index for index in range(4)]


def one_by_one(go_on: asyncio.Event, last: bytes) -> ANSWER:
    """Sends each token once the one before has been seen, and then ``last``; "" breaks off."""

    async def answer(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        writer.write(STREAM_HEAD)
        for index in range(4):
            go_on.clear()
            writer.write(_nth(index))
            await go_on.wait()
        if last:
            writer.write(last)
        else:
            writer.close()

    return answer


def _nth(index: int) -> bytes:
    whole = tokens(index + 1)
    return whole[len(tokens(index)) :]


async def poured(stage: Stage, go_on: asyncio.Event, takes: Callable[[bytes], bool]) -> list[bytes]:
    """What the client gets, in order, and whether it was poured (True) or asked for."""
    reply = await stage.lane.answer(request(stream=True))
    assert isinstance(reply, StreamReply)
    assert reply.pour is not None
    seen: list[bytes] = []

    def write(event: bytes) -> bool:
        if not takes(event):
            return False
        seen.append(event)
        go_on.set()
        return True

    async for event in reply.events:
        seen.append(event)
        go_on.set()
        await reply.pour(write)
    return seen


@pytest.mark.parametrize("refused", [(), (b" t1",), (b" t1", b" t2", b" t3")])
def test_what_the_writer_refuses_comes_next_when_asked_for(refused: tuple[bytes, ...]) -> None:
    async def main() -> None:
        go_on = asyncio.Event()
        async with staged(one_by_one(go_on, ending(usage(7, 4)))) as stage:
            seen = await poured(stage, go_on, lambda event: not any(text in event for text in refused))
            shown = b"".join(seen)
            assert [shown.count(text) for text in TEXTS] == [1, 1, 1, 1]
            assert sorted(TEXTS, key=shown.index) == TEXTS
            assert shown.endswith(b"data: [DONE]\n\n")
            assert stage.used() == 11
            stage.assert_nothing_is_held()

    asyncio.run(main())


def test_the_server_that_breaks_off_ends_a_poured_stream_with_an_error() -> None:
    async def main() -> None:
        go_on = asyncio.Event()
        async with staged(one_by_one(go_on, b"")) as stage:
            seen = await poured(stage, go_on, lambda event: True)
            assert b'"error"' in seen[-1]
            assert b"[DONE]" not in seen[-1]
            assert_charged(stage, PROMPT_ESTIMATE, 4, UsageSource.LOCAL)

    asyncio.run(main())


def test_an_event_that_is_not_json_ends_a_poured_stream_after_those_before_it() -> None:
    async def main() -> None:
        go_on = asyncio.Event()
        async with staged(one_by_one(go_on, b"8\r\ndata: {\n\r\n2\r\n\n\n\r\n0\r\n\r\n")) as stage:
            seen = await poured(stage, go_on, lambda event: True)
            assert b'"error"' in seen[-1]
            assert_charged(stage, PROMPT_ESTIMATE, 4, UsageSource.LOCAL)

    asyncio.run(main())


def test_a_client_that_leaves_while_it_is_poured_to_pays_for_what_came() -> None:
    async def main() -> None:
        go_on, second = asyncio.Event(), asyncio.Event()

        async def answer(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
            writer.write(STREAM_HEAD + _nth(0))
            await go_on.wait()
            writer.write(_nth(1))

        def takes(event: bytes) -> bool:
            second.set()
            return True

        async with staged(answer) as stage:
            serving = asyncio.ensure_future(poured(stage, go_on, takes))
            await second.wait()
            serving.cancel()
            await asyncio.wait([serving])
            await stage.servers[0].disconnected.wait()
            assert_charged(stage, PROMPT_ESTIMATE, 2, UsageSource.LOCAL)

    asyncio.run(main())
