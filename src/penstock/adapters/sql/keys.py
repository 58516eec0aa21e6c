"""API keys as they are stored: identifiers, scopes and HMACs, never a secret.

Every look-up is by (organisation, id): another organisation's key is not there. Each change raises a version that
the service reads once a second, writes the audit log in the same transaction, and returns what now holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine, Row, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from penstock.adapters.sql.audit_log import record
from penstock.adapters.sql.database import writing
from penstock.adapters.sql.tables import api_keys, versions
from penstock.errors import Conflict, NotFound
from penstock.quota.definitions import VERIFIED_PREFIX, Key

DEFINITIONS = "definitions"
_row = api_keys.c


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A key with what only people want to know of it. Times are Unix milliseconds, 0 for never."""

    organisation: str
    name: str
    created_at_ms: int
    rotated_at_ms: int
    revoked_at_ms: int
    key: Key


class Keys:
    """The table of API keys; made for a thread or a command line, since each call waits for the database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self, organisation: str, key: Key, *, name: str, now_ms: int, actor: str) -> StoredKey:
        """Store a new key with its one HMAC.

        Raises:
            Conflict: The organisation has a key of this id.
        """
        row = _new_row(organisation, key, name=name, now_ms=now_ms)
        with writing(self._engine) as connection:
            try:
                connection.execute(insert(api_keys).values(row))
            except IntegrityError as error:
                raise Conflict(f"{organisation}: there is a key {key.id} already; choose another id") from error
            return self._changed(connection, "keys.create", None, organisation, key.id, now_ms=now_ms, actor=actor)

    def list(self, organisation: str | None = None) -> list[StoredKey]:
        """Keys by organisation and age; of all organisations if none is named. Revoked ones are included."""
        statement = select(api_keys).order_by(_row.organisation, _row.created_at_ms, _row.id)
        if organisation is not None:
            statement = statement.where(_row.organisation == organisation)
        with self._engine.connect() as connection:
            return [_stored(row) for row in connection.execute(statement)]

    def get(self, organisation: str, key_id: str) -> StoredKey:
        """One key.

        Raises:
            NotFound: The organisation has none of this id.
        """
        with self._engine.connect() as connection:
            return _get(connection, organisation, key_id)

    def rotate(self, organisation: str, key_id: str, *, mac: str, grace_ms: int, now_ms: int, actor: str) -> StoredKey:
        """Add a second secret's HMAC; the one before works for ``grace_ms`` more, any older one no longer.

        Raises:
            NotFound: The organisation has no such key.
            Conflict: The key is revoked.
        """
        with writing(self._engine) as connection:
            before = _get(connection, organisation, key_id, to_change=True)
            if before.key.revoked:
                raise Conflict(f"{organisation}: key {key_id} is revoked; create a new one")
            if before.key.verified:
                raise Conflict(
                    f"{organisation}: {key_id} stands for an issuer's tokens and has no secret; rotate there"
                )
            ends_ms = now_ms + grace_ms
            kept = [[old, min(expiry or ends_ms, ends_ms)] for old, expiry in before.key.macs[:1]]
            self._update(connection, before, macs=[[mac, 0], *kept], rotated_at_ms=now_ms)
            return self._changed(connection, "keys.rotate", before, organisation, key_id, now_ms=now_ms, actor=actor)

    def revoke(self, organisation: str, key_id: str, *, now_ms: int, actor: str) -> StoredKey:
        """Refuse the key from now on; of a revoked key nothing changes.

        Raises:
            NotFound: The organisation has no such key.
        """
        with writing(self._engine) as connection:
            before = _get(connection, organisation, key_id, to_change=True)
            if before.key.revoked:
                return before
            self._update(connection, before, revoked_at_ms=now_ms)
            return self._changed(connection, "keys.revoke", before, organisation, key_id, now_ms=now_ms, actor=actor)

    def record_verified(self, wanted: Mapping[tuple[str, str], Key], *, now_ms: int, actor: str) -> bool:
        """Make these, by (organisation, id), the keys of verified subjects, and no others; tells whether any changed.

        One that was revoked by hand stays revoked as long as it is wanted. Their ids begin as no minted key's can.
        """
        with writing(self._engine) as connection:
            raise_version(connection)
            rows = connection.execute(select(api_keys).where(_row.id.startswith(VERIFIED_PREFIX)))
            known = {(row.organisation, row.id): _stored(row) for row in rows}
            changed = [each for each in sorted({*known, *wanted}) if _differs(known.get(each), wanted.get(each))]
            for organisation, key_id in changed:
                before, key = known.get((organisation, key_id)), wanted.get((organisation, key_id))
                revoked_at_ms = before.revoked_at_ms if before is not None else 0
                here = (_row.organisation == organisation) & (_row.id == key_id)
                connection.execute(delete(api_keys).where(here))
                if key is not None:
                    row = _new_row(organisation, key, name="verified subjects", now_ms=now_ms)
                    connection.execute(insert(api_keys).values(row | {"revoked_at_ms": revoked_at_ms}))
                record(
                    connection,
                    at_ms=now_ms,
                    actor=actor,
                    action="keys.record_verified",
                    organisation=organisation,
                    subject=key_id,
                    before=None if before is None else _audited(before),
                    after=None if key is None else _audited(_get(connection, organisation, key_id)),
                )
            if not changed:
                connection.rollback()
        return bool(changed)

    def version(self) -> int:
        """Rises with every change; 0 before the first."""
        with self._engine.connect() as connection:
            return _version(connection)

    @staticmethod
    def _update(connection: Connection, stored: StoredKey, **values: Any) -> None:
        here = (_row.organisation == stored.organisation) & (_row.id == stored.key.id)
        connection.execute(update(api_keys).where(here).values(**values))

    @staticmethod
    def _changed(
        connection: Connection,
        action: str,
        before: StoredKey | None,
        organisation: str,
        key_id: str,
        *,
        now_ms: int,
        actor: str,
    ) -> StoredKey:
        after = _get(connection, organisation, key_id)
        raise_version(connection)
        record(
            connection,
            at_ms=now_ms,
            actor=actor,
            action=action,
            organisation=organisation,
            subject=key_id,
            before=None if before is None else _audited(before),
            after=_audited(after),
        )
        return after


def raise_version(connection: Connection) -> int:
    """Take the next version of keys and definitions; any other change waits until this transaction has ended."""
    insert_into = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    upsert = insert_into(versions).values(name=DEFINITIONS, version=1)
    raised = upsert.on_conflict_do_update(index_elements=["name"], set_={"version": versions.c.version + 1})
    version: int = connection.execute(raised.returning(versions.c.version)).scalar_one()
    return version


def _new_row(organisation: str, key: Key, *, name: str, now_ms: int) -> dict[str, Any]:
    return {
        "organisation": organisation,
        "id": key.id,
        "name": name,
        "team": key.team,
        "macs": [list(mac) for mac in key.macs],
        "models": None if key.models is None else sorted(key.models),
        "routes": None if key.routes is None else sorted(key.routes),
        "cost_nanos_max": key.cost_nanos_max,
        "created_at_ms": now_ms,
        "expires_at_ms": key.expires_at_ms,
        "rotated_at_ms": 0,
        "revoked_at_ms": 0,
    }


def _differs(stored: StoredKey | None, wanted: Key | None) -> bool:
    """Whether what is stored is another than what is wanted; whether it is revoked does not count."""
    return (None if stored is None else replace(stored.key, revoked=False)) != wanted


def _get(connection: Connection, organisation: str, key_id: str, *, to_change: bool = False) -> StoredKey:
    statement = select(api_keys).where(_row.organisation == organisation, _row.id == key_id)
    if to_change:  # SQLite ignores it: `writing` has locked all of it
        statement = statement.with_for_update()
    found = connection.execute(statement).one_or_none()
    if found is None:
        raise NotFound(f"{organisation}: there is no key {key_id}; `penstock keys list` shows those that exist")
    return _stored(found)


def _version(connection: Connection) -> int:
    found = connection.execute(select(versions.c.version).where(versions.c.name == DEFINITIONS)).scalar()
    return found or 0


def _stored(row: Row[Any]) -> StoredKey:
    return StoredKey(
        organisation=row.organisation,
        name=row.name,
        created_at_ms=row.created_at_ms,
        rotated_at_ms=row.rotated_at_ms,
        revoked_at_ms=row.revoked_at_ms,
        key=Key(
            id=row.id,
            team=row.team,
            verified=row.id.startswith(VERIFIED_PREFIX),
            macs=tuple((mac, expiry) for mac, expiry in row.macs),
            revoked=row.revoked_at_ms != 0,
            expires_at_ms=row.expires_at_ms,
            models=None if row.models is None else frozenset(row.models),
            routes=None if row.routes is None else frozenset(row.routes),
            cost_nanos_max=row.cost_nanos_max,
        ),
    )


def _audited(stored: StoredKey) -> dict[str, Any]:
    """What the audit log keeps of a key: HMACs by when they expire only."""
    key = stored.key
    return {
        "name": stored.name,
        "team": key.team,
        "secrets_expire_at_ms": [expiry for _, expiry in key.macs],
        "models": None if key.models is None else sorted(key.models),
        "routes": None if key.routes is None else sorted(key.routes),
        "cost_nanos_max": key.cost_nanos_max,
        "expires_at_ms": key.expires_at_ms,
        "revoked_at_ms": stored.revoked_at_ms,
    }
