"""The tables of usage and audit say what is so, and keep held apart from used."""

from __future__ import annotations

from io import StringIO

from rich.console import RenderableType

from penstock.console.audit import audit_table
from penstock.console.screen import screen
from penstock.console.usage import OrganisationUsage, usage_table
from penstock.lanes.audit import Difference
from penstock.lanes.audit_report import AuditReport, OrganisationAudit
from penstock.ports import UsageRow
from penstock.quota.operations import LimitStanding

MONTH = LimitStanding("acme/cost/month", "cost", "window", 300 * 10**9, 2 * 10**9, 5 * 10**8, 297 * 10**9, 24_310, 1)
MINUTE = LimitStanding("acme/tokens/minute", "tokens", "rate", 200_000, 0, 0, 150_000, 0, 1)


def shown(table: RenderableType) -> list[list[str]]:
    """The words of each line."""
    out = StringIO()
    screen(out).print(table)
    return [line.split() for line in out.getvalue().splitlines()]


def usage_of(*rows: UsageRow, held_requests: int | None = None, held_tokens: int | None = None) -> OrganisationUsage:
    return OrganisationUsage(organisation="acme", rows=rows, held_requests=held_requests, held_tokens=held_tokens)


def test_usage_has_a_line_for_each_group_and_a_total() -> None:
    rows = (
        UsageRow(("2025-11-01", "chat-small"), 2, 1_000, 400, 500, 1_500_000_000),
        UsageRow(("2025-11-02", None), 1, 200, 0, 0, 1),
    )
    lines = shown(usage_table([usage_of(*rows)], group_by=("day", "model"), start="a", end="b"))
    assert ["acme", "2025-11-01", "chat-small", "2", "1,000", "400", "500", "1,500", "$1.50"] in lines
    assert ["acme", "2025-11-02", "-", "1", "200", "0", "0", "200", "$0.000000001"] in lines
    assert ["total", "3", "1,200", "400", "500", "1,700", "$1.500000001"] in lines


def test_one_row_needs_no_total() -> None:
    lines = shown(usage_table([usage_of(UsageRow((), 1, 1, 0, 1, 1))], group_by=(), start="a", end="b"))
    assert not [line for line in lines if line[:1] == ["total"]]


def test_held_stands_apart_and_is_in_no_sum() -> None:
    usage = usage_of(UsageRow((), 1, 10, 0, 5, 1), held_requests=2, held_tokens=1_234)
    lines = shown(usage_table([usage], group_by=(), start="a", end="b"))
    assert ["acme", "1", "10", "0", "5", "15", "$0.000000001"] in lines
    assert " ".join(lines[-1]) == "Held now, not charged: acme 1,234 tokens in 2 requests."


def test_held_is_nothing_or_not_known() -> None:
    row = UsageRow((), 1, 10, 0, 5, 1)
    nothing = shown(usage_table([usage_of(row, held_requests=0, held_tokens=0)], group_by=(), start="a", end="b"))
    assert " ".join(nothing[-1]) == "Held now, not charged: nothing."
    unknown = shown(usage_table([usage_of(row)], group_by=(), start="a", end="b"))
    assert " ".join(unknown[-1]).startswith("Held now: not known")


def report(*differences: Difference) -> AuditReport:
    found = OrganisationAudit(
        organisation="acme",
        at_ms=1,
        limits=(MONTH, MINUTE),
        holds=3,
        tokens_held=900,
        unwritten=0,
        differences=differences,
    )
    return AuditReport(source="service", organisations=(found,))


def test_an_audit_without_differences_says_so() -> None:
    lines = shown(audit_table(report()))
    assert ["acme/cost/month", "$300.00", "$2.00", "$0.50", "$297.00", "yes"] in lines
    assert ["acme/tokens/minute", "200,000", "-", "-", "150,000", "yes"] in lines
    assert " ".join(lines[-1]) == "2 limits, 3 open reservations, acme: counters, open holds and ledger agree"


def test_a_difference_is_told_with_its_reservations() -> None:
    lines = shown(audit_table(report(Difference("acme/cost/month", "used", 24_310, 5, 3, ("r-1", "r-2")))))
    assert ["acme/cost/month", "$300.00", "$2.00", "$0.50", "$297.00", "no"] in lines
    told = " ".join(" ".join(line) for line in lines)
    assert "acme/cost/month: used is 5, the ledger for window 24310 says 3, difference 2; look at r-1, r-2" in told
    assert told.endswith("1 differences")
