"""Compares the ledger with what the model servers say they produced, request by request, in integers.

The difference is not that of two sums, in which errors could cancel: it adds up what differs at each request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from penstock.quota.events import Event
from penstock.quota.pricing import cost_nanos


@dataclass(frozen=True, slots=True)
class Produced:
    """What a model server says of one request, or of all of them.

    Args:
        request_id: The reservation; "" in a sum.
    """

    request_id: str
    model: str
    prompt: int
    completion: int
    cached: int = 0


@dataclass(slots=True)
class Account:
    """One organisation's or one model's sums, from the ledger."""

    requests: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    cost_nanos: int = 0
    tokens_held: int = 0

    def add(self, event: Event) -> None:
        """Add one row of the ledger."""
        self.requests += event.charge.requests
        self.prompt += event.usage.prompt
        self.cached += event.usage.cached
        self.completion += event.usage.completion
        self.cost_nanos += event.charge.cost_nanos
        self.tokens_held += event.tokens_held if event.charge.requests else 0

    def merge(self, other: Account) -> None:
        """Add another account."""
        self.requests += other.requests
        self.prompt += other.prompt
        self.cached += other.cached
        self.completion += other.completion
        self.cost_nanos += other.cost_nanos
        self.tokens_held += other.tokens_held

    @property
    def tokens(self) -> int:
        """Prompt and completion."""
        return self.prompt + self.completion

    @property
    def held_per_used_milli(self) -> int:
        """Tokens held for each 1000 tokens used, rounded to the nearest; 0 if none were used.

        Example:
            >>> Account(prompt=60, completion=40, tokens_held=165).held_per_used_milli
            1650
        """
        return (2000 * self.tokens_held + self.tokens) // (2 * self.tokens) if self.tokens else 0


@dataclass(slots=True)
class Difference:
    """Where ledger and model servers disagree; all zero is what is promised.

    Args:
        tokens: Sum of the absolute differences of prompt, cached and completion tokens.
        cost_nanos: Sum of the absolute differences between what was charged and what the servers' tokens cost.
        reservations: At most ``SHOWN_MAX`` of those that differ.
    """

    tokens: int = 0
    cost_nanos: int = 0
    reservations: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.tokens or self.cost_nanos)


SHOWN_MAX = 10


@dataclass(slots=True)
class Books:
    """The ledger's rows of one rehearsal, added up."""

    organisations: dict[str, Account] = field(default_factory=dict)
    models: dict[str, Account] = field(default_factory=dict)
    total: Account = field(default_factory=Account)
    by_reservation: dict[str, list[Event]] = field(default_factory=dict)

    @classmethod
    def of(cls, events: Iterable[Event]) -> Books:
        """Add rows up."""
        books = cls()
        for event in events:
            books.organisations.setdefault(event.organisation, Account()).add(event)
            books.models.setdefault(event.model, Account()).add(event)
            books.total.add(event)
            books.by_reservation.setdefault(event.reservation, []).append(event)
        return books


def difference(books: Books, produced: Iterable[Produced]) -> Difference:
    """Compare request by request; several attempts at one reservation are added up.

    Args:
        produced: One for each request that a model server began; those that produced nothing may be among them.
    """
    made: dict[str, tuple[int, int, int]] = {}
    for line in produced:
        prompt, cached, completion = made.get(line.request_id, (0, 0, 0))
        made[line.request_id] = (prompt + line.prompt, cached + line.cached, completion + line.completion)
    found = Difference()
    for reservation in sorted(made.keys() | books.by_reservation.keys()):
        rows = books.by_reservation.get(reservation, [])
        _compare(found, reservation, rows, made.get(reservation, (0, 0, 0)))
    return found


def _compare(found: Difference, reservation: str, rows: list[Event], made: tuple[int, int, int]) -> None:
    charged = (
        sum(row.usage.prompt for row in rows),
        sum(row.usage.cached for row in rows),
        sum(row.usage.completion for row in rows),
    )
    tokens = sum(abs(ours - theirs) for ours, theirs in zip(charged, made, strict=True))
    due = cost_nanos(rows[0].price, made[0], made[1], made[2]) if rows and any(made) else 0
    cost = abs(sum(row.charge.cost_nanos for row in rows) - due)
    if tokens or cost:
        found.tokens += tokens
        found.cost_nanos += cost
        if len(found.reservations) < SHOWN_MAX:
            found.reservations.append(reservation)


def difference_of_sums(books: Books, produced: Mapping[str, Produced]) -> Difference:
    """Compare model by model, where a server counts but does not name requests."""
    found = Difference()
    for model in sorted(produced.keys() | books.models.keys()):
        ours = books.models.get(model, Account())
        theirs = produced.get(model, Produced("", model, 0, 0))
        found.tokens += abs(ours.prompt - theirs.prompt) + abs(ours.completion - theirs.completion)
        found.tokens += abs(ours.cached - theirs.cached)
    return found
