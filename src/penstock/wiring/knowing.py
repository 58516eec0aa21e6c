"""Which organisations there are, for a person who names one."""

from __future__ import annotations

from sqlalchemy import Connection

from penstock.adapters.sql.definition_rows import organisations_without_keys
from penstock.adapters.sql.ledger import LedgerReads
from penstock.config import Configuration
from penstock.config.walking import nearest
from penstock.errors import InvalidRequest


def known_organisations(connection: Connection, configuration: Configuration) -> set[str]:
    """Those of the configuration, of administrators, and those that have left and are in the ledger."""
    ledger = LedgerReads(connection)
    return {*ledger.organisations(), *organisations_without_keys(connection), *configuration.organisations}


def check_known(organisation: str, known: set[str]) -> None:
    """An organisation that was named is one of these.

    Raises:
        InvalidRequest: It is not; with the nearest one.
    """
    if organisation not in known:
        raise InvalidRequest(
            f"{organisation!r} is neither configured nor defined, nor in the ledger; {nearest(organisation, known)}"
        )
