"""What an audit found, as it travels from the service to whoever asked, and as it is shown."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from penstock.errors import StoreUnavailable
from penstock.lanes.audit import Difference
from penstock.quota.operations import LimitStanding


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganisationAudit:
    """One organisation at one instant.

    Args:
        at_ms: The instant, Unix milliseconds.
        limits: Its counters.
        holds: Open reservations; ``tokens_held`` is what they hold together.
        unwritten: Events that were on their way to the ledger; they count as written.
        differences: Empty if counters, holds and ledger agree.
    """

    organisation: str
    at_ms: int
    limits: tuple[LimitStanding, ...]
    holds: int
    tokens_held: int
    unwritten: int
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """All organisations.

    Args:
        source: "service", its live counters; or "database", what a restart would rebuild.
    """

    source: str
    organisations: tuple[OrganisationAudit, ...]

    @property
    def differences(self) -> int:
        """How many, of all organisations."""
        return sum(len(each.differences) for each in self.organisations)

    def only(self, organisation: str) -> AuditReport:
        """The part of one organisation; empty if it is not there."""
        mine = tuple(each for each in self.organisations if each.organisation == organisation)
        return AuditReport(source=self.source, organisations=mine)

    @classmethod
    def decode(cls, answer: bytes) -> AuditReport:
        """Read what the operations port answered.

        Raises:
            StoreUnavailable: It is no report: another version answers there, or another program.
        """
        try:
            return msgspec.json.decode(answer, type=cls)
        except msgspec.DecodeError as error:
            raise StoreUnavailable(
                f"the service's answer is no audit report: {error}; is it of the same version?"
            ) from error
