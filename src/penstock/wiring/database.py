"""The one database of either mode: SQLite in the data directory, or PostgreSQL as the configuration names it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from penstock.adapters.postgresql import database as postgresql
from penstock.adapters.postgresql.database import CONNECTIONS_MAX
from penstock.adapters.sql import database as sqlite
from penstock.config import Configuration
from penstock.errors import StoreUnavailable
from penstock.wiring.places import Places
from penstock.wiring.stores import Role, Service, address


def cluster_engine(
    configuration: Configuration, role: Role | None, *, options: str = "", connections_max: int = CONNECTIONS_MAX
) -> Engine:
    """An engine on the cluster's PostgreSQL.

    Args:
        configuration: With stores.
        role: What the process is; None for ``penstock setup``.
        options: Settings of each session, as PostgreSQL's ``-c name=value``.

    Raises:
        ConfigurationError: A reference leads nowhere.
    """
    found = address(configuration, Service.POSTGRESQL, role, os.environ)
    return postgresql.open_engine(
        found.location,
        username=found.username,
        password=found.password,
        tls=found.tls,
        application=f"penstock {role or 'setup'}",
        options=options,
        connections_max=connections_max,
    )


@contextmanager
def opened_database(configuration: Configuration, places: Places, *, role: Role | None = Role.API) -> Iterator[Engine]:
    """For a command: an engine on whichever database keys and ledger are in, disposed of at the end.

    A SQLite database is made if it is not there; PostgreSQL's is ``penstock setup``'s.

    Args:
        role: As whom PostgreSQL is asked; None for the account of ``penstock setup``.

    Raises:
        ConfigurationError: A reference leads nowhere.
        StoreUnavailable: The database cannot be opened.
    """
    if configuration.stores is not None:
        engine = cluster_engine(configuration, role)
    else:
        places.create()
        engine = sqlite.open_engine(places.database)
    try:
        if configuration.stores is None:
            sqlite.migrate(engine)
        yield engine
    finally:
        engine.dispose()


@contextmanager
def existing_database(
    configuration: Configuration, places: Places, *, role: Role | None = Role.API
) -> Iterator[Engine]:
    """The same, for a command that only reads: a SQLite database that is not there is not made.

    Raises:
        StoreUnavailable: There is none, or it cannot be opened.
    """
    if configuration.stores is None and not places.database.exists():
        raise StoreUnavailable(
            f"there is no ledger in {places.data}; start the service once, or name its directory with --data"
        )
    with opened_database(configuration, places, role=role) as engine:
        yield engine
