"""One log line for each request: JSON, or one readable line on a terminal. No prompt, no secret, bounded in size."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from penstock.adapters.observing.lines import LineWriter
from penstock.adapters.observing.vocabulary import Vocabulary
from penstock.ports import RequestRecord

TEXT_CHARACTERS_MAX = 200
EXTRA_FIELDS_MAX = 8
_ABSENT = 0.0
"""msgspec omits a float only if it is the default itself, not merely equal to it."""


class RequestLine(msgspec.Struct, omit_defaults=True, kw_only=False):
    """The JSON line. Absent fields had their default: 0, false or empty.

    ``time`` is when the request ended, UTC; ``*_ms`` count from its arrival; ``cost_nanos`` are nano-dollars.
    """

    time: str
    level: str
    service: str
    event: str
    request_id: str
    route: str = ""
    lane: str = ""
    organisation: str = ""
    team: str = ""
    key: str = ""
    model: str = ""
    reservation: str = ""
    stream: bool = False
    status: int = 0
    outcome: str = ""
    error: str = ""
    denied_by: str = ""
    upstream: str = ""
    attempts: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    usage_source: str = "none"
    tokens_held: int = 0
    cost_nanos: int = 0
    reserved_ms: float = _ABSENT
    first_token_ms: float = _ABSENT
    total_ms: float = _ABSENT
    chunks: int = 0
    extra: dict[str, str | int] = {}


class RequestLog:
    """Writes the lines; implements ``penstock.ports.Observer``.

    Args:
        writer: Where lines go.
        vocabulary: Keeps names that a client made up out of the log.
        now_ms: Unix milliseconds.
        as_text: One readable line for people instead of JSON.
    """

    def __init__(
        self, writer: LineWriter, vocabulary: Vocabulary, *, now_ms: Callable[[], int], as_text: bool = False
    ) -> None:
        self._writer = writer
        self._vocabulary = vocabulary
        self._now_ms = now_ms
        self._as_text = as_text
        self._encode = msgspec.json.Encoder().encode
        self._ejected: set[tuple[str, str]] = set()
        self._second = -1
        self._second_text = ""

    def started(self, record: RequestRecord) -> None:
        """Nothing: the line is written at the end, when everything is known."""

    def finished(self, record: RequestRecord) -> None:
        """Write the request's line."""
        line = self._line(record)
        self._writer.write(_as_text(line) if self._as_text else self._encode(line) + b"\n")

    def upstream_changed(self, model: str, upstream: str, healthy: bool) -> None:
        """Write a line of its own for an ejection and its end: it explains the errors around it."""
        if healthy and (model, upstream) not in self._ejected:
            return  # told once for each at the start
        (self._ejected.discard if healthy else self._ejected.add)((model, upstream))
        event = {
            "time": self._time(),
            "level": "info" if healthy else "warning",
            "service": self._writer.service,
            "event": "upstream_back" if healthy else "upstream_ejected",
            "model": model,
            "upstream": upstream,
        }
        text = f"{event['time'][11:19]} {event['level']:7} {model}: upstream {upstream} "
        readable = (text + ("is back\n" if healthy else "ejected until it answers again\n")).encode()
        self._writer.write(readable if self._as_text else self._encode(event) + b"\n", urgent=True)

    def _line(self, record: RequestRecord) -> RequestLine:
        names = self._vocabulary
        status = record.status
        return RequestLine(
            self._time(),
            "info" if status < 500 else "error",
            self._writer.service,
            "request",
            record.request_id[:64],
            names.route(record.route),
            record.lane,
            names.organisation(record.organisation),
            record.team or "",
            names.key(record.key) if record.key else "",
            names.model(record.model),
            record.reservation[:100],
            record.stream,
            status,
            record.outcome,
            record.error[:TEXT_CHARACTERS_MAX] if record.error else "",
            record.denied_by[:TEXT_CHARACTERS_MAX] if record.denied_by else "",
            record.upstream,
            record.attempts,
            record.prompt_tokens,
            record.cached_tokens,
            record.completion_tokens,
            record.usage_source,
            record.tokens_held,
            record.cost_nanos,
            round(record.reserved_ms, 3) if record.reserved_ms else _ABSENT,
            round(record.first_token_ms, 1) if record.first_token_ms else _ABSENT,
            round(record.total_ms, 1),
            record.chunks,
            _bounded(record.extra) if record.extra else {},
        )

    def _time(self) -> str:
        """ISO 8601 in UTC with milliseconds; the calendar is worked out once a second."""
        second, milliseconds = divmod(self._now_ms(), 1000)
        if second != self._second:
            self._second = second
            self._second_text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._second_text}.{milliseconds:03d}Z"


def _bounded(extra: dict[str, str | int]) -> dict[str, str | int]:
    """At most 8 fields, each text cut."""
    return {
        name[:64]: value[:TEXT_CHARACTERS_MAX] if isinstance(value, str) else value
        for name, value in list(extra.items())[:EXTRA_FIELDS_MAX]
    }


def _as_text(line: RequestLine) -> bytes:
    """One line for a person: when, status, what, whose, how much, how long, and why it failed."""
    parts = [line.time[11:19], str(line.status), line.route or "-", line.organisation or "-", line.model or "-"]
    if line.outcome != "ok":
        parts.append(line.outcome)
    if line.prompt_tokens or line.completion_tokens:
        parts.append(f"{line.prompt_tokens}+{line.completion_tokens} tokens of {line.tokens_held} held")
        parts.append(f"${line.cost_nanos / 1e9:.6f}")
    if line.first_token_ms:
        parts.append(f"first token {line.first_token_ms:.0f} ms")
    parts.append(f"{line.total_ms:.0f} ms")
    why = line.denied_by or line.error
    text = "  ".join(parts) + (f"  ({why})" if why else "")
    return ("".join(c if c.isprintable() else "?" for c in text) + "\n").encode()
