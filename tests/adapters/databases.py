"""Fresh databases on one PostgreSQL server, each a copy of a prepared template."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from sqlalchemy import Engine, make_url, text

from penstock.adapters.postgresql.database import open_engine
from penstock.adapters.postgresql.preparing import prepare
from tests.system.services import PostgreSQL

TEMPLATE = "penstock_template"
MARCH_MS = 1_741_000_000_000  # 2025-03-03
ACCOUNTS = {"api": "for api", "keeper": "for keeper", "collector": "for collector"}


class Databases:
    """Databases on ``server``, which runs; the template is prepared when it is made."""

    def __init__(self, server: PostgreSQL) -> None:
        self.server = server
        self._numbers = count(1)
        self._administration = open_engine(server.url).execution_options(isolation_level="AUTOCOMMIT")
        engine = open_engine(self.url(TEMPLATE))
        prepare(engine, ACCOUNTS, now_ms=MARCH_MS)
        engine.dispose()

    def url(self, database: str) -> str:
        return make_url(self.server.url).set(database=database).render_as_string(hide_password=False)

    @contextmanager
    def named(self, *, template: str = TEMPLATE) -> Iterator[str]:
        """A database of its own, by its URL, dropped at the end."""
        name = f"test_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self.url(name)
        finally:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def fresh(self) -> Iterator[Engine]:
        """An engine on a migrated database of its own."""
        with self.named() as url:
            engine = open_engine(url)
            try:
                yield engine
            finally:
                engine.dispose()

    def close(self) -> None:
        self._administration.dispose()

    def _execute(self, statement: str) -> None:
        with self._administration.connect() as connection:
            connection.execute(text(statement))
