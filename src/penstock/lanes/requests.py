"""One inference request as the lanes see it, and what they answer: no HTTP server, no framework."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from penstock.ports import RequestRecord
from penstock.quota.events import Usage
from penstock.quota.operations import Reading, Reserve

Pour = Callable[[Callable[[bytes], bool]], Awaitable[None]]


class InferenceRequest(msgspec.Struct, kw_only=True):
    """A request that was parsed and found well-formed.

    Args:
        organisation: From the credential, never from the body.
        key: Key id; ``key_mac`` lower-case hex, checked by the quota store.
        route: "chat.completions", "completions", "embeddings", "responses", whose body is a chat's, or "infer".
        body: The decoded JSON object. The lane owns it and writes ``max_tokens`` and the like into it.
        fingerprint: Hash of the body as received.
        body_bytes: Length as received, or 2^31 - 1 where bytes cannot bound the prompt.
        outputs: max(n, best_of) x prompts; 0 for embeddings.
        max_tokens: What the client asked for per output; None if it did not say.
        include_usage: The client asked for the usage chunk.
        record: Filled in by the lane as it goes.
        prompt_tokens: Exactly, if it is known; set by the lane, of a generic model's units.
        reservation: Its reservation's id, where an idempotency key decides it; else the lane makes one.
        keep: Stores the answer that a client gets, whole or as events: the last piece of it, its usage and its reserve.
        readings: Set by the lane once it has reserved, so that an error after it still shows the limits.
    """

    organisation: str
    key: str
    key_mac: str
    route: str
    model: str
    body: dict[str, Any]
    fingerprint: str
    body_bytes: int
    prompts: int
    outputs: int
    max_tokens: int | None
    stream: bool
    include_usage: bool
    record: RequestRecord
    prompt_tokens: int | None = None
    reservation: str = ""
    keep: Callable[[bytes, Usage, Reserve], Awaitable[None]] | None = None
    readings: tuple[Reading, ...] = ()


@dataclass(slots=True)
class Reply:
    """A whole answer, already settled."""

    status: int
    body: bytes
    readings: tuple[Reading, ...] = ()


@dataclass(slots=True)
class StreamReply:
    """A streamed answer: whole server-sent events, ``data: {json}\\n\\n``, ``data: [DONE]`` last.

    The generator settles before it yields ``[DONE]``. Closing it early (``aclose``) cancels upstream and settles
    what was produced. Errors after the head are sent as an event, then the stream ends without ``[DONE]``.

    Args:
        pour: Writes events as they arrive, without a turn of the event loop for each, until there is more to do than
            that, or until the writer answers False; then ``events`` goes on, with what was not written.
    """

    events: AsyncGenerator[bytes, None]
    readings: tuple[Reading, ...] = ()
    pour: Pour | None = None
