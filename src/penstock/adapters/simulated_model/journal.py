"""What was really produced, written by the producer: the other side of every comparison with the ledger."""

from __future__ import annotations

import asyncio
import io
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

Outcome = Literal["finished", "aborted", "broken", "refused"]

FLUSH_S = 0.1


class Production(msgspec.Struct, kw_only=True):
    """One request's line, written when it ends, however it ends.

    Args:
        request_id: The ``x-request-id`` header; Penstock sends its reservation's id.
        prompt: Tokens; 0 if the request ended before its prompt was read in. ``cached`` is a part of it.
        completion: Tokens handed to the network, over all outputs.
        outcome: "aborted" if the caller left, "broken" if a fault was asked for, "refused" if nothing was begun.
    """

    request_id: str
    route: str
    model: str
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    outcome: Outcome = "finished"


@dataclass(slots=True)
class Totals:
    """Sums over one model's requests."""

    requests: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    finished: int = 0
    aborted: int = 0
    broken: int = 0
    refused: int = 0


@dataclass(slots=True)
class Journal:
    """Keeps totals, and appends lines to a file within ``FLUSH_S`` seconds of each request's end.

    Args:
        path: JSON lines, opened at once: an OSError says that it cannot be. None keeps totals only.
    """

    path: InitVar[Path | None] = None
    totals: dict[str, Totals] = field(default_factory=dict)
    _file: io.FileIO | None = field(init=False)
    _unwritten: list[bytes] = field(default_factory=list)
    _timer: asyncio.TimerHandle | None = None

    def __post_init__(self, path: Path | None) -> None:
        self._file = None if path is None else io.FileIO(path, "a")

    def add(self, production: Production) -> None:
        """Count one request that has ended; called on the event loop."""
        totals = self.totals.setdefault(production.model, Totals())
        totals.requests += 1
        totals.prompt += production.prompt
        totals.cached += production.cached
        totals.completion += production.completion
        setattr(totals, production.outcome, getattr(totals, production.outcome) + 1)
        if self._file is not None:
            self._unwritten.append(msgspec.json.encode(production) + b"\n")
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what is waiting, in one append."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._unwritten and self._file is not None:
            self._file.write(b"".join(self._unwritten))
            self._unwritten.clear()

    def close(self) -> None:
        """Flush, and let go of the file."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None
