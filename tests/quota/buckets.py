"""What every bucket must hold, worked out a second time: from answers and ledger rows alone, in exact fractions."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from penstock.quota import (
    Define,
    Definitions,
    Done,
    Event,
    EventKind,
    Extend,
    Extended,
    Kind,
    Lane,
    Limit,
    Reassert,
    Reservation,
    Reserve,
    Reserved,
    limit_id,
)

DEBT_MAX = 1 << 52


@dataclass(slots=True)
class Bucket:
    """Tokens in it, at an instant."""

    cap: int
    period_ms: int
    level: Fraction
    at_ms: int

    def refill(self, now_ms: int) -> None:
        gained = Fraction(self.cap * (now_ms - self.at_ms), self.period_ms)
        self.level = min(Fraction(self.cap), self.level + gained) if self.cap else self.level
        self.at_ms = now_ms

    def add(self, amount: int, now_ms: int) -> None:
        self.refill(now_ms)
        self.level = max(min(Fraction(self.cap), self.level + amount), Fraction(-DEBT_MAX, self.period_ms))


@dataclass(slots=True)
class Debit:
    """Which buckets a reservation paid into, and how many tokens."""

    limits: tuple[str, ...]
    tokens: int
    charged: int = 0


class BucketOracle:
    """The buckets of one organisation."""

    def __init__(self) -> None:
        self.buckets: dict[str, Bucket] = {}
        self.limits: dict[str, Limit] = {}
        self.debits: dict[str, Debit] = {}

    def follow(
        self, call: Any, answer: Any, rows: list[Event], record: Reservation | None, *, is_new: bool, now_ms: int
    ) -> None:
        """Take note of one operation.

        Args:
            rows: What it appended to the outbox.
            record: The reservation that it named, afterwards; ``is_new`` if the call made it.
        """
        if isinstance(call, Define) and answer == Done():
            self._define(call.definitions, now_ms)
        if is_new and record is not None:
            self.debits.pop(record.id, None)  # an id that was forgotten lives again, and has paid nothing yet
        for row in rows:
            self._row(row, now_ms)
        if isinstance(call, Reserve) and isinstance(answer, Reserved) and is_new and call.lane is Lane.REALTIME:
            assert record is not None
            self._debit(call.reservation, record.team, record.key, record.model, answer.tokens_held, now_ms)
        if isinstance(call, Reassert) and record is not None and record.running:
            self.debits.setdefault(record.id, Debit((), record.tokens_held))  # it runs, and is not asked to pay later
        if isinstance(call, Extend) and isinstance(answer, Extended) and call.reservation in self.debits:
            debit = self.debits[call.reservation]
            more, debit.tokens = answer.tokens_held - debit.tokens, answer.tokens_held
            self._pour(debit, rate=-more, strict=-more, requests=0, now_ms=now_ms)

    def _define(self, definitions: Definitions, now_ms: int) -> None:
        self.limits = {limit_id(limit): limit for limit in definitions.limits}
        for each, limit in self.limits.items():
            if limit.kind not in (Kind.RATE, Kind.STRICT_RATE):
                continue
            bucket = self.buckets.get(each)
            if bucket is None:
                self.buckets[each] = Bucket(limit.cap, limit.period_ms, Fraction(limit.cap), now_ms)
            else:
                bucket.refill(now_ms)
                bucket.cap = limit.cap
                bucket.level = min(bucket.level, Fraction(limit.cap))

    def _row(self, row: Event, now_ms: int) -> None:
        debit = self.debits.get(row.reservation)
        if row.kind is EventKind.ACQUIRED and debit is None:
            self._debit(row.reservation, row.team, row.key, row.model, row.tokens_held, now_ms)
        if debit is None:
            return
        used = row.charge.tokens
        if row.kind in (EventKind.POSTED, EventKind.EXPIRED):
            strict = min(0, debit.tokens - used)
            self._pour(debit, rate=debit.tokens - used, strict=strict, requests=0, now_ms=now_ms)
            debit.charged = used
        elif row.kind is EventKind.VOIDED:
            self._pour(debit, rate=debit.tokens, strict=debit.tokens, requests=1, now_ms=now_ms)
        elif row.kind is EventKind.LATE:
            strict = min(0, max(debit.tokens, debit.charged) - debit.charged - used)
            self._pour(debit, rate=-used, strict=strict, requests=0, now_ms=now_ms)
        if row.kind in (EventKind.POSTED, EventKind.VOIDED, EventKind.LATE):
            del self.debits[row.reservation]

    def _debit(self, reservation: str, team: str | None, key: str, model: str, tokens: int, now_ms: int) -> None:
        limits = []
        for each, limit in self.limits.items():
            owner = limit.owner.partition(":")[2]
            if each in self.buckets and owner in ("", f"team:{team}", f"key:{key}") and limit.model in (None, model):
                limits.append(each)
        self.debits[reservation] = debit = Debit(tuple(limits), tokens)
        self._pour(debit, rate=-tokens, strict=-tokens, requests=-1, now_ms=now_ms)

    def _pour(self, debit: Debit, *, rate: int, strict: int, requests: int, now_ms: int) -> None:
        for each in debit.limits:
            tokens = strict if "/strict_rate-" in each else rate
            self.buckets[each].add(requests if "/requests/" in each else tokens, now_ms)
