"""Notices that a client has left while its answer is being made, and cancels the work.

An ASGI server tells it through ``receive``, which somebody must await meanwhile. A task for that costs about as much
as all the rest of this package per request, so the coroutine is stepped here by the callbacks of what it waits for,
as a task would. Our own server is simply asked to call (``wire.Wire.watch``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, cast

from penstock.api.wire import Wire

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Departure:
    """Cancels the current task once ``receive`` answers ``http.disconnect``, until ``ignore`` is called.

    ``happened`` tells such a cancellation from any other; who catches it calls ``forgive``.
    """

    __slots__ = ("_coroutine", "_loop", "_receive", "_task", "_watching", "happened")

    def __init__(self, receive: Receive, *, task: asyncio.Task[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._receive = receive
        self._task = task
        self._loop = loop
        self.happened = False
        self._watching = True
        self._coroutine = cast("Coroutine[Any, Any, MutableMapping[str, Any]]", receive())
        self._step()

    def _step(self, _done: asyncio.Future[Any] | None = None) -> None:
        if not self._watching:
            return
        try:
            awaited = self._coroutine.send(None)
        except StopIteration as stop:
            if stop.value["type"] == "http.disconnect":
                self._watching = False
                self.happened = True
                self._task.cancel()
            else:  # what follows a body that was read to its end; nothing to see in it
                self._coroutine = cast("Coroutine[Any, Any, MutableMapping[str, Any]]", self._receive())
                self._loop.call_soon(self._step)
            return
        if awaited is None:  # a bare yield: go on at the next turn of the loop
            self._loop.call_soon(self._step)
        else:
            awaited._asyncio_future_blocking = False
            awaited.add_done_callback(self._step)

    def ignore(self) -> None:
        """Stop watching: the answer is complete."""
        if self._watching:
            self._watching = False
            self._coroutine.close()

    def forgive(self) -> None:
        """Take back the cancellation that was just caught, so that the task may go on to clean up."""
        self._task.uncancel()


class WatchedWire:
    """The same, where the server itself tells of a client that left."""

    __slots__ = ("_task", "_wire", "happened")

    def __init__(self, wire: Wire, *, task: asyncio.Task[Any]) -> None:
        self._wire = wire
        self._task = task
        self.happened = False
        wire.watch(self._depart)

    def _depart(self) -> None:
        self._wire.watch(None)
        self.happened = True
        self._task.cancel()

    def ignore(self) -> None:
        """Stop watching: the answer is complete."""
        self._wire.watch(None)

    def forgive(self) -> None:
        """See ``Departure.forgive``."""
        self._task.uncancel()
