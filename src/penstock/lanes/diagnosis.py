"""What ``penstock doctor`` found: each finding with what to type, and what it was not possible to look at.

Apart from what finds it, so that it can travel as JSON and be shown without any service at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import msgspec


class Severity(IntEnum):
    """How bad it is; also the exit code of ``penstock doctor``."""

    WARNING = 1
    WRONG = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that should be otherwise.

    Args:
        check: Which check found it: "redis", "queues".
        what: What is so, with its figures.
        fix: What to type, or to change.
    """

    check: str
    severity: Severity
    what: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unseen:
    """A check that could not be made, and why. It says nothing about what it would have found."""

    check: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All that was looked at.

    Args:
        mode: "cluster" or "embedded".
        looked: The checks that were made, in order of importance.
        findings: The worst first, then in the order of the checks.
    """

    mode: str
    looked: Sequence[str]
    findings: Sequence[Finding]
    unseen: Sequence[Unseen]

    @property
    def exit_code(self) -> int:
        """0: well; 1: only warnings, or something could not be looked at; 2: something is wrong."""
        worst = max((finding.severity for finding in self.findings), default=0)
        return max(int(worst), int(bool(self.unseen)))

    def encoded(self) -> bytes:
        """As JSON, severities by name."""
        return msgspec.json.encode(
            {
                "mode": self.mode,
                "exit_code": self.exit_code,
                "findings": [
                    {"check": each.check, "severity": each.severity.name.lower(), "what": each.what, "fix": each.fix}
                    for each in self.findings
                ],
                "unseen": self.unseen,
                "looked": self.looked,
            }
        )


def wrong(check: str, what: str, fix: str) -> Finding:
    """Something does not work, or money is counted wrongly."""
    return Finding(check=check, severity=Severity.WRONG, what=what, fix=fix)


def warning(check: str, what: str, fix: str) -> Finding:
    """Something works, and will not for ever."""
    return Finding(check=check, severity=Severity.WARNING, what=what, fix=fix)


def in_order(findings: Sequence[Finding], checks: Sequence[str]) -> list[Finding]:
    """The worst first, then as the checks are ordered; those of one check as they were found.

    Example:
        >>> late, bad = warning("outbox", "a", "b"), wrong("drift", "c", "d")
        >>> [each.check for each in in_order([late, bad], ["outbox", "drift"])]
        ['drift', 'outbox']
    """
    return sorted(findings, key=lambda each: (-each.severity, checks.index(each.check)))
