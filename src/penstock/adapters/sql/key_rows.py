"""Rows of API keys, within a transaction of the caller's: read, added, changed, each change in the audit log.

Every look-up is by (organisation, id): another organisation's key is not there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from penstock.adapters.sql.audit_log import record
from penstock.adapters.sql.tables import api_keys
from penstock.errors import Conflict, NotFound
from penstock.lanes.administering import Admin, By, StoredKey
from penstock.lanes.scopes import effective
from penstock.quota.definitions import VERIFIED_PREFIX, Key

_row = api_keys.c


def all_keys(connection: Connection, organisation: str | None = None) -> list[StoredKey]:
    """Keys by organisation and age; of all organisations if none is named. Revoked ones are included."""
    statement = select(api_keys).order_by(_row.organisation, _row.created_at_ms, _row.id)
    if organisation is not None:
        statement = statement.where(_row.organisation == organisation)
    return [_stored(row) for row in connection.execute(statement)]


def page_of_keys(
    connection: Connection, organisation: str, *, after: tuple[int, str], count_max: int
) -> list[StoredKey]:
    """An organisation's keys by age, from the first behind (created_at_ms, id)."""
    created_at_ms, key_id = after
    behind = or_(_row.created_at_ms > created_at_ms, and_(_row.created_at_ms == created_at_ms, _row.id > key_id))
    statement = select(api_keys).where(_row.organisation == organisation, behind)
    rows = connection.execute(statement.order_by(_row.created_at_ms, _row.id).limit(count_max))
    return [_stored(row) for row in rows]


def get_key(connection: Connection, organisation: str, key_id: str) -> StoredKey:
    """One key.

    Raises:
        NotFound: The organisation has none of this id.
    """
    found = connection.execute(
        select(api_keys).where(_row.organisation == organisation, _row.id == key_id)
    ).one_or_none()
    if found is None:
        raise NotFound(f"{organisation}: there is no key {key_id}; `penstock keys list` shows those that exist")
    return _stored(found)


def effective_key(connection: Connection, organisation: str, key_id: str) -> StoredKey | None:
    """One key as it counts: no wider than those it descends from. None if it is not there."""
    known: dict[str, StoredKey] = {}
    path: str | None = f"{organisation}/{key_id}"
    while path is not None and path not in known:
        try:
            known[path] = get_key(connection, *path.split("/", 1))
        except NotFound:
            break
        path = known[path].creator
    own = known.get(f"{organisation}/{key_id}")
    return None if own is None else effective(own, known)


def add_key(connection: Connection, stored: StoredKey, by: By) -> StoredKey:
    """Store a new key.

    Raises:
        Conflict: The organisation has a key of this id.
    """
    try:
        connection.execute(insert(api_keys).values(_new_row(stored, by)))
    except IntegrityError as error:
        raise Conflict(f"{stored.organisation}: there is a key {stored.key.id} already; choose another id") from error
    return _changed(connection, "keys.create", None, stored.organisation, stored.key.id, by)


def verified_keys(connection: Connection) -> list[StoredKey]:
    """Those that stand for an issuer's tokens, of all organisations."""
    rows = connection.execute(select(api_keys).where(_row.id.startswith(VERIFIED_PREFIX)))
    return [_stored(row) for row in rows]


def replace_verified(
    connection: Connection, organisation: str, before: StoredKey | None, wanted: Key | None, by: By
) -> None:
    """Make a key that stands for an issuer's tokens what the configuration says; if revoked by hand it stays so."""
    key_id = (wanted or (before.key if before is not None else None) or Key(id="")).id
    connection.execute(delete(api_keys).where((_row.organisation == organisation) & (_row.id == key_id)))
    if wanted is not None:
        revoked_at_ms = before.revoked_at_ms if before is not None else 0
        stored = StoredKey(
            organisation=organisation,
            name="verified subjects",
            created_at_ms=by.now_ms,
            rotated_at_ms=0,
            revoked_at_ms=revoked_at_ms,
            key=wanted,
        )
        connection.execute(insert(api_keys).values(_new_row(stored, by)))
    record(
        connection,
        at_ms=by.now_ms,
        actor=by.actor,
        action="keys.record_verified",
        organisation=organisation,
        subject=key_id,
        before=None if before is None else _audited(before),
        after=None if wanted is None else _audited(get_key(connection, organisation, key_id)),
    )


def change_key(connection: Connection, before: StoredKey, wanted: StoredKey, by: By) -> StoredKey:
    """Give a key another name, team, scope, expiry or right to administrate.

    Raises:
        Conflict: It is revoked.
    """
    _refuse_revoked(before)
    key = wanted.key
    _update(
        connection,
        before,
        name=wanted.name,
        team=key.team,
        models=_sorted(key.models),
        routes=_sorted(key.routes),
        cost_nanos_max=key.cost_nanos_max,
        expires_at_ms=key.expires_at_ms,
        admin=wanted.admin.value,
    )
    return _changed(connection, "keys.change", before, before.organisation, key.id, by)


def rotate_key(connection: Connection, before: StoredKey, mac: str, *, pepper: str, grace_ms: int, by: By) -> StoredKey:
    """Add a second secret's HMAC; the one before works for ``grace_ms`` more, any older one no longer.

    Raises:
        Conflict: The key is revoked.
    """
    _refuse_revoked(before)
    if before.key.verified:
        raise Conflict(
            f"{before.organisation}: {before.key.id} stands for an issuer's tokens and has no secret; rotate there"
        )
    ends_ms = by.now_ms + grace_ms
    kept = [[old, min(expiry or ends_ms, ends_ms)] for old, expiry in before.key.macs[:1]]
    _update(
        connection,
        before,
        macs=[[mac, 0], *kept],
        peppers=[pepper, *before.peppers[:1]],
        rotated_at_ms=by.now_ms,
    )
    return _changed(connection, "keys.rotate", before, before.organisation, before.key.id, by)


def rehash_key(connection: Connection, before: StoredKey, old: str, new: str, *, pepper: str, by: By) -> StoredKey:
    """Replace one HMAC by that of the same secret under another pepper; nothing happens if it is not there."""
    macs = [each for each, _ in before.key.macs]
    if old not in macs or before.key.revoked:
        return before
    place = macs.index(old)
    changed = [[new if each == old else each, expiry] for each, expiry in before.key.macs]
    peppers = [pepper if number == place else name for number, name in enumerate(_named(before))]
    _update(connection, before, macs=changed, peppers=peppers)
    return _changed(connection, "keys.rehash", before, before.organisation, before.key.id, by)


def revoke_key(connection: Connection, before: StoredKey, by: By) -> StoredKey:
    """Refuse the key from now on; of a revoked key nothing changes."""
    if before.key.revoked:
        return before
    _update(connection, before, revoked_at_ms=by.now_ms)
    return _changed(connection, "keys.revoke", before, before.organisation, before.key.id, by)


def _new_row(stored: StoredKey, by: By) -> dict[str, Any]:
    key = stored.key
    return {
        "organisation": stored.organisation,
        "id": key.id,
        "name": stored.name,
        "team": key.team,
        "macs": [list(mac) for mac in key.macs],
        "peppers": list(stored.peppers),
        "models": _sorted(key.models),
        "routes": _sorted(key.routes),
        "cost_nanos_max": key.cost_nanos_max,
        "created_at_ms": by.now_ms,
        "expires_at_ms": key.expires_at_ms,
        "rotated_at_ms": 0,
        "revoked_at_ms": stored.revoked_at_ms,
        "admin": stored.admin.value,
        "creator": stored.creator,
    }


def _refuse_revoked(stored: StoredKey) -> None:
    if stored.key.revoked:
        raise Conflict(f"{stored.organisation}: key {stored.key.id} is revoked; create a new one")


def _named(stored: StoredKey) -> tuple[str, ...]:
    """A pepper's name for each HMAC; "" for those that were made before names were kept."""
    missing = len(stored.key.macs) - len(stored.peppers)
    return stored.peppers + ("",) * missing


def _update(connection: Connection, stored: StoredKey, **values: Any) -> None:
    here = (_row.organisation == stored.organisation) & (_row.id == stored.key.id)
    connection.execute(update(api_keys).where(here).values(**values))


def _changed(
    connection: Connection, action: str, before: StoredKey | None, organisation: str, key_id: str, by: By
) -> StoredKey:
    after = get_key(connection, organisation, key_id)
    record(
        connection,
        at_ms=by.now_ms,
        actor=by.actor,
        action=action,
        organisation=organisation,
        subject=key_id,
        before=None if before is None else _audited(before),
        after=_audited(after),
    )
    return after


def _stored(row: Row[Any]) -> StoredKey:
    stored = StoredKey(
        organisation=row.organisation,
        name=row.name,
        created_at_ms=row.created_at_ms,
        rotated_at_ms=row.rotated_at_ms,
        revoked_at_ms=row.revoked_at_ms,
        admin=Admin(row.admin),
        creator=row.creator,
        peppers=tuple(row.peppers),
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
    return replace(stored, peppers=_named(stored))


def _audited(stored: StoredKey) -> dict[str, Any]:
    """What the audit log keeps of a key: HMACs by when they expire only."""
    key = stored.key
    return {
        "name": stored.name,
        "team": key.team,
        "secrets_expire_at_ms": [expiry for _, expiry in key.macs],
        "peppers": list(stored.peppers),
        "models": _sorted(key.models),
        "routes": _sorted(key.routes),
        "cost_nanos_max": key.cost_nanos_max,
        "expires_at_ms": key.expires_at_ms,
        "revoked_at_ms": stored.revoked_at_ms,
        "admin": stored.admin.value,
        "creator": stored.creator,
    }


def _sorted(names: frozenset[str] | None) -> list[str] | None:
    return None if names is None else sorted(names)
