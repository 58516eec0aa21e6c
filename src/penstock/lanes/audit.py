"""Do counters, open holds and ledger agree? A pure comparison, for ``penstock audit`` and for every torture test.

Three sums of the same money: the counter's ``held`` and the open holds that name its limit; the counter's ``used``
and what the ledger's rows (with those on their way to it) posted to its window. Where they differ, the rows of the
window are searched for reservations that contradict themselves, so that the difference gets names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from penstock.quota.definitions import Kind, Metric
from penstock.quota.events import Event, EventKind
from penstock.quota.limits import parse_limit_id
from penstock.quota.operations import Inspected, LimitStanding

_LEAVES_OPEN = (EventKind.POSTED, EventKind.VOIDED, EventKind.EXPIRED)


@dataclass(frozen=True, slots=True)
class Difference:
    """One disagreement about one limit, in the limit's unit.

    Args:
        what: "used", "held", or "rows" where sums agree but a reservation's rows contradict each other.
        window: Window id; 0 where there is none.
        counter: What the counter says.
        expected: What holds or ledger say.
        reservations: Those that can be named, sorted; often none can.
    """

    limit: str
    what: str
    window: int
    counter: int
    expected: int
    reservations: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """What differs, by how much, and where to look."""
        named = f"; look at {', '.join(self.reservations)}" if self.reservations else ""
        if self.what == "rows":
            return f"{self.limit} window {self.window}: rows contradict each other{named}"
        other = "sum of open holds" if self.what == "held" else f"ledger for window {self.window}"
        return (
            f"{self.limit}: {self.what} is {self.counter}, the {other} says {self.expected}, "
            f"difference {self.counter - self.expected}{named}"
        )


def audit(
    inspected: Inspected,
    *,
    window_sums: Mapping[tuple[str, int], int],
    unwritten: Sequence[Event],
    rows: Iterable[Event] = (),
) -> list[Difference]:
    """Compare an organisation's counters with its open holds and its ledger, at one instant.

    Args:
        window_sums: Of the ledger, per (limit id, window id); past windows are not compared.
        unwritten: Events that the ledger does not have yet.
        rows: The ledger's events that touch the current windows; only to name reservations.

    Returns:
        Every difference, by limit; empty if all agrees.
    """
    used: dict[tuple[str, int], int] = defaultdict(int, window_sums)
    for event in unwritten:
        for posted in event.amounts:
            used[posted.limit, posted.window] += posted.amount
    held: dict[str, int] = defaultdict(int)
    for hold in inspected.holds:
        for limit, amount in hold.amounts:
            held[limit] += amount
    suspects = _suspects(inspected, rows, unwritten)
    differences = []
    for standing in inspected.limits:
        differences += _compare(standing, held.pop(standing.limit, 0), used, suspects)
    differences += [
        Difference(limit, "held", 0, 0, amount) for limit, amount in held.items() if amount
    ]  # held by a limit without a counter
    known = {standing.limit: standing.window for standing in inspected.limits}
    for (limit, window), amount in used.items():
        if amount and (limit not in known or window > known[limit]):
            named = tuple(sorted(suspects.pop((limit, window), ())))
            differences.append(Difference(limit, "used", window, 0, amount, named))
    return sorted(differences, key=lambda each: (each.limit, each.window, each.what))


def _compare(
    standing: LimitStanding,
    held: int,
    used: Mapping[tuple[str, int], int],
    suspects: dict[tuple[str, int], set[str]],
) -> list[Difference]:
    differences = []
    if standing.kind in (Kind.WINDOW, Kind.CONCURRENCY, Kind.ENQUEUED) and standing.held != held:
        differences.append(Difference(standing.limit, "held", standing.window, standing.held, held))
    if standing.kind == Kind.WINDOW:
        here = (standing.limit, standing.window)
        named = tuple(sorted(suspects.pop(here, ())))
        expected = used.get(here, 0)
        if standing.used != expected or named:
            what = "used" if standing.used != expected else "rows"
            differences.append(Difference(standing.limit, what, standing.window, standing.used, expected, named))
    return differences


def _suspects(
    inspected: Inspected, rows: Iterable[Event], unwritten: Sequence[Event]
) -> dict[tuple[str, int], set[str]]:
    """Reservations that contradict themselves, by the (limit, window) that their events name."""
    still_open = {hold.reservation for hold in inspected.holds}
    by_reservation: dict[str, list[Event]] = defaultdict(list)
    for event in (*rows, *unwritten):
        by_reservation[event.reservation].append(event)
    suspects: dict[tuple[str, int], set[str]] = defaultdict(set)
    for reservation, events in by_reservation.items():
        kinds = [event.kind for event in events]
        wrong = len(set(kinds)) < len(kinds) or sum(kind in _LEAVES_OPEN for kind in kinds) > 1
        wrong = wrong or (reservation in still_open and any(kind in _LEAVES_OPEN for kind in kinds))
        for event in events:
            for amount in event.amounts:
                if wrong or amount.amount != _charged(event, amount.limit):
                    suspects[amount.limit, amount.window].add(reservation)
    return suspects


def _charged(event: Event, limit: str) -> int:
    metric = parse_limit_id(limit).metric
    charge = event.charge
    return {Metric.TOKENS: charge.tokens, Metric.COST: charge.cost_nanos}.get(metric, charge.requests)
