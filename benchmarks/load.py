"""A client that sends a fixed number of requests over a fixed number of connections, and checks every answer."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import httptools

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send, and what.

    Args:
        headers: Beside Host, Content-Type and Content-Length.
        body: Sent as JSON.
    """

    port: int
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, object]

    def request(self) -> bytes:
        """The request as it goes over the wire."""
        content = json.dumps(self.body, separators=(",", ":")).encode()
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {HOST}:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


@dataclass(slots=True)
class Answer:
    """One answer, as ``parser`` reads it. Whether its connection stays open is known only while it is read."""

    parser: httptools.HttpResponseParser = field(init=False)
    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    complete: bool = False
    keep: bool = True

    def __post_init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)

    @property
    def events(self) -> int:
        """Server-sent events with JSON, ``[DONE]`` apart."""
        return self.body.count(b"data: {") + self.body.count(b"data:{")

    @property
    def done(self) -> bool:
        """The stream ended as streams of this API do."""
        return b"[DONE]" in self.body[-64:]

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self.status, self.keep = self.parser.get_status_code(), self.parser.should_keep_alive()

    def on_body(self, piece: bytes) -> None:
        """Called by the parser."""
        self.body += piece

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.complete = True


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> Answer:
    """Send one request and read its answer.

    Raises:
        ConnectionError: The connection ended before the answer did.
    """
    answer = Answer()
    writer.write(request)
    while not answer.complete:
        data = await reader.read(65_536)
        if not data:
            raise ConnectionError("the connection ended in the middle of an answer")
        answer.parser.feed_data(data)
    return answer


async def send(target: Target, requests: int, *, connections: int) -> list[Answer]:
    """Send ``requests`` requests over ``connections`` connections, each as soon as the one before is answered."""
    request, answers, left = target.request(), list[Answer](), iter(range(requests))

    async def work() -> None:
        reader, writer = await asyncio.open_connection(HOST, target.port)
        for _ in left:
            answers.append(await exchange(reader, writer, request))
            if not answers[-1].keep:
                writer.close()
                reader, writer = await asyncio.open_connection(HOST, target.port)
        writer.close()

    await asyncio.gather(*(work() for _ in range(min(connections, requests))))
    return answers


def checked(answers: list[Answer], *, events: int, status: int = 200) -> list[Answer]:
    """The answers, if each has the status and, where ``events`` is not 0, a whole stream of at least that many events.

    Raises:
        SystemExit: Something else came; it is shown. A wrong answer has no price.
    """
    statuses = Counter(answer.status for answer in answers)
    if set(statuses) != {status}:
        wrong = next(answer for answer in answers if answer.status != status)
        raise SystemExit(f"answers by status: {dict(statuses)}; one of them: {bytes(wrong.body[:500])!r}")
    for answer in answers:
        if events and not (answer.done and answer.events >= events):
            raise SystemExit(f"a stream of {answer.events} events, {events} wanted: {bytes(answer.body[-300:])!r}")
    return answers
