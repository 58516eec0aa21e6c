"""Writes log lines from a thread of its own, many in one system call.

A line costs the request's path one list append. What it costs otherwise, stated: a process that is killed loses the
lines of the last ``FLUSH_EVERY_S``; when whoever reads the stream stalls, lines beyond ``PENDING_BYTES_MAX`` are
dropped and counted, and the service goes on.
"""

from __future__ import annotations

import os
import threading

FLUSH_EVERY_S = 0.2
PENDING_BYTES_MAX = 8 << 20


class LineWriter:
    """Collects lines and writes them to a file descriptor.

    Args:
        descriptor: Open for writing, blocking; left open by ``close``.
        service: What kind of process writes; part of each line of JSON.
        flush_every_s: The longest that a line waits while the reader keeps up.
        pending_bytes_max: Lines beyond this are dropped and counted.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        service: str = "penstock",
        flush_every_s: float = FLUSH_EVERY_S,
        pending_bytes_max: int = PENDING_BYTES_MAX,
    ) -> None:
        self._descriptor = descriptor
        self.service = service
        self._flush_every_s = flush_every_s
        self._pending_bytes_max = pending_bytes_max
        self._lines: list[bytes] = []
        self._pending_bytes = 0
        self._dropped = 0
        self._closing = threading.Event()
        self._urgent = threading.Event()
        self._swap = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines dropped so far, since the reader stalled or the stream broke."""
        return self._dropped

    def write(self, line: bytes, *, urgent: bool = False) -> None:
        """Add one line, newline included. Never blocks on the stream.

        Args:
            line: A whole line.
            urgent: Write now, do not wait for the next flush.
        """
        with self._swap:
            if self._pending_bytes + len(line) > self._pending_bytes_max:
                self._dropped += 1
                return
            self._pending_bytes += len(line)
            self._lines.append(line)
        if urgent:
            self._urgent.set()

    def close(self, *, wait_s: float = 2.0) -> None:
        """Write what is left, for at most ``wait_s`` if the reader has stalled. Lines after this are dropped."""
        self._closing.set()
        self._urgent.set()
        self._thread.join(wait_s)
        with self._swap:
            self._pending_bytes_max = 0

    def _run(self) -> None:
        while True:
            closing = self._closing.is_set()  # before the flush, so that the last one has all that was written
            self._flush()
            if closing:
                return
            self._urgent.wait(self._flush_every_s)
            self._urgent.clear()

    def _flush(self) -> None:
        with self._swap:
            lines, self._lines = self._lines, []
        if not lines:
            return
        rest = memoryview(b"".join(lines))
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:  # nobody reads any more; a log must not stop the service
            self._dropped += len(lines)
        with self._swap:
            self._pending_bytes -= sum(map(len, lines))
