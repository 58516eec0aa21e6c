"""Writing a correction of a bill: once for each reference, into a table that is never changed, and the audit log."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects import postgresql, sqlite

from penstock.adapters.sql.audit_log import record
from penstock.adapters.sql.definition_rows import price_of
from penstock.adapters.sql.tables import corrections, ledger
from penstock.errors import InvalidRequest
from penstock.lanes.billing import Correction
from penstock.quota.definitions import Price

ACTION = "ledger.correct"
_row, _ledger = corrections.c, ledger.c
_COUNTED = ("prompt_tokens", "cached_tokens", "completion_tokens", "cost_nanos")


@dataclass(frozen=True, slots=True, kw_only=True)
class Charged:
    """A reservation that the ledger has charged: whose, at what price."""

    team: str | None
    key: str
    model: str
    lane: str
    price: Price


def charged(connection: Connection, organisation: str, reservation: str) -> Charged | None:
    """What the ledger says of a reservation; None if it never charged it."""
    statement = select(ledger).where(
        _ledger.organisation == organisation, _ledger.reservation == reservation, _ledger.requests > 0
    )
    found = connection.execute(statement).first()
    if found is None:
        return None
    return Charged(team=found.team, key=found.key, model=found.model, lane=found.lane, price=price_of(found))


def has_line(
    connection: Connection, organisation: str, *, start_ms: int, end_ms: int, model: str, team: str | None
) -> bool:
    """Whether a model was charged to a team (None: to none) in a range; ``end_ms`` is excluded."""
    statement = select(ledger.c.reservation).where(
        _ledger.organisation == organisation,
        _ledger.occurred_at_ms >= start_ms,
        _ledger.occurred_at_ms < end_ms,
        _ledger.model == model,
        _ledger.team.is_not_distinct_from(team),
    )
    return connection.execute(statement.limit(1)).first() is not None


def write_correction(connection: Connection, correction: Correction) -> bool:
    """Write it, and who did; tells whether it is new.

    Raises:
        InvalidRequest: The organisation has another one with this reference, or more would be taken away from a
            reservation than it was charged.
    """
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    row = asdict(correction)
    statement = insert(corrections).values(**row).on_conflict_do_nothing().returning(_row.reference)
    is_new = connection.execute(statement).first() is not None
    mine = (_row.organisation == correction.organisation, _row.reference == correction.reference)
    there = Correction(**connection.execute(select(corrections).where(*mine)).mappings().one())
    if not there.is_same(correction):
        raise InvalidRequest(
            f"--reference: {correction.organisation} has a correction {correction.reference!r} that says otherwise "
            f"({there.cost_nanos} nano-dollars on {there.corrects}, {there.reason!r}); none is ever changed: write "
            "another one, with a reference of its own"
        )
    if not is_new:
        return False
    _refuse_more_than_was_charged(connection, correction)
    record(
        connection,
        at_ms=correction.occurred_at_ms,
        actor=correction.author,
        action=ACTION,
        organisation=correction.organisation,
        subject=correction.reference,
        before=None,
        after=row,
    )
    return True


def _refuse_more_than_was_charged(connection: Connection, correction: Correction) -> None:
    """With this one in it, what a reservation was charged and corrected by is not below nothing."""
    if not correction.key:
        return  # of a line of an invoice, which anyone may be credited beyond
    for name in _COUNTED:
        was = select(func.coalesce(func.sum(_ledger[name]), 0)).where(
            _ledger.organisation == correction.organisation, _ledger.reservation == correction.corrects
        )
        by = select(func.coalesce(func.sum(_row[name]), 0)).where(
            _row.organisation == correction.organisation, _row.corrects == correction.corrects
        )
        left = int(connection.execute(was).scalar_one()) + int(connection.execute(by).scalar_one())
        if left < 0:
            raise InvalidRequest(
                f"{name}: {correction.corrects} would be left with {left}, so more would be taken away than it was "
                "charged; look at its corrections with `penstock ledger export`"
            )
