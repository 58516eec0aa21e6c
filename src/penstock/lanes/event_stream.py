"""Takes a stream of bytes apart into server-sent events, however the network cut it.

Source: HTML Living Standard, "Interpreting an event stream": lines end with LF, CR or CR LF, an empty line ends an
event. What a line means is left to the reader of the event.
"""

from __future__ import annotations

from typing import Final

from penstock.errors import UpstreamBroken

EVENT_BYTES_MAX: Final = 1024 * 1024


class EventSplitter:
    """Collects pieces and gives whole events: lines ended by LF, one empty line last, none before.

    Example:
        >>> splitter = EventSplitter()
        >>> splitter.feed(b'data: 1'), splitter.feed(b'\\r\\n\\r\\ndata: 2\\n\\n')
        ([], [b'data: 1\\n\\n', b'data: 2\\n\\n'])
    """

    __slots__ = ("_carry", "_ends_with_cr")

    def __init__(self) -> None:
        self._carry = b""
        self._ends_with_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that ``piece`` completes.

        Raises:
            UpstreamBroken: One event has more than 1 MiB.
        """
        if self._ends_with_cr:
            piece = b"\r" + piece
            self._ends_with_cr = False
        if b"\r" in piece:
            if piece.endswith(b"\r"):  # the LF that belongs to it may follow
                self._ends_with_cr = True
                piece = piece[:-1]
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if not self._carry and 0 < piece.find(b"\n\n") == len(piece) - 2 and piece[:1] != b"\n":
            return [piece]  # exactly one event, the usual case
        parts = (self._carry + piece).split(b"\n\n")
        self._carry = parts.pop()
        if len(self._carry) > EVENT_BYTES_MAX:
            raise UpstreamBroken(f"one event of the answer has more than {EVENT_BYTES_MAX} bytes")
        return [event + b"\n\n" for part in parts if (event := part.lstrip(b"\n"))]

    def rest(self) -> bytes:
        """What came after the last whole event."""
        return self._carry.strip(b"\n")


def event_data(event: bytes) -> bytes | None:
    """The data of one event, its lines joined by LF; None if it has none, such as a comment that keeps alive.

    Example:
        >>> event_data(b': ping\\ndata: a\\ndata:b\\n\\n')
        b'a\\nb'
    """
    lines = []
    for line in event.split(b"\n"):
        if line.startswith(b"data:"):
            lines.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line == b"data":
            lines.append(b"")
    return b"\n".join(lines) if lines else None
