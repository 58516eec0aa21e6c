"""``penstock ledger correct``: what a person wants put right, made into a correction and written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import ProgrammingError

from penstock.adapters.sql.correcting import charged, has_line, write_correction
from penstock.adapters.sql.database import translated, writing
from penstock.config import Configuration
from penstock.errors import InvalidRequest
from penstock.lanes.administering import By
from penstock.lanes.billing import Correction, Month, priced_nanos
from penstock.wiring.database import existing_database
from penstock.wiring.places import Places

AMOUNT_MAX = 2**52  # as of every amount in the ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a person gives.

    Args:
        reservation: That was charged wrongly; or, of the line of an invoice, ``month`` and ``model``.
        cost_nanos: None: the tokens at the reservation's price.
    """

    organisation: str
    reference: str
    reason: str
    reservation: str | None
    month: Month | None
    model: str | None
    team: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_nanos: int | None


def correct(configuration: Configuration, places: Places, wanted: Wanted, by: By) -> tuple[Correction, bool]:
    """Write it; what was written, and whether it is new.

    Raises:
        InvalidRequest: There is nothing like that to correct, or the reference says something else already.
        StoreUnavailable: There is no ledger, or it cannot be reached.
    """
    with (
        existing_database(configuration, places, role=None) as engine,
        translated(),
        writing(engine) as connection,
    ):
        try:
            made = _made(connection, wanted, by)
            _check_amounts(made)
            return made, write_correction(connection, made)
        except ProgrammingError as error:
            raise InvalidRequest(
                f"PostgreSQL refuses: {error.orig}; corrections are written by the account of `penstock setup`: "
                "stores.postgresql.username and password"
            ) from error


def _check_amounts(made: Correction) -> None:
    amounts = (made.prompt_tokens, made.cached_tokens, made.completion_tokens, made.cost_nanos)
    if not any(amounts):
        raise InvalidRequest("nothing is put right: give tokens (such as --completion=-100) or --usd=-1.25")
    if max(map(abs, amounts)) > AMOUNT_MAX:
        raise InvalidRequest(f"tokens and nano-dollars: at most {AMOUNT_MAX:,} in one correction; write several")


def _made(connection: Connection, wanted: Wanted, by: By) -> Correction:
    tokens = {"prompt": wanted.prompt_tokens, "cached": wanted.cached_tokens, "completion": wanted.completion_tokens}
    common: dict[str, Any] = {
        "organisation": wanted.organisation,
        "reference": wanted.reference,
        "occurred_at_ms": by.now_ms,
        "author": by.actor,
        "reason": wanted.reason,
        **{f"{name}_tokens": count for name, count in tokens.items()},
    }
    if wanted.reservation is not None:
        found = charged(connection, wanted.organisation, wanted.reservation)
        if found is None:
            raise InvalidRequest(
                f"--reservation: {wanted.organisation} was never charged for {wanted.reservation!r}; "
                "`penstock ledger export` shows what it was charged for"
            )
        cost_nanos = priced_nanos(found.price, **tokens) if wanted.cost_nanos is None else wanted.cost_nanos
        return Correction(
            corrects=wanted.reservation,
            cost_nanos=cost_nanos,
            team=found.team,
            key=found.key,
            model=found.model,
            lane=found.lane,
            **common,
        )
    return _of_line(connection, wanted, common)


def _of_line(connection: Connection, wanted: Wanted, common: dict[str, Any]) -> Correction:
    month, model = wanted.month, wanted.model
    if month is None or model is None:
        raise InvalidRequest("say what is wrong: --reservation ID, or --month and --model (and --team) of an invoice")
    if wanted.cost_nanos is None:
        raise InvalidRequest("--usd: a line may have several prices, so say by how much; such as --usd=-1.25")
    is_there = has_line(
        connection,
        wanted.organisation,
        start_ms=month.start_ms,
        end_ms=month.end_ms,
        model=model,
        team=wanted.team,
    )
    if not is_there:
        raise InvalidRequest(
            f"--month, --model and --team: there is no such line on the invoice of {month.name}; "
            f"`penstock invoice {wanted.organisation} {month.name}` shows it"
        )
    corrects = " ".join(filter(None, (month.name, model, wanted.team)))
    return Correction(
        corrects=corrects,
        cost_nanos=wanted.cost_nanos,
        team=wanted.team,
        key="",
        model=model,
        lane="",
        **common,
    )
