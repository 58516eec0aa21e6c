"""API keys as administrators change them, in a transaction of the caller's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, select

from penstock.adapters.sql import key_rows
from penstock.adapters.sql.audit_log import record
from penstock.adapters.sql.definition_tables import organisations, teams
from penstock.errors import InvalidRequest, NotFound
from penstock.lanes.administering import By, StoredKey, check_tag


class KeyRecords:
    """The part of ``penstock.lanes.administering.Records`` that is about keys."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def keys(self, organisation: str, *, after: tuple[int, str], count_max: int) -> Sequence[StoredKey]:
        """By age, revoked ones too."""
        self._there(organisation)
        return key_rows.page_of_keys(self._connection, organisation, after=after, count_max=count_max)

    def key(self, organisation: str, key: str) -> StoredKey:
        """One."""
        self._there(organisation)
        try:
            return key_rows.get_key(self._connection, organisation, key)
        except NotFound:
            raise NotFound("there is no such key, or it is not yours", code="key_not_found") from None

    def effective(self, organisation: str, key: str) -> StoredKey | None:
        """One as it counts; none of an organisation that was removed."""
        try:
            self._there(organisation)
        except NotFound:
            return None
        return key_rows.effective_key(self._connection, organisation, key)

    def create_key(self, stored: StoredKey, by: By) -> StoredKey:
        """Add one."""
        self._there(stored.organisation)
        self._check_team(stored)
        return key_rows.add_key(self._connection, stored, by)

    def change_key(self, organisation: str, key: str, fields: dict[str, Any], by: By) -> StoredKey:
        """Set some of its fields."""
        before = self.key(organisation, key)
        check_tag(before, by)
        own = {name: value for name, value in fields.items() if name in ("name", "admin")}
        quota = {name: value for name, value in fields.items() if name not in own}
        wanted = replace(before, key=replace(before.key, **quota), **own)
        self._check_team(wanted)
        return key_rows.change_key(self._connection, before, wanted, by)

    def rotate_key(self, organisation: str, key: str, mac: str, *, pepper: str, grace_ms: int, by: By) -> StoredKey:
        """A second secret."""
        before = self.key(organisation, key)
        check_tag(before, by)
        return key_rows.rotate_key(self._connection, before, mac, pepper=pepper, grace_ms=grace_ms, by=by)

    def revoke_key(self, organisation: str, key: str, by: By) -> StoredKey:
        """For good."""
        before = self.key(organisation, key)
        check_tag(before, by)
        return key_rows.revoke_key(self._connection, before, by)

    def _there(self, organisation: str) -> None:
        row = organisations.c
        statement = select(row.name).where(row.name == organisation, row.removed_at_ms == 0)
        if self._connection.execute(statement).first() is None:
            raise NotFound("there is no such organisation, or it is not yours", code="organisation_not_found")

    def _check_team(self, stored: StoredKey) -> None:
        team = stored.key.team
        if team is None:
            return
        row = teams.c
        known = list(
            self._connection.execute(select(row.name).where(row.organisation == stored.organisation)).scalars()
        )
        if team not in known:
            raise InvalidRequest(
                f"team: {team} is no team of {stored.organisation}; it has {', '.join(known) or 'none'}", param="team"
            )

    def _audit(self, by: By, action: str, organisation: str | None, subject: str, before: Any, after: Any) -> None:
        record(
            self._connection,
            at_ms=by.now_ms,
            actor=by.actor,
            action=action,
            organisation=organisation,
            subject=subject,
            before=before,
            after=after,
        )
