"""The executor's door, for the worker beside it: one job in, what became of it out. Loopback only; it asks for no key.

::

    POST /execute   a job message       200 the result, to be published · 204 drop the message
                                        503 bring it again after Retry-After · 400 it can never be understood
                                        429 the same, and its own limits refuse it: let others pass meanwhile
    GET /live       the process answers
    GET /ready      200, or 503 with the reasons

A worker that goes away releases its job: nobody would take the result.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from penstock.api.departure import Departure, Receive
from penstock.api.failures import STOPPING, error_body
from penstock.api.headers import Headers, retry_headers
from penstock.api.identification import traceparent_of
from penstock.api.services import Readiness
from penstock.lanes.executing import Dropped, Finished, Later, Outcome, Poison
from penstock.lanes.jobs import write_result

BUSY_MS = 1000
BUG_MS = 10_000
"""A job that hits a bug is brought again, slowly, until its deadline."""

_log = logging.getLogger("penstock.api")
_JSON = (b"content-type", b"application/json")
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _Gone(Exception):
    """The worker left before its message was complete."""


class _TooLarge(Exception):
    """The message is larger than is read."""


class Execution:
    """An ASGI application.

    Args:
        execute: Runs one job message, of this ``traceparent`` if it has one; cancelled, it releases the job.
        jobs_max: Messages taken in at once; one more is told to come later.
        message_bytes_max: Of a job message.
    """

    def __init__(
        self,
        execute: Callable[[bytes, str | None], Awaitable[Outcome]],
        *,
        jobs_max: int,
        message_bytes_max: int,
        readiness: Readiness,
    ) -> None:
        self._execute = execute
        self._jobs_max = jobs_max
        self._message_bytes_max = message_bytes_max
        self._readiness = readiness
        self.running = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        match scope["method"], scope["path"]:
            case "POST", "/execute":
                await self._answer(scope, receive, send)
            case "GET", "/live":
                await _reply(send, 200, b'{"live":true}')
            case "GET", "/ready":
                reasons = await self._readiness()
                body = msgspec.json.encode({"ready": not reasons, "reasons": reasons})
                await _reply(send, 503 if reasons else 200, body)
            case _, ("/execute" | "/live" | "/ready"):
                await _refuse(send, 405, "this path does not answer this method", "method_not_allowed")
            case _:
                await _refuse(send, 404, "there is nothing here; POST /execute runs a job", "unknown_url")

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if self.running >= self._jobs_max:
            later = Later(BUSY_MS, f"{self._jobs_max} jobs are here already; raise queue.concurrency or wait")
            await _tell(send, later)
            return
        self.running += 1
        task = asyncio.current_task()
        assert task is not None
        departure = None
        try:
            message = await self._read(receive)
            departure = Departure(receive, task=task, loop=asyncio.get_running_loop())
            outcome = await self._execute(message, traceparent_of(scope["headers"]))
            departure.ignore()
            await _tell(send, outcome)
        except _Gone:
            pass
        except _TooLarge:
            await _tell(send, Poison(f"a job message of more than {self._message_bytes_max} bytes"))
        except asyncio.CancelledError:
            if departure is not None and departure.happened:
                departure.forgive()
            else:  # the process stops, and did not wait any longer
                task.uncancel()
                await _reply(send, STOPPING.status, STOPPING.body, *STOPPING.headers)
        except Exception:  # noqa: BLE001 - a bug must end one delivery only
            _log.exception("a bug ended the delivery of a job")
            await _tell(send, Later(BUG_MS, "something is wrong on our side; see the executor's log"))
        finally:
            self.running -= 1
            if departure is not None:
                departure.ignore()

    async def _read(self, receive: Receive) -> bytes:
        pieces = []
        read_bytes = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            piece = message.get("body", b"")
            read_bytes += len(piece)
            if read_bytes > self._message_bytes_max:
                raise _TooLarge
            pieces.append(piece)
            if not message.get("more_body", False):
                return b"".join(pieces)


async def _tell(send: Send, outcome: Outcome) -> None:
    match outcome:
        case Finished(result):
            await _reply(send, 200, write_result(result))
        case Dropped():
            await _reply(send, 204, b"")
        case Later(retry_after_ms, reason, is_limited):
            body = error_body(reason, kind="server_error", code="limited" if is_limited else "later")
            await _reply(send, 429 if is_limited else 503, body, *retry_headers(retry_after_ms))
        case Poison(reason):
            await _refuse(send, 400, reason, "poison")


async def _refuse(send: Send, status: int, message: str, code: str) -> None:
    await _reply(send, status, error_body(message, kind="invalid_request_error", code=code))


async def _reply(send: Send, status: int, body: bytes, *more: tuple[bytes, bytes]) -> None:
    headers: Headers = [*more]
    if status != 204:
        headers += [_JSON, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
