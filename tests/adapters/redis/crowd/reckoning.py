"""Afterwards: the counters, the outbox as it was written, the ledger that it was drained into, and the clients' logs.

All four must tell the same. Of a process that was killed, its last question is in doubt, and only that.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from penstock.adapters.sql.database import open_engine
from penstock.adapters.sql.ledger import LedgerReads
from penstock.quota import Event, EventKind
from tests.adapters.redis.crowd.demand import ORGANISATION

WRONG_MAX = 10
_ENDS = {EventKind.POSTED, EventKind.VOIDED, EventKind.EXPIRED, EventKind.LATE}


@dataclass(slots=True)
class Told:
    """What the clients know of one reservation. ``settled``: state, tokens and cost (nano-dollars) of its settle."""

    admitted: bool = False
    voided: bool = False
    in_doubt: bool = False
    settled: tuple[str, int, int] | None = None


@dataclass(slots=True)
class Logs:
    """All that was told to any process."""

    told: dict[str, Told] = field(default_factory=dict)
    answers: Tally[str] = field(default_factory=Tally)
    denied_by: Tally[str] = field(default_factory=Tally)


def read_logs(folder: Path) -> Logs:
    """Every process's log."""
    logs = Logs()
    for path in sorted(folder.glob("*.log")):
        asked: list[str] = []
        with path.open() as lines:
            for line in lines:
                words = line.split()
                if words[0] == "?":
                    asked = words[1:]
                    continue
                asked.clear()
                _learn(logs, *words)
        for reservation in asked:
            logs.told.setdefault(reservation, Told()).in_doubt = True
    return logs


def _learn(logs: Logs, operation: str, answer: str, reservation: str, *numbers: str) -> None:
    state = f" {numbers[0]}" if answer in ("Settled", "Duplicate") else ""
    logs.answers[f"{operation} {answer}{state}"] += 1
    known = logs.told.setdefault(reservation, Told())
    if answer == "Reserved":
        known.admitted = True
    elif answer == "Settled":
        state, prompt, completion, _, cost = numbers
        known.settled = (state, int(prompt) + int(completion), int(cost))
    elif answer == "Denied":
        logs.denied_by[numbers[0]] += 1
    elif operation == "Void" and answer == "Done":
        known.voided = True


def read_ledger(path: Path) -> tuple[dict[str, dict[EventKind, tuple[int, int]]], dict[tuple[str, int], int]]:
    """By reservation and kind (tokens, nano-dollars) of each event that ended it, and the sums by limit and window."""
    engine = open_engine(path)
    ends: dict[str, dict[EventKind, tuple[int, int]]] = {}
    try:
        with engine.connect() as connection:
            reads = LedgerReads(connection)
            for event in reads.events():
                if event.kind in _ENDS:
                    of_it = ends.setdefault(event.reservation, {})
                    assert event.kind not in of_it, event
                    of_it[event.kind] = _charge(event)
            return ends, reads.window_sums(ORGANISATION)
    finally:
        engine.dispose()


def _charge(event: Event) -> tuple[int, int]:
    return event.charge.tokens, event.charge.cost_nanos


def differences(told: dict[str, Told], ends: dict[str, dict[EventKind, tuple[int, int]]]) -> Iterator[str]:
    """Where the ledger says something else than the clients were told, reservation by reservation."""
    for reservation in told.keys() | ends.keys():
        known, rows = told.get(reservation, Told()), ends.get(reservation, {})
        if not _agree(known, rows):
            yield f"{reservation}: clients know {known}, the ledger has {rows}"


def _agree(known: Told, rows: dict[EventKind, tuple[int, int]]) -> bool:
    if not known.admitted and not known.in_doubt:
        return not rows
    if known.settled is not None:
        state, tokens, cost = known.settled
        if state == "posted":
            return rows == {EventKind.POSTED: (tokens, cost)}
        if rows.keys() != {EventKind.EXPIRED, EventKind.LATE}:
            return False
        (least, _), (more, more_cost) = rows[EventKind.EXPIRED], rows[EventKind.LATE]
        return least + more == max(tokens, least) and more_cost == cost
    if known.voided:
        return rows.keys() == {EventKind.VOIDED} or (known.in_doubt and not rows)
    if known.in_doubt:
        kinds = rows.keys() - {EventKind.LATE}
        return len(kinds) == 1 or not (rows or known.admitted)
    return rows.keys() == {EventKind.EXPIRED}
