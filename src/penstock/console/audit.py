"""An audit as a table: every limit with its counters, and every difference below."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from penstock.console.amounts import dollars, whole
from penstock.lanes.audit_report import AuditReport, OrganisationAudit
from penstock.quota.definitions import BUCKETS, Kind, Metric
from penstock.quota.operations import LimitStanding

_SOURCES = {
    "service": "live counters of the running service",
    "database": "no service runs; counters as a restart would rebuild them",
}


def audit_table(report: AuditReport) -> Group:
    """The whole report; the last line says the verdict."""
    title = Text.assemble(("Audit", "bold"), (f"  {_SOURCES.get(report.source, report.source)}", "dim"))
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("limit", overflow="fold")
    for heading in ("cap", "used", "held", "available"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("agrees")
    for organisation in report.organisations:
        wrong = {difference.limit for difference in organisation.differences}
        for standing in organisation.limits:
            verdict = Text("no", style="bold red") if standing.limit in wrong else Text("yes", style="green")
            table.add_row(standing.limit, *_amounts(standing), verdict)
    parts: list[RenderableType] = [table, Text()]
    for organisation in report.organisations:
        parts += [Text(difference.message, style="red") for difference in organisation.differences]
    return Group(*parts, _verdict(report))


def _amounts(standing: LimitStanding) -> tuple[str, ...]:
    show = dollars if standing.metric == Metric.COST else whole
    is_rate = standing.kind in BUCKETS  # a bucket has neither used nor held
    used = "-" if is_rate or standing.kind in (Kind.CONCURRENCY, Kind.ENQUEUED) else show(standing.used)
    return show(standing.cap), used, "-" if is_rate else show(standing.held), show(standing.available)


def _verdict(report: AuditReport) -> Text:
    limits = sum(len(each.limits) for each in report.organisations)
    holds = sum(each.holds for each in report.organisations)
    looked = f"{whole(limits)} limits, {whole(holds)} open reservations, {_organisations(report.organisations)}"
    if report.differences:
        return Text(f"{looked}: {whole(report.differences)} differences", style="bold red")
    return Text(f"{looked}: counters, open holds and ledger agree", style="bold green")


def _organisations(found: tuple[OrganisationAudit, ...]) -> str:
    return found[0].organisation if len(found) == 1 else f"{len(found)} organisations"
