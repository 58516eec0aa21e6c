"""One organisation's counters beside its ledger, whatever either of them lives in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from penstock.adapters.sql.ledger import LedgerReads
from penstock.errors import StoreUnavailable
from penstock.lanes.audit import Difference, audit
from penstock.lanes.audit_report import OrganisationAudit
from penstock.quota.definitions import Kind
from penstock.quota.events import Event
from penstock.quota.limits import parse_limit_id, window_ends_ms
from penstock.quota.operations import InspectAnswer, Inspected


def whole(name: str, answer: InspectAnswer) -> Inspected:
    """An answer that can be compared.

    Raises:
        StoreUnavailable: The state is not ready.
    """
    if not isinstance(answer, Inspected):
        raise not_ready(name)
    return answer


def not_ready(name: str) -> StoreUnavailable:
    """Why an organisation cannot be compared that the store does not know."""
    return StoreUnavailable(f"{name}: its quota state is not ready, so there is nothing to compare; try again")


def compare_all(
    connection: Connection, inspected: Mapping[str, Inspected], unwritten: Sequence[Event], *, each_row: bool
) -> tuple[OrganisationAudit, ...]:
    """Compare several organisations; see ``compare``."""
    return tuple(
        compare(connection, name, each, [event for event in unwritten if event.organisation == name], each_row=each_row)
        for name, each in sorted(inspected.items())
    )


def compare(
    connection: Connection, name: str, inspected: Inspected, unwritten: Sequence[Event], *, each_row: bool
) -> OrganisationAudit:
    """Compare an organisation's counters with the ledger as ``connection`` sees it.

    Args:
        unwritten: Its events that the ledger does not have yet.
        each_row: Read the ledger row by row even where the sums agree.
    """
    return OrganisationAudit(
        organisation=name,
        at_ms=inspected.now_ms,
        limits=inspected.limits,
        holds=len(inspected.holds),
        tokens_held=sum(hold.tokens_held for hold in inspected.holds),
        unwritten=len(unwritten),
        differences=tuple(_differences(LedgerReads(connection), name, inspected, unwritten, each_row=each_row)),
    )


def _differences(
    ledger: LedgerReads, name: str, inspected: Inspected, unwritten: Sequence[Event], *, each_row: bool
) -> list[Difference]:
    since_ms = _current_since_ms(inspected)
    sums = ledger.window_sums(name, since_ms=since_ms)
    if not each_row and not audit(inspected, window_sums=sums, unwritten=unwritten):
        return []
    rows = ledger.events(organisation=name, start_ms=since_ms)
    return audit(inspected, window_sums=sums, unwritten=unwritten, rows=rows)


def _current_since_ms(inspected: Inspected) -> int:
    """When the oldest window that is current began: rows before it are in no counter."""
    begins_ms = [inspected.now_ms]
    for standing in inspected.limits:
        if standing.kind == Kind.WINDOW:
            limit = parse_limit_id(standing.limit)
            begins_ms.append(window_ends_ms(limit.period_ms, limit.anchor_ms, standing.window - 1))
    return min(begins_ms)
