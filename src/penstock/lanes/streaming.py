"""One streamed answer on its way to the client.

::

    begin -> events ... -> settle -> [DONE]
                 |-> the server fails: settle what came, an error event, no [DONE]
                 |-> the client leaves (closed or cancelled): disconnect the server, settle what came
                 '-> the hold is outgrown: extend; refused: finish_reason "length", settle, [DONE]

Events come by asking for the next one, or, while there is nothing to do but to count them and pass them on, they are
poured: straight from the arrival of their bytes to the client, without waking the task of the request.

A class and not a generator function, since closing a generator that never began runs none of its code, and a hold
would be left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, Final

from penstock.errors import PenstockError, StoreUnavailable, UpstreamBroken, UpstreamError
from penstock.lanes.admission import Admission
from penstock.lanes.bodies import error_event
from penstock.lanes.calling import Called
from penstock.lanes.chunks import Chunks
from penstock.lanes.counting import estimate_prompt, reported_usage
from penstock.lanes.event_stream import EventSplitter
from penstock.lanes.upstreams import Verdict
from penstock.ports import QuotaStore
from penstock.quota.definitions import Overrun
from penstock.quota.events import Usage
from penstock.quota.operations import Denied, Extend, Extended

DRAIN_S: Final = 0.05
EXTEND_TOKENS_MIN: Final = 64
_NEVER: Final = 1 << 62
_DONE: Final = b"data: [DONE]\n\n"


class AnswerStream(AsyncGenerator[bytes, None]):
    """The events of one answer (``penstock.lanes.requests.StreamReply.events``).

    Args:
        overrun: What happens when the hold is outgrown and cannot be extended.
    """

    __slots__ = (
        "_admission", "_called", "_chunks", "_extend_above", "_fed", "_first", "_has_begun", "_is_over", "_overrun",
        "_pieces", "_prompt_tokens", "_splitter", "_store", "_write",
    )  # fmt: skip

    def __init__(self, admission: Admission, called: Called, store: QuotaStore, overrun: Overrun) -> None:
        request, model = admission.request, admission.model
        self._admission = admission
        self._called = called
        self._store = store
        self._overrun = overrun
        self._pieces: AsyncIterator[bytes] = called.response.chunks()
        self._splitter = EventSplitter()
        self._chunks = Chunks(
            name=model.name, include_usage=request.include_usage, bytes_per_token=model.bytes_per_token
        )
        self._first = b""
        self._fed: bytes | None = None  # what is shown of a piece that was taken while pouring, and needs more
        self._write: Callable[[bytes], bool] | None = None
        self._has_begun = self._is_over = False
        self._prompt_tokens = 0
        self._extend_above = self._hold_allows()
        admission.progress = self._progress

    async def begin(self) -> None:
        """Wait for the first events, so that a failure before them is an answer of its own and no event.

        Raises:
            UpstreamError: And the reservation has ended.
        """
        self._first = await self._advance()
        self._has_begun = True

    def __anext__(self) -> Coroutine[Any, Any, bytes]:
        return self._beside() if self._first or self._is_over else self._advance()

    async def asend(self, value: None) -> bytes:
        """See ``AsyncGenerator``; the value is not used."""
        return await self.__anext__()

    async def athrow(self, *error: Any) -> bytes:
        """See ``AsyncGenerator``: closes, then raises."""
        await self.aclose()
        raise error[0]

    async def pour(self, write: Callable[[bytes], bool]) -> None:
        """See ``penstock.lanes.requests.StreamReply``."""
        if self._is_over or self._first or self._fed is not None or self._chunks.failure is not None:
            return
        self._write = write
        try:
            await self._called.response.pour(self._take)
        except asyncio.CancelledError:
            await self.aclose()
            raise
        finally:
            self._write = None

    async def aclose(self) -> None:
        """The client wants no more: disconnect the server, and settle what it produced."""
        self._first = b""
        if self._is_over:
            self._admission.release(Verdict.WORKED)
            return
        self._is_over = True
        self._admission.request.record.outcome = "client_gone"
        self._admission.release(Verdict.NOTHING)
        await self._admission.settle(self._usage())

    # --- one step --------------------------------------------------------------------------------------------

    async def _beside(self) -> bytes:
        """What is not read from the server: the first events once more, and the end."""
        if self._first:
            first, self._first = self._first, b""
            return first
        await self._drain()
        raise StopAsyncIteration

    async def _advance(self) -> bytes:
        """The next events. Each of a model's tokens passes here: no call that is not needed."""
        chunks = self._chunks
        try:
            while True:
                if self._fed is not None:
                    shown, self._fed = self._fed, None
                elif chunks.failure is not None:
                    raise chunks.failure
                else:
                    try:
                        piece = await self._pieces.__anext__()
                    except StopAsyncIteration:
                        return await self._finish_without_done()
                    shown = chunks.feed(self._splitter.feed(piece))
                if chunks.is_done:
                    return await self._finish(shown)
                self._note()
                if chunks.tokens > self._extend_above and not await self._extend():
                    return await self._stop(shown)
                if shown:
                    return shown
        except UpstreamError as error:
            return await self._broken(error)
        except asyncio.CancelledError:
            await self.aclose()
            raise

    def _take(self, piece: bytes) -> bool:
        """A piece that is poured. False: ``_advance`` is to go on with it."""
        chunks = self._chunks
        try:
            shown = chunks.feed(self._splitter.feed(piece))
        except UpstreamBroken as error:
            chunks.failure = error
            return False
        if chunks.is_done or chunks.failure is not None or chunks.tokens > self._extend_above:
            self._fed = shown
            return False
        self._note()
        if shown and not (self._write is not None and self._write(shown)):
            self._first = shown
            return False
        return True

    def _note(self) -> None:
        """Record how far the answer has come."""
        events, record = self._chunks.events, self._admission.request.record
        if events and not record.chunks:
            record.first_token_ms = (self._admission.clock.monotonic_s() - record.received_at_s) * 1000
        record.chunks = events

    async def _broken(self, error: UpstreamError) -> bytes:
        """Raise while the answer has not begun; after that it is an event."""
        shown = await self._fail(error)
        if not self._has_begun:
            raise shown from error
        record = self._admission.request.record
        record.outcome = "cancelled" if self._admission.is_cancelled else "upstream_error"
        record.error = type(error).__name__
        return error_event(shown.message, record.outcome)

    async def _finish_without_done(self) -> bytes:
        """The body ended without ``[DONE]``."""
        shown = self._chunks.end(self._splitter.rest())
        return await self._finish(shown)

    async def _finish(self, shown: bytes) -> bytes:
        """Settle; only then the last bytes, which end what is shown."""
        usage = self._usage()
        self._is_over = True
        self._admission.request.record.chunks = self._chunks.events
        if self._admission.request.include_usage:
            shown += self._chunks.usage_event(usage.prompt, usage.cached, usage.completion)
        shown += _DONE
        await self._admission.finish(usage, shown)
        return shown

    async def _stop(self, shown: bytes) -> bytes:
        """End the answer here, as if it had reached its longest."""
        self._admission.release(Verdict.WORKED)
        self._admission.request.record.extra["stopped_by"] = "quota"
        request = self._admission.request
        ending = self._chunks.ending("length", request.outputs, is_chat=request.route != "completions")
        return await self._finish(shown + ending)

    async def _fail(self, error: UpstreamError) -> PenstockError:
        self._is_over = True
        usage = self._usage()
        if usage.completion or self._admission.is_cancelled:
            self._admission.release(Verdict.FAILED)
            await self._admission.settle(usage)
        return await self._admission.fail(error)

    async def _drain(self) -> None:
        """Read the end of the body, which follows ``[DONE]`` at once, so that the connection can be kept."""
        if self._admission.called is not None:
            await drain(self._pieces)
            self._admission.release(Verdict.WORKED)

    # --- counting --------------------------------------------------------------------------------------------

    def _usage(self) -> Usage:
        """The server's report, if it makes sense, else what was counted here."""
        reported = reported_usage(self._chunks.usage, self._admission.bounds)
        return self._admission.local(self._chunks.tokens) if reported is None else reported

    def _progress(self) -> tuple[int, int]:
        reported = reported_usage(self._chunks.usage, self._admission.bounds)
        if reported is not None:
            return reported.prompt, reported.completion
        return 0, min(self._chunks.tokens, self._admission.bounds.completion)

    # --- holds that are estimates ----------------------------------------------------------------------------

    def _hold_allows(self) -> int:
        """How many completion tokens the hold covers; without end if it covers the most there can be."""
        admission = self._admission
        bounds = admission.bounds
        if admission.tokens_held >= bounds.completion + min(bounds.prompt, bounds.prompt_bytes):
            return _NEVER
        self._prompt_tokens = estimate_prompt(admission.request.body, admission.model.bytes_per_token)
        return max(0, admission.tokens_held - self._prompt_tokens)

    async def _extend(self) -> bool:
        """Ask for twice what was produced. False: the answer must stop."""
        admission = self._admission
        most = admission.bounds.completion
        wanted = min(most, 2 * max(self._chunks.tokens, EXTEND_TOKENS_MIN))
        call = Extend(
            organisation=admission.reserve.organisation,
            caller_now_ms=admission.clock.now_ms(),
            reservation=admission.reserve.reservation,
            total_tokens=self._prompt_tokens + wanted,
        )
        try:
            answer = await self._store.apply(call)
        except StoreUnavailable:
            answer = None
        if isinstance(answer, Denied):
            self._extend_above = _NEVER
            return self._overrun is Overrun.DEBT
        if isinstance(answer, Extended):
            admission.request.record.tokens_held = admission.tokens_held = answer.tokens_held
        self._extend_above = _NEVER if wanted == most else wanted  # no answer is no refusal: ask again later
        return True


async def drain(pieces: AsyncIterator[bytes]) -> None:
    """Read what follows ``[DONE]``, at most 0.05 s long: a connection whose answer was read to its end is kept."""
    try:
        async with asyncio.timeout(DRAIN_S):
            async for _ in pieces:
                pass
    except (UpstreamError, TimeoutError):
        pass  # the connection is closed instead
