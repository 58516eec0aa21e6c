"""Clients that leave, operators that cancel, stores that go away, and two servers of which one fails."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from penstock.errors import Forbidden, UpstreamBroken, UpstreamError, UpstreamTimeout
from penstock.lanes.leases import WAITING_TOUCH_EVERY_S
from penstock.lanes.requests import Reply, StreamReply
from penstock.lanes.upstreams import FAILURES_MAX
from penstock.quota.definitions import Overrun
from penstock.quota.events import EventKind, UsageSource
from penstock.quota.operations import Cancel, Extend, Settle, Touch
from tests.lanes.stage import (
    LEARNED,
    STREAM_HEAD,
    Stage,
    collect,
    completion,
    definitions,
    ending,
    request,
    sends,
    staged,
    text_of,
    tokens,
    usage,
    whole,
)
from tests.lanes.test_realtime_charges import PROMPT_ESTIMATE, assert_charged, assert_void

Leave = Callable[[Stage], Awaitable[None]]


def test_stream_that_is_closed_disconnects_the_server_and_charges_what_arrived() -> None:
    async def main() -> None:
        async with staged(sends(STREAM_HEAD, tokens(4))) as stage:
            asked = request(stream=True)
            reply = await stage.lane.answer(asked)
            assert isinstance(reply, StreamReply)
            await anext(reply.events)
            await reply.events.aclose()
            await reply.events.aclose()
            await stage.servers[0].disconnected.wait()
            assert_charged(stage, PROMPT_ESTIMATE, 4, UsageSource.LOCAL)
            assert asked.record.outcome == "client_gone"

    asyncio.run(main())


def test_stream_that_is_closed_before_it_was_begun_leaves_no_hold() -> None:
    async def main() -> None:
        async with staged(sends(STREAM_HEAD, tokens(4))) as stage:
            reply = await stage.lane.answer(request(stream=True))
            assert isinstance(reply, StreamReply)
            await reply.events.aclose()
            await stage.servers[0].disconnected.wait()
            assert_charged(stage, PROMPT_ESTIMATE, 4, UsageSource.LOCAL)

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("answer", "rounds"),
    [(b"", 0), (STREAM_HEAD, 0), (STREAM_HEAD, 20)],
    ids=["before the head", "as the head arrives", "after the head"],
)
def test_client_that_leaves_while_it_waits_disconnects_the_server(stream: bool, answer: bytes, rounds: int) -> None:
    async def main() -> None:
        arrived = asyncio.Event()

        async def serve(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
            writer.write(answer)
            arrived.set()

        async with staged(serve) as stage:
            waiting = asyncio.ensure_future(stage.lane.answer(request(stream=stream)))
            await arrived.wait()
            for _ in range(rounds):  # of the event loop, in which the head is read
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await stage.servers[0].disconnected.wait()
            await stage.lane.close()
            assert_charged(stage, PROMPT_ESTIMATE, 0, UsageSource.LOCAL)

    asyncio.run(main())


def test_client_that_leaves_while_its_settle_is_under_way_is_charged_once() -> None:
    async def main() -> None:
        async with staged(sends(whole(completion(usage(7, 3))))) as stage:
            gate, reached = asyncio.Event(), asyncio.Event()
            apply = stage.store.apply

            async def slow(call: Any) -> Any:
                if isinstance(call, Settle):
                    reached.set()
                    stage.store.waits_for = gate
                return await apply(call)

            stage.store.apply = slow  # type: ignore[method-assign]
            waiting = asyncio.ensure_future(stage.lane.answer(request()))
            await reached.wait()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            gate.set()
            await stage.lane.close()
            assert_charged(stage, 7, 3, UsageSource.UPSTREAM)

    asyncio.run(main())


def test_cancelled_reservation_ends_the_stream_and_is_charged_what_arrived() -> None:
    async def main() -> None:
        async with staged(sends(STREAM_HEAD, tokens(4))) as stage:
            asked = request(stream=True)
            reply = await stage.lane.answer(asked)
            assert isinstance(reply, StreamReply)
            await anext(reply.events)
            cancel(stage, asked.record.reservation)
            await stage.lane.leases.touch_due()
            (last,) = await collect(reply)
            assert "cancelled" in last["error"]["message"]
            await stage.servers[0].disconnected.wait()
            assert_charged(stage, PROMPT_ESTIMATE, 4, UsageSource.LOCAL)
            assert stage.health.changes == [(stage.lane_upstream(), True)]

    asyncio.run(main())


def test_cancelled_reservation_of_a_whole_answer_is_an_error_of_its_own() -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def serve(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
            writer.write(whole(completion())[:-1])
            begun.set()

        async with staged(serve) as stage:
            asked = request()
            waiting = asyncio.ensure_future(stage.lane.answer(asked))
            await begun.wait()
            for _ in range(10):
                await asyncio.sleep(0)
            cancel(stage, asked.record.reservation)
            stage.clock.ms += int(WAITING_TOUCH_EVERY_S * 1000)
            await stage.lane.leases.touch_due()
            with pytest.raises(Forbidden, match="cancelled"):
                await waiting
            assert_charged(stage, PROMPT_ESTIMATE, 0, UsageSource.LOCAL)

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_reservation_cancelled_before_the_head_ends_when_it_arrives_and_says_nothing_of_the_server(
    stream: bool,
) -> None:
    async def main() -> None:
        async def serve(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
            begun.set()
            await go_on.wait()
            writer.write(STREAM_HEAD)
            if not stream:
                writer.write(b"1\r\n{\r\n")

        async with staged(serve) as stage:
            for _ in range(FAILURES_MAX):
                begun, go_on = asyncio.Event(), asyncio.Event()
                asked = request(stream=stream)
                waiting = asyncio.ensure_future(stage.lane.answer(asked))
                await begun.wait()
                cancel(stage, asked.record.reservation)
                stage.clock.ms += int(WAITING_TOUCH_EVERY_S * 1000)
                await stage.lane.leases.touch_due()
                go_on.set()
                with pytest.raises(Forbidden, match="cancelled"):
                    await waiting
            assert stage.used() == FAILURES_MAX * PROMPT_ESTIMATE
            stage.assert_nothing_is_held()
            assert stage.health.changes == [(stage.lane_upstream(), True)]

    asyncio.run(main())


def cancel(stage: Stage, reservation: str) -> None:
    stage.store.now(Cancel(organisation="acme", caller_now_ms=stage.clock.ms, reservation=reservation))


def test_lease_is_renewed_with_progress_while_bytes_flow_and_seldom_while_none_do() -> None:
    async def main() -> None:
        async with staged(sends(STREAM_HEAD, tokens(4))) as stage:
            reply = await stage.lane.answer(request(stream=True))
            assert isinstance(reply, StreamReply)
            await stage.lane.leases.touch_due()
            await stage.lane.leases.touch_due()
            assert [(call.prompt, call.completion) for call in touches(stage)] == [(0, 4)]
            stage.clock.ms += int(WAITING_TOUCH_EVERY_S * 1000)
            await stage.lane.leases.touch_due()
            assert len(touches(stage)) == 2
            (hold,) = stage.store.inspect().holds
            assert hold.deadline_ms == stage.clock.ms + 60_000
            await reply.events.aclose()
            await stage.lane.leases.touch_due()
            assert len(touches(stage)) == 2

    asyncio.run(main())


def touches(stage: Stage) -> list[Touch]:
    return [call for call in stage.store.seen if isinstance(call, Touch)]


@pytest.mark.parametrize("stream", [False, True])
def test_answer_ends_though_the_store_is_away_and_is_charged_when_it_is_back(stream: bool) -> None:
    async def main() -> None:
        answer = sends(STREAM_HEAD, tokens(3), ending(usage(7, 3))) if stream else sends(whole(completion(usage(7, 3))))
        async with staged(answer) as stage:
            stage.store.refusing = (Settle,)
            reply = await stage.lane.answer(request(stream=stream))
            if isinstance(reply, Reply):
                assert reply.status == 200
            else:
                assert (await collect(reply))[-1] == "[DONE]"
            assert stage.used() == 0
            stage.store.refusing = ()
            while not stage.store.ends():
                await asyncio.wait([asyncio.ensure_future(asyncio.Event().wait())], timeout=0.02)
            assert_charged(stage, 7, 3, UsageSource.UPSTREAM)

    asyncio.run(main())


# --- several servers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_second_server_answers_where_the_first_cannot_be_reached_and_it_is_billed_once(stream: bool) -> None:
    async def main() -> None:
        answer = sends(STREAM_HEAD, tokens(3), ending(usage(7, 3))) if stream else sends(whole(completion(usage(7, 3))))
        with socket.socket() as dead:
            dead.bind(("127.0.0.1", 0))
            address = f"http://127.0.0.1:{dead.getsockname()[1]}"
            async with staged(answer, addresses=(address,)) as stage:
                attempts = []
                for _ in range(8):
                    asked = request(stream=stream)
                    reply = await stage.lane.answer(asked)
                    if isinstance(reply, StreamReply):
                        assert (await collect(reply))[-1] == "[DONE]"
                    attempts.append(asked.record.attempts)
                assert stage.used() == 80
                assert len(stage.store.ends()) == 8
                assert attempts.count(2) == 3  # then it is ejected
                assert stage.health.changes[2:] == [(address, False)]
                stage.assert_nothing_is_held()

    asyncio.run(main())


@pytest.mark.parametrize("status", ["429 Busy", "503 Busy"])
def test_busy_server_is_left_for_another(status: str) -> None:
    async def main() -> None:
        async with staged(sends(whole({}, status)), sends(whole(completion(usage(7, 3))))) as stage:
            for _ in range(4):
                await stage.lane.answer(request())
            assert stage.used() == 40

    asyncio.run(main())


def test_two_busy_servers_are_the_end() -> None:
    async def main() -> None:
        busy = sends(whole({}, "429 Busy", "retry-after: 9\r\n"))
        async with staged(busy, busy, busy) as stage:
            with pytest.raises(UpstreamError) as caught:
                await stage.lane.answer(request())
            assert (caught.value.status, caught.value.retry_after_ms) == (429, 9000)
            assert len(stage.received) == 2
            assert_void(stage)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "error"),
    [(sends(b"", disconnect=True), UpstreamBroken), (sends(whole({}, "500 Oops")), UpstreamError)],
    ids=["closes without an answer", "fails"],
)
def test_request_that_may_have_been_carried_out_is_not_repeated(answer: Any, error: type[Exception]) -> None:
    async def main() -> None:
        async with staged(answer, answer) as stage:
            with pytest.raises(error):
                await stage.lane.answer(request())
            assert len(stage.received) == 1
            assert len(stage.store.ends()) == 1

    asyncio.run(main())


def test_second_server_has_only_the_time_that_the_first_left() -> None:
    async def main() -> None:
        async def busy(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
            stage.clock.ms += 599_950
            writer.write(whole({}, "503 Busy"))

        async with staged(busy, sends(b"")) as stage:
            with pytest.raises(UpstreamTimeout) as caught:
                await asyncio.wait_for(stage.lane.answer(request()), 10)
            assert caught.value.phase == "total"
            assert len(stage.received) == 2

    asyncio.run(main())


# --- holds that are estimates ------------------------------------------------------------------------------------


async def learn(stage: Stage, count: int = 20) -> None:
    """Teach the store that answers have one token."""
    for _ in range(count):
        await stage.lane.answer(request())


def teaches_then_streams(go_on: asyncio.Event) -> Any:
    """A server whose whole answers have one token, and whose streams have 40, a pause, and 5 more."""

    async def answer(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        if not body.get("stream"):
            writer.write(whole(completion(usage(7, 1))))
            return
        writer.write(STREAM_HEAD + tokens(40))
        await writer.drain()
        await go_on.wait()
        writer.write(tokens(5) + ending(usage(7, 45)))

    return answer


def test_stream_that_outgrows_its_estimate_extends_its_hold() -> None:
    async def main() -> None:
        go_on = asyncio.Event()
        async with staged(teaches_then_streams(go_on), governed=definitions(**LEARNED)) as stage:
            await learn(stage)
            asked = request(stream=True)
            reply = await stage.lane.answer(asked)
            go_on.set()
            assert (await collect(reply))[-1] == "[DONE]"
            extends = [call for call in stage.store.seen if isinstance(call, Extend)]
            assert len(extends) == 1
            assert asked.record.tokens_held == 7 + 50
            assert stage.store.ends()[-1].usage.completion == 45

    asyncio.run(main())


@pytest.mark.parametrize(("overrun", "charged"), [(Overrun.STOP, 40), (Overrun.DEBT, 45)])
def test_refused_extension_stops_the_stream_or_runs_into_debt_by_policy(overrun: Overrun, charged: int) -> None:
    async def main() -> None:
        go_on = asyncio.Event()
        server = teaches_then_streams(go_on)
        async with staged(server, governed=definitions(**LEARNED), overrun=overrun) as stage:
            await learn(stage)
            stage.lower_cap(stage.used() + 30)
            reply = await stage.lane.answer(request(stream=True))
            go_on.set()
            *events, done = await collect(reply)
            assert done == "[DONE]"
            stopped = events[-1]["choices"][0]["finish_reason"] == "length"
            assert stopped is (overrun is Overrun.STOP)
            assert len(text_of(events).split()) == charged
            last = stage.store.ends()[-1]
            assert (last.kind, last.usage.completion) == (EventKind.POSTED, charged)
            stage.assert_nothing_is_held()

    asyncio.run(main())
