"""Who administrates: the key as the database has it at this moment, and how far its right reaches."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import Forbidden, NotFound, Unauthenticated
from penstock.lanes.administering import Admin, By, Records, StoredKey
from penstock.lanes.credentials import Credential
from penstock.lanes.scopes import excess


@dataclass(frozen=True, slots=True)
class Administrator:
    """A key that may administrate, as it counts now."""

    stored: StoredKey

    @property
    def is_platform(self) -> bool:
        """It may do everything."""
        return self.stored.admin is Admin.PLATFORM

    def check_platform(self) -> None:
        """Refuse those of an organisation.

        Raises:
            Forbidden: It may administrate its own organisation only.
        """
        if not self.is_platform:
            raise Forbidden("this takes a key whose admin is platform; yours is of an organisation")

    def check_reach(self, organisation: str) -> None:
        """Hide other organisations.

        Raises:
            NotFound: It may not see this one.
        """
        if not self.is_platform and organisation != self.stored.organisation:
            raise NotFound("there is no such organisation, or it is not yours", code="organisation_not_found")

    def check_width(self, wanted: StoredKey) -> None:
        """Nobody makes a key that is wider than their own.

        Raises:
            Forbidden: This one would be.
        """
        reason = excess(wanted, self.stored)
        if reason is not None:
            raise Forbidden(f"the key would be wider than yours: {reason}; leave that out, or ask somebody who has it")

    def check_rank(self, other: StoredKey) -> None:
        """Nobody revokes a key with a greater right to administrate.

        Raises:
            Forbidden: It has one.
        """
        if other.admin.rank > self.stored.admin.rank:
            raise Forbidden(f"key {other.key.id} administrates more than yours; ask somebody of the platform")

    def by(self, now_ms: int, tag: str | None = None) -> By:
        """As whom the audit log knows it."""
        return By(actor=f"key:{self.stored.path}", now_ms=now_ms, tag=tag)


def administrator(records: Records, credential: Credential, *, now_ms: int) -> Administrator:
    """Who shows this credential, which was found right a moment ago.

    Raises:
        Unauthenticated: The key is not there any more, or not in force.
        Forbidden: It may not administrate.
    """
    stored = records.effective(credential.organisation, credential.key)
    if stored is None:
        raise Forbidden("this key may not administrate; make one with `penstock keys create ORGANISATION --admin`")
    expires_at_ms = stored.key.expires_at_ms
    if stored.key.revoked or (expires_at_ms and expires_at_ms <= now_ms):
        raise Unauthenticated("the key is not in force")
    if stored.admin is Admin.NOTHING:
        raise Forbidden("this key may not administrate; make one with `penstock keys create ORGANISATION --admin`")
    return Administrator(stored)
