"""API keys as they are stored: identifiers, scopes and HMACs, never a secret.

Each change raises a version that every process reads twice a second, writes the audit log in the same transaction,
and returns what now holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from sqlalchemy import Connection, Engine, select
from sqlalchemy.dialects import postgresql, sqlite

from penstock.adapters.sql import key_rows
from penstock.adapters.sql.database import writing
from penstock.adapters.sql.tables import versions
from penstock.lanes.administering import Admin, By, StoredKey
from penstock.quota.definitions import Key

DEFINITIONS = "definitions"


class Keys:
    """The table of API keys; made for a thread or a command line, since each call waits for the database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(
        self,
        organisation: str,
        key: Key,
        *,
        name: str,
        now_ms: int,
        actor: str,
        admin: Admin = Admin.NOTHING,
        pepper: str = "",
    ) -> StoredKey:
        """Store a new key with its one HMAC.

        Args:
            pepper: Name of the pepper that the HMAC was made with.

        Raises:
            Conflict: The organisation has a key of this id.
        """
        stored = StoredKey(
            organisation=organisation,
            name=name,
            created_at_ms=now_ms,
            rotated_at_ms=0,
            revoked_at_ms=0,
            key=key,
            admin=admin,
            peppers=(pepper,),
        )
        return self._change(lambda connection: key_rows.add_key(connection, stored, By(actor=actor, now_ms=now_ms)))

    def list(self, organisation: str | None = None) -> list[StoredKey]:
        """Keys by organisation and age; of all organisations if none is named. Revoked ones are included."""
        with self._engine.connect() as connection:
            return key_rows.all_keys(connection, organisation)

    def get(self, organisation: str, key_id: str) -> StoredKey:
        """One key.

        Raises:
            NotFound: The organisation has none of this id.
        """
        with self._engine.connect() as connection:
            return key_rows.get_key(connection, organisation, key_id)

    def rotate(
        self, organisation: str, key_id: str, *, mac: str, grace_ms: int, now_ms: int, actor: str, pepper: str = ""
    ) -> StoredKey:
        """Add a second secret's HMAC; the one before works for ``grace_ms`` more, any older one no longer.

        Raises:
            NotFound: The organisation has no such key.
            Conflict: The key is revoked.
        """
        by = By(actor=actor, now_ms=now_ms)

        def rotate(connection: Connection) -> StoredKey:
            before = key_rows.get_key(connection, organisation, key_id)
            return key_rows.rotate_key(connection, before, mac, pepper=pepper, grace_ms=grace_ms, by=by)

        return self._change(rotate)

    def rehash(
        self, organisation: str, key_id: str, *, old: str, new: str, pepper: str, now_ms: int, actor: str
    ) -> StoredKey:
        """Keep a secret's HMAC under the newest pepper instead of the one before; again, nothing happens.

        Raises:
            NotFound: The organisation has no such key.
        """
        by = By(actor=actor, now_ms=now_ms)

        def rehash(connection: Connection) -> StoredKey:
            before = key_rows.get_key(connection, organisation, key_id)
            return key_rows.rehash_key(connection, before, old, new, pepper=pepper, by=by)

        return self._change(rehash)

    def revoke(self, organisation: str, key_id: str, *, now_ms: int, actor: str) -> StoredKey:
        """Refuse the key from now on; of a revoked key nothing changes.

        Raises:
            NotFound: The organisation has no such key.
        """
        by = By(actor=actor, now_ms=now_ms)
        return self._change(
            lambda connection: key_rows.revoke_key(connection, key_rows.get_key(connection, organisation, key_id), by)
        )

    def record_verified(self, wanted: Mapping[tuple[str, str], Key], *, now_ms: int, actor: str) -> bool:
        """Make these, by (organisation, id), the keys of verified subjects, and no others; tells whether any changed.

        One that was revoked by hand stays revoked as long as it is wanted. Their ids begin as no minted key's can.
        """
        by = By(actor=actor, now_ms=now_ms)
        with writing(self._engine) as connection:
            raise_version(connection)
            known = {(each.organisation, each.key.id): each for each in key_rows.verified_keys(connection)}
            changed = [each for each in sorted({*known, *wanted}) if _differs(known.get(each), wanted.get(each))]
            for organisation, key_id in changed:
                before, key = known.get((organisation, key_id)), wanted.get((organisation, key_id))
                key_rows.replace_verified(connection, organisation, before, key, by)
            if not changed:
                connection.rollback()
        return bool(changed)

    def version(self) -> int:
        """Rises with every change; 0 before the first."""
        with self._engine.connect() as connection:
            return read_version(connection)

    def _change(self, change: Callable[[Connection], StoredKey]) -> StoredKey:
        with writing(self._engine) as connection:
            raise_version(connection)  # first: whoever else changes anything waits here
            return change(connection)


def raise_version(connection: Connection) -> int:
    """Take the next version of keys and definitions; any other change waits until this transaction has ended."""
    insert_into = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    upsert = insert_into(versions).values(name=DEFINITIONS, version=1)
    raised = upsert.on_conflict_do_update(index_elements=["name"], set_={"version": versions.c.version + 1})
    version: int = connection.execute(raised.returning(versions.c.version)).scalar_one()
    return version


def read_version(connection: Connection) -> int:
    """Of the last change that the transaction sees; 0 before the first."""
    found = connection.execute(select(versions.c.version).where(versions.c.name == DEFINITIONS)).scalar()
    return found or 0


def _differs(stored: StoredKey | None, wanted: Key | None) -> bool:
    """Whether what is stored is another than what is wanted; whether it is revoked does not count."""
    return (None if stored is None else replace(stored.key, revoked=False)) != wanted
