"""What administrators see and change while the service runs: organisations, teams, keys, limits, prices, the audit log.

Apart from whoever shows it and whoever stores it. A record's tag is a digest of what it says: a change that names the
tag it was made from is refused once somebody else has changed the record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final, Protocol, TypeVar

import msgspec

from penstock.errors import Outdated
from penstock.quota.definitions import Key, Limit, Overrun, Price, ReservePolicy
from penstock.quota.limits import limit_id

T = TypeVar("T")
ANY_TAG: Final = "*"
"""Whatever the record says now."""


class Admin(StrEnum):
    """What a key may administrate; each includes the ones before."""

    NOTHING = ""
    ORGANISATION = "organisation"  # its own organisation's teams and keys, and the limits of these
    PLATFORM = "platform"  # everything

    @property
    def rank(self) -> int:
        """For comparisons."""
        return tuple(Admin).index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A key with what only people want to know of it. Times are Unix milliseconds, 0 for never.

    Args:
        admin: What it may administrate, beside what its routes allow.
        creator: ``<organisation>/<key>`` of the key that made it; None if the command line did.
        peppers: Names of the peppers that the key's HMACs were made with, in their order; "" for one not known.
    """

    organisation: str
    name: str
    created_at_ms: int
    rotated_at_ms: int
    revoked_at_ms: int
    key: Key
    admin: Admin = Admin.NOTHING
    creator: str | None = None
    peppers: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """``<organisation>/<key>``: what those that it makes call their creator."""
        return f"{self.organisation}/{self.key.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganisationRecord:
    """An organisation. ``results_ms`` and ``answers_ms`` are how long these are kept; None: as configured for all."""

    name: str
    managed_by: str
    reserve: ReservePolicy
    overrun: Overrun
    created_at_ms: int
    results_ms: int | None = None
    answers_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRecord:
    """A limit of an organisation, or of something in it."""

    organisation: str
    limit: Limit

    @property
    def id(self) -> str:
        """Its identity, as everywhere."""
        return limit_id(self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceRecord:
    """What a model costs from ``since_ms`` on. Until then it is not in force."""

    model: str
    since_ms: int
    price: Price
    in_force: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One change. ``before`` is None for something new, ``after`` for something removed; neither holds a secret."""

    id: int
    at_ms: int
    actor: str
    action: str
    organisation: str | None
    subject: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditQuery:
    """Which entries, newest first. ``before_id`` is the last one of the page before."""

    organisation: str | None = None
    actor: str | None = None
    action: str | None = None
    subject: str | None = None
    from_ms: int | None = None
    until_ms: int | None = None
    before_id: int | None = None
    count_max: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """What an erasure removed, and what is left.

    Args:
        prompts: Of jobs that waited here.
        results: Answers and errors of jobs.
        answers: Kept for idempotency keys.
        cancelled: Jobs that had not ended, and are told to stop.
        stays: What is left, and why, one sentence each.
    """

    organisation: str
    job: str | None
    prompts: int = 0
    results: int = 0
    answers: int = 0
    cancelled: int = 0
    stays: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class By:
    """Who makes a change, when, and from which state of the record.

    Args:
        tag: Of the record as it was seen; None where none is needed.
    """

    actor: str
    now_ms: int
    tag: str | None = None


def tag_of(record: Any) -> str:
    """A digest of what a record says: 16 hexadecimal digits.

    Example:
        >>> len(tag_of(PriceRecord(model="m", since_ms=0, price=Price(), in_force=True)))
        16
    """
    text = msgspec.json.encode(asdict(record), order="deterministic")
    return sha256(text).hexdigest()[:16]


def check_tag(record: Any, by: By) -> None:
    """Refuse a change that was made from another state of the record.

    Raises:
        Outdated: Somebody else changed it since.
    """
    if by.tag not in (None, ANY_TAG, tag_of(record)):
        raise Outdated(f"somebody else changed it since (it is {tag_of(record)} now); read it again, and then decide")


class Records(Protocol):
    """The records, within one transaction. What an organisation does not have raises ``NotFound``.

    Changes raise ``Conflict`` where the configuration file owns the record, ``Outdated`` where ``by.tag`` is not its
    tag, and ``InvalidRequest`` where the quota could not work with the result.
    """

    def organisations(self, *, after: str, count_max: int) -> Sequence[OrganisationRecord]:
        """By name, from the first behind ``after``."""
        ...

    def organisation(self, name: str) -> OrganisationRecord:
        """One."""
        ...

    def create_organisation(self, record: OrganisationRecord, limits: Sequence[Limit], by: By) -> OrganisationRecord:
        """Add one."""
        ...

    def change_organisation(self, name: str, fields: dict[str, Any], by: By) -> OrganisationRecord:
        """Set some of its fields."""
        ...

    def remove_organisation(self, name: str, by: By) -> None:
        """It has nothing left that it may use; what it used stays in the ledger."""
        ...

    def teams(self, organisation: str) -> Sequence[str]:
        """By name."""
        ...

    def create_team(self, organisation: str, team: str, by: By) -> str:
        """Add one."""
        ...

    def remove_team(self, organisation: str, team: str, by: By) -> None:
        """With its limits. Refused while keys in force belong to it."""
        ...

    def keys(self, organisation: str, *, after: tuple[int, str], count_max: int) -> Sequence[StoredKey]:
        """By age, from the first behind (created_at_ms, id)."""
        ...

    def key(self, organisation: str, key: str) -> StoredKey:
        """One."""
        ...

    def effective(self, organisation: str, key: str) -> StoredKey | None:
        """One as it counts: no wider than its creator is now. None if it is not there."""
        ...

    def create_key(self, stored: StoredKey, by: By) -> StoredKey:
        """Add one."""
        ...

    def change_key(self, organisation: str, key: str, fields: dict[str, Any], by: By) -> StoredKey:
        """Set some of its fields."""
        ...

    def rotate_key(self, organisation: str, key: str, mac: str, *, pepper: str, grace_ms: int, by: By) -> StoredKey:
        """Give it a second secret; the one before works for ``grace_ms`` more."""
        ...

    def revoke_key(self, organisation: str, key: str, by: By) -> StoredKey:
        """Refuse it for good."""
        ...

    def limits(self, organisation: str) -> Sequence[LimitRecord]:
        """By id."""
        ...

    def limit(self, organisation: str, limit: str) -> LimitRecord:
        """One."""
        ...

    def create_limit(self, record: LimitRecord, by: By) -> LimitRecord:
        """Add one."""
        ...

    def change_cap(self, organisation: str, limit: str, cap: int, by: By) -> LimitRecord:
        """All that can change of a limit."""
        ...

    def remove_limit(self, organisation: str, limit: str, by: By) -> None:
        """It holds nobody back any more; its counter stays, in case that it returns."""
        ...

    def prices(self, model: str | None, *, after: tuple[str, int], count_max: int) -> Sequence[PriceRecord]:
        """The history, by model and time, from the first behind (model, since_ms)."""
        ...

    def create_price(self, record: PriceRecord, by: By) -> PriceRecord:
        """From its moment on; what is held already keeps its price."""
        ...

    def audit(self, query: AuditQuery) -> Sequence[AuditRecord]:
        """The audit log."""
        ...


class Administration(Protocol):
    """The records, for those who wait. Both methods raise what ``Records`` does, and ``StoreUnavailable``."""

    async def read(self, ask: Callable[[Records], T]) -> T:
        """Look at them."""
        ...

    async def change(self, do: Callable[[Records], T]) -> T:
        """Change them, all or nothing; the quota knows it when this returns, other processes within two seconds."""
        ...

    async def erase(self, organisation: str, job: str | None, by: By) -> Erased:
        """Remove stored prompts, results and answers, of one job or of all."""
        ...
