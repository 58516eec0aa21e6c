"""One generation: wait for a place, read the prompt in, produce tokens at the chosen speed, fail where asked.

::

    queued -> prefill -> producing -> finished
       \\________\\___________\\-> aborted (the caller left) | broken (a fault)
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from penstock.adapters.simulated_model import bodies, counting
from penstock.adapters.simulated_model.client import Client
from penstock.adapters.simulated_model.instructions import Instructions
from penstock.adapters.simulated_model.journal import Production

YIELD_EVERY_TOKENS = 16


class Broken(Exception):
    """A fault ended the request as asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How fast the model is.

    Args:
        models: Names that are served.
        prefill: Prompt tokens read in per second, for each request; 0: at once.
        decode: Tokens produced per second, for each request and output; 0: as fast as possible.
        concurrency: Requests at a time; more of them wait in order. 0: no bound.
        latency_s: Added before each answer.
        context: Prompt and completion together; a prompt that leaves no room is refused.
        tokens: Produced where neither the request's instructions nor its max_tokens say less.
    """

    models: tuple[str, ...] = ("simulated",)
    prefill: int = 0
    decode: int = 0
    concurrency: int = 0
    latency_s: float = 0.0
    context: int = 131_072
    tokens: int = 64


class Places:
    """The bound on requests at a time, and how many run and wait."""

    def __init__(self, concurrency: int) -> None:
        self._free = asyncio.Semaphore(concurrency) if concurrency else None
        self.running = 0
        self.waiting = 0

    @contextlib.asynccontextmanager
    async def taken(self, client: Client) -> AsyncIterator[None]:
        """Hold one place; a caller that leaves while waiting gives its turn up."""
        if self._free is not None:
            await self._wait(self._free, client)
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            if self._free is not None:
                self._free.release()

    async def _wait(self, free: asyncio.Semaphore, client: Client) -> None:
        if not free.locked():
            await free.acquire()
            return
        self.waiting += 1
        turn = asyncio.create_task(free.acquire())
        try:
            await client.pause_unless(turn)
        except BaseException:
            if turn.done() and not turn.cancelled():
                free.release()
            turn.cancel()
            raise
        finally:
            self.waiting -= 1


@dataclass(slots=True, kw_only=True)
class Generation:
    """One chat or completion on its way. ``produced`` is filled in as tokens are handed over."""

    settings: Settings
    client: Client
    route: str
    ask: bodies.Ask
    wishes: Instructions
    outputs: int
    tokens: int
    prompt: int
    finish: str
    produced: Production
    running_usage: bool = False

    async def run(self) -> None:
        """Produce everything.

        Raises:
            ClientGone: The caller left.
            Broken: A fault that ends the request was carried out.
        """
        await self._prefill()
        if self.wishes.garbage_body:
            await self.client.answer(200, b"<html>It works!</html>")
            raise Broken
        if self.ask.stream:
            await self._stream()
        else:
            await self._whole()

    async def _prefill(self) -> None:
        settings = self.settings
        fresh = self.prompt - self.wishes.cached_tokens
        seconds = settings.latency_s + self.wishes.slow_first_byte_ms / 1000
        if settings.prefill:
            seconds += max(0, fresh) / settings.prefill
        if seconds > 0:
            await self.client.pause(seconds)
        self.produced.prompt = self.prompt
        self.produced.cached = self.wishes.cached_tokens

    def _usage(self, completion: int) -> dict[str, Any]:
        return bodies.usage(self.prompt, self.wishes.cached_tokens, completion, self.wishes.absurd_usage)

    def _identity(self) -> str:
        return ("chatcmpl-" if self.route == "chat.completions" else "cmpl-") + uuid.uuid4().hex

    async def _whole(self) -> None:
        total = self.outputs * self.tokens
        if self.settings.decode:
            await self._decode_unseen(total)
        self.produced.completion = total
        body = bodies.whole(
            self.route,
            self.ask.model,
            self._identity(),
            (self.outputs, self.tokens, self.finish),
            None if self.wishes.no_usage else self._usage(total),
        )
        if self.wishes.break_after is not None:
            await self.client.half_answer(body)
            raise Broken
        await self.client.answer(200, body)

    async def _decode_unseen(self, total: int) -> None:
        """Spend the time that the tokens take; if the caller leaves, note how many there were."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            await self.client.pause(self.tokens / self.settings.decode)
        finally:
            done = int((loop.time() - started_s) * self.settings.decode) * self.outputs
            self.produced.completion = min(total, done)

    async def _stream(self) -> None:
        options = self.ask.stream_options or bodies.StreamOptions()
        self.running_usage = options.continuous_usage_stats and not self.wishes.no_usage
        chunks = bodies.Chunks(
            self.route, self.ask.model, self._identity(), include_usage=options.include_usage and not self.running_usage
        )
        await self.client.begin_events()
        if self.route == "chat.completions":
            for index in range(self.outputs):
                await self.client.event(chunks.role(index))
        await self._tokens(chunks)
        for index in range(self.outputs):
            running = self._usage(self.produced.completion) if self.running_usage else None
            await self.client.event(chunks.finish(index, self.finish, running))
        if options.include_usage and not self.wishes.no_usage:
            await self.client.event(chunks.usage(self._usage(self.produced.completion)))
        if not self.wishes.no_done:
            await self.client.event(b"[DONE]")
        await self.client.end()

    async def _tokens(self, chunks: bodies.Chunks) -> None:
        """Hand over every token as a chunk, each when its time has come."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        decode, slow_s = self.settings.decode, self.wishes.slow_chunks_ms / 1000
        ends = self._ends_after()
        for position in range(self.tokens):
            due_s = (started_s + (position + 1) / decode - loop.time()) if decode else 0.0
            if due_s + slow_s > 0:
                await self.client.pause(max(0.0, due_s) + slow_s)
            elif position % YIELD_EVERY_TOKENS == YIELD_EVERY_TOKENS - 1:
                await self.client.pause(0)
            for index in range(self.outputs):
                if self.produced.completion == ends:
                    await self._fail(ends)
                running = self._usage(self.produced.completion + 1) if self.running_usage else None
                await self.client.event(chunks.token(index, counting.word(position), running))
                self.produced.completion += 1
        if ends is not None:
            await self._fail(ends)

    def _ends_after(self) -> int | None:
        if self.wishes.garbage_stream:
            return 2
        for after in (self.wishes.break_after, self.wishes.error_after, self.wishes.hang_after):
            if after is not None:
                return after
        return None

    async def _fail(self, after: int) -> None:
        client, wishes = self.client, self.wishes
        if wishes.garbage_stream:
            await client.event(b"{]this is not JSON")
            await client.event(b'"nor is this a chunk"')
            await client.end()
        elif wishes.break_after == after:
            await client.cut()
        elif wishes.error_after == after:
            await client.event(bodies.error("the engine failed as the request asked", 500))
            await client.end()
        else:
            await client.pause(None)
        raise Broken
