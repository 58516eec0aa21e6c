"""Keys are stored per organisation, rotated with a grace period, revoked for good, and every change is audited."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from penstock.adapters.sql.audit_log import entries
from penstock.adapters.sql.keys import Keys
from penstock.errors import Conflict, NotFound
from penstock.quota.definitions import Key

NOW_MS = 1_741_000_000_000
KEY = Key(
    id="k1",
    team="search",
    macs=(("aa" * 32, 0),),
    expires_at_ms=NOW_MS + 9,
    models=frozenset({"b", "a"}),
    routes=frozenset({"embeddings"}),
    cost_nanos_max=2**52,
)


@pytest.fixture
def keys(engine: Engine) -> Keys:
    """A table with ``KEY`` for acme."""
    keys = Keys(engine)
    keys.create("acme", KEY, name="for search", now_ms=NOW_MS, actor="ops")
    return keys


def _rotate(keys: Keys, mac: str, now_ms: int, grace_ms: int = 1000) -> tuple[tuple[str, int], ...]:
    return keys.rotate("acme", "k1", mac=mac, grace_ms=grace_ms, now_ms=now_ms, actor="ops").key.macs


def test_a_key_read_back_equals_the_key_created(keys: Keys) -> None:
    bare = Key(id="k2", macs=(("bb" * 32, 5),))
    keys.create("acme", bare, name="", now_ms=NOW_MS, actor="ops")
    assert [stored.key for stored in keys.list("acme")] == [KEY, bare]
    assert keys.get("acme", "k1").key == KEY


def test_a_foreign_key_is_not_found(keys: Keys) -> None:
    with pytest.raises(NotFound, match="other: there is no key k1"):
        keys.get("other", "k1")
    with pytest.raises(NotFound):
        keys.revoke("other", "k1", now_ms=NOW_MS, actor="ops")
    with pytest.raises(NotFound):
        keys.rotate("other", "k1", mac="cc", grace_ms=0, now_ms=NOW_MS, actor="ops")
    assert keys.list("other") == []


def test_an_id_is_taken_once_per_organisation(keys: Keys) -> None:
    with pytest.raises(Conflict, match="there is a key k1 already"):
        keys.create("acme", Key(id="k1"), name="", now_ms=NOW_MS, actor="ops")
    keys.create("other", Key(id="k1"), name="", now_ms=NOW_MS, actor="ops")
    assert len(keys.list()) == 2


def test_a_rotation_lets_the_old_secret_live_for_its_grace(keys: Keys) -> None:
    assert _rotate(keys, "bb", NOW_MS) == (("bb", 0), ("aa" * 32, NOW_MS + 1000))


def test_a_second_rotation_keeps_two_secrets_at_most(keys: Keys) -> None:
    _rotate(keys, "bb", NOW_MS)
    assert _rotate(keys, "cc", NOW_MS + 1) == (("cc", 0), ("bb", NOW_MS + 1001))


def test_a_rotation_never_lengthens_the_life_of_a_secret(keys: Keys) -> None:
    keys.create("acme", Key(id="k2", macs=(("dd", NOW_MS + 5),)), name="", now_ms=NOW_MS, actor="ops")
    rotated = keys.rotate("acme", "k2", mac="ee", grace_ms=1000, now_ms=NOW_MS, actor="ops")
    assert rotated.key.macs == (("ee", 0), ("dd", NOW_MS + 5))


def test_a_revoked_key_stays_revoked(keys: Keys) -> None:
    assert keys.revoke("acme", "k1", now_ms=NOW_MS + 1, actor="ops").key.revoked
    assert keys.revoke("acme", "k1", now_ms=NOW_MS + 2, actor="ops").revoked_at_ms == NOW_MS + 1
    with pytest.raises(Conflict, match="is revoked"):
        _rotate(keys, "bb", NOW_MS + 3)


def test_every_change_raises_the_version(keys: Keys) -> None:
    assert keys.version() == 1
    _rotate(keys, "bb", NOW_MS)
    keys.revoke("acme", "k1", now_ms=NOW_MS, actor="ops")
    assert keys.version() == 3


def test_a_failed_change_leaves_version_and_audit_log_alone(keys: Keys, engine: Engine) -> None:
    with pytest.raises(Conflict):
        keys.create("acme", KEY, name="", now_ms=NOW_MS, actor="ops")
    assert keys.version() == 1
    assert len(entries(engine)) == 1


def test_every_change_is_audited_without_a_mac(keys: Keys, engine: Engine) -> None:
    _rotate(keys, "bb" * 32, NOW_MS + 1)
    keys.revoke("acme", "k1", now_ms=NOW_MS + 2, actor="boss")
    found = entries(engine, "acme")
    assert [(entry.actor, entry.action, entry.subject, entry.at_ms - NOW_MS) for entry in found] == [
        ("boss", "keys.revoke", "k1", 2),
        ("ops", "keys.rotate", "k1", 1),
        ("ops", "keys.create", "k1", 0),
    ]
    assert found[0].before["revoked_at_ms"] == 0
    assert found[0].after["revoked_at_ms"] == NOW_MS + 2
    assert found[2].before is None
    assert "aaaa" not in str(found)
    assert "bbbb" not in str(found)


@pytest.mark.parametrize("statement", ["UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log"])
def test_the_audit_log_refuses_to_be_changed(keys: Keys, engine: Engine, statement: str) -> None:
    assert entries(engine, "acme")
    with engine.connect() as connection, pytest.raises(IntegrityError, match="audit_log is written once"):
        connection.execute(text(statement))
