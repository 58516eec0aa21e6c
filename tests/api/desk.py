"""``/admin/v1`` behind a door, over a database of the test's choice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from penstock.adapters.sql.database import migrate, open_engine
from penstock.adapters.sql.definitions import Written, record_definitions
from penstock.adapters.sql.keys import Keys
from penstock.api.services import Services
from penstock.lanes.administering import Admin
from penstock.lanes.credentials import mint
from penstock.quota.definitions import Definitions, Key
from penstock.quota.model import Organisation
from penstock.wiring.administering import SqlAdministration
from penstock.wiring.governing import Governing
from tests.api.door import LIMITS, MODELS, NOW_MS, PEPPER, Answer, Clock, Door, a_key

PLATFORM = mint("acme", "root", secret=bytes([20]) * 32)
OWN = mint("acme", "own", secret=bytes([21]) * 32)
NARROW = mint("acme", "narrow", secret=bytes([22]) * 32)
PLAIN = mint("acme", "plain", secret=bytes([23]) * 32)


class Desk(Door):
    """A door with records behind it: acme is the administrators', globex is the file's.

    Args:
        engine: On a database that is migrated, and empty; on a new one of SQLite in ``folder`` if None.
    """

    def __init__(self, folder: Path, engine: Engine | None = None) -> None:
        super().__init__()
        self.hold("new", *(f"org-{number}" for number in range(5)))
        if engine is None:
            engine = open_engine(folder / "penstock.db")
            migrate(engine)
        self.engine = engine
        definitions = {"acme": Definitions(limits=LIMITS, models=MODELS), "globex": Definitions(models=MODELS)}
        written = Written(seeded=["acme"], seeded_prices=["chat-small"])
        record_definitions(self.engine, definitions, shards=16, now_ms=NOW_MS - 9, actor="file", written=written)
        keys = Keys(self.engine)
        for token, admin, more in (
            (PLATFORM, Admin.PLATFORM, {}),
            (OWN, Admin.ORGANISATION, {}),
            (NARROW, Admin.ORGANISATION, {"models": frozenset({"chat-small"}), "cost_nanos_max": 500}),
            (PLAIN, Admin.NOTHING, {}),
        ):
            key: Key = a_key(token, pepper=PEPPER, **more)
            keys.create("acme", key, name="", now_ms=NOW_MS - 9, actor="ops", admin=admin)
        self.governing = Governing(self.engine, Clock(), is_alone=True)

    def hold(self, *names: str) -> None:
        """Let the quota store take organisations of these names."""
        for name in names:
            self.store.organisations[name] = Organisation(name)

    def services(self) -> Services:
        administration = SqlAdministration(self.engine, self.governing, self.store, shards=16)
        return replace(super().services(), keys=self.governing, administration=administration)

    def admin(self, method: str, path: str, body: Any = None, *, token: str = PLATFORM, tag: str = "") -> Answer:
        headers = (("if-match", tag),) if tag else ()
        return self.ask(method, path, body, token=token, headers=headers)

    def made(self, path: str, body: Any, *, token: str = PLATFORM) -> dict[str, Any]:
        answer = self.admin("POST", path, body, token=token)
        assert answer.status == 201, answer.body
        return dict(answer.json())
