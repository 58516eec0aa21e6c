"""The quota, checked after each single call of a Redis, in the order in which they took effect.

Polling could miss an instant. A replica cannot: what one call changed arrives as one transaction, so after each of
them the limits, the open reservations and the outbox are those of one instant, read from what Redis stores and not
from what the library says about it.
"""

from __future__ import annotations

import struct
from collections import Counter as Tally
from collections.abc import Mapping
from typing import Any

import msgspec

from penstock.adapters.redis.client import pack
from penstock.adapters.redis.translating import keys_of, read_event
from penstock.quota import EventKind
from tests.adapters.redis.crowd.demand import ORGANISATION
from tests.adapters.redis.crowd.line import Line
from tests.adapters.redis.crowd.replica import Replica

COUNTER = struct.Struct("<BBBddddddd")
WINDOW, CONCURRENT, TOKENS = 1, 4, 1
STATE, WINDOWS, FLIGHT, TOKENS_HELD, COST_HELD = 0, 7, 9, 10, 12  # where a reservation's record has them
FAULTS_MAX = 10
_COUNTERS, _RESERVATIONS, _, _, _OUTBOX = keys_of(ORGANISATION)


class Observer:
    """The state as it is written.

    Args:
        caps: Plain keys that count up and down (``INCRBY``), and what they may reach: another store than ours.

    Attributes:
        over: The most that each limit ever stood above what it may, in its own unit; without those that never did.
        fullest: The most of each limit that was ever taken, of a thousand of its cap.
    """

    def __init__(self, port: int, caps: Mapping[str, int] | None = None) -> None:
        self.caps = caps or {}
        self.over: dict[str, int] = {}
        self.fullest: dict[str, int] = {}
        self.faults: list[str] = []
        self.instants = 0
        self.events = 0
        self.sums: Tally[tuple[str, int]] = Tally()
        self.marks = 0
        self._excess: dict[str, int] = {}
        self._held: Tally[str] = Tally()
        self._metrics: dict[str, int] = {}
        self._records: dict[bytes, list[Any]] = {}
        self._plain: Tally[str] = Tally()
        self._replica = Replica(port)

    def close(self) -> None:
        """Stop observing."""
        self._replica.close()

    def watch(self, wait_s: float) -> None:
        """Take in what has arrived, waiting so long for the first of it."""
        for commands in self._replica.transactions(wait_s):
            self._see(commands)

    def catch_up(self, line: Line) -> None:
        """Take in everything that was written until now."""
        mark = self.marks
        line.ask([pack("SET", "mark", mark)])
        while self.marks == mark:
            self.watch(1.0)

    def _see(self, commands: list[list[bytes]]) -> None:
        counters: dict[bytes, bytes] = {}
        late: Tally[str] = Tally()
        for command in commands:
            match command[0].upper(), command[1:]:
                case b"HSET", [key, *fields] if key == _COUNTERS:
                    counters.update(zip(fields[::2], fields[1::2], strict=True))
                case b"HSET", [key, *fields] if key == _RESERVATIONS:
                    for reservation, record in zip(fields[::2], fields[1::2], strict=True):
                        self._keep(reservation, msgspec.msgpack.decode(record))
                case b"HDEL", [key, *gone] if key == _RESERVATIONS:
                    for reservation in gone:
                        self._keep(reservation, None)
                case b"XADD", [_, *_, event]:
                    self._post(event, late)
                case (b"INCRBY" | b"DECRBY") as name, [key, amount]:
                    self._count(key.decode(), int(amount) if name == b"INCRBY" else -int(amount))
                case b"SET", [b"mark", _]:
                    self.marks += 1
        for limit, raw in counters.items():
            if not limit.startswith(b"_"):
                self._check(limit.decode(), raw, late)
        self.instants += bool(counters)

    def _keep(self, reservation: bytes, record: list[Any] | None) -> None:
        """Open reservations hold; all others do not."""
        for sign, each in ((-1, self._records.pop(reservation, None)), (1, record)):
            if each is not None and each[STATE] == "open":
                for limit in (*each[WINDOWS], *each[FLIGHT]):
                    metric = limit.split("/")[1]
                    amount = {"tokens": each[TOKENS_HELD], "cost": each[COST_HELD]}.get(metric, 1)
                    self._held[limit] += sign * int(amount)
        if record is not None:
            self._records[reservation] = record

    def _post(self, text: bytes, late: Tally[str]) -> None:
        event = read_event(text)
        self.events += 1
        for each in event.amounts:
            self.sums[each.limit, each.window] += each.amount
            if event.kind is EventKind.LATE:
                late[each.limit] += each.amount
        if event.kind is EventKind.LATE:
            late[""] += event.charge.tokens  # what a bucket of tokens may have fallen by

    def _check(self, limit: str, raw: bytes, late: Tally[str]) -> None:
        kind, metric, _, period, _, cap, first, held, at, _ = COUNTER.unpack(raw)
        if kind == WINDOW:
            taken, allowed = first + held, late[limit]
            self._expect(f"used of {limit}", first, self.sums[limit, int(at)])
        elif kind == CONCURRENT:
            taken, allowed = held, 0
        else:
            taken, allowed = cap - first // period, late[""] if metric == TOKENS else 0
            if first > cap * period:
                self._fault(f"{limit} has {first:.0f}, more than {cap:.0f} x {period:.0f}")
        if kind in (WINDOW, CONCURRENT):
            self._expect(f"held of {limit}", held, self._held[limit])
        self.fullest[limit] = max(int(1000 * taken / cap), self.fullest.get(limit, 0))
        excess = int(taken - cap)
        over = excess - max(0, self._excess.get(limit, 0)) - allowed
        self._excess[limit] = excess
        if over > 0:
            self.over[limit] = max(over, self.over.get(limit, 0))

    def _count(self, key: str, change: int) -> None:
        self.instants += 1
        self._plain[key] += change
        over = self._plain[key] - self.caps[key]
        if over > 0:
            self.over[key] = max(over, self.over.get(key, 0))

    def _expect(self, what: str, found: float, expected: int) -> None:
        if found != expected:
            self._fault(f"{what} is {found:.0f}, and should be {expected}")

    def _fault(self, text: str) -> None:
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(f"instant {self.instants}: {text}")
