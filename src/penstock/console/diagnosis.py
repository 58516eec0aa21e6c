"""What the doctor found, for people: the worst first, and under each finding what to type."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from penstock.lanes.diagnosis import Diagnosis, Finding, Severity

_STYLES = {Severity.WRONG: ("wrong  ", "bold red"), Severity.WARNING: ("warning", "bold yellow")}
_INDENT = 8


def diagnosis_text(diagnosis: Diagnosis) -> Group:
    """Every finding, what could not be looked at, and the verdict as the last line."""
    parts: list[RenderableType] = []
    for finding in diagnosis.findings:
        parts += _finding(finding)
    for unseen in diagnosis.unseen:
        parts += [Text.assemble(("unseen ", "bold"), f" {unseen.check}: {unseen.why}")]
    return Group(*parts, _verdict(diagnosis))


def _finding(finding: Finding) -> list[RenderableType]:
    word, style = _STYLES[finding.severity]
    return [
        Text.assemble((word, style), f" {finding.check}: {finding.what}"),
        Padding(Text(finding.fix, style="dim"), (0, 0, 0, _INDENT)),
    ]


def _verdict(diagnosis: Diagnosis) -> Text:
    counts = {severity: sum(each.severity is severity for each in diagnosis.findings) for severity in Severity}
    told = f"{diagnosis.mode}, {len(diagnosis.looked)} checks: "
    if not diagnosis.findings and not diagnosis.unseen:
        return Text(f"{told}all is well", style="bold green")
    found = [f"{counts[Severity.WRONG]} wrong", f"{counts[Severity.WARNING]} warnings"]
    if diagnosis.unseen:
        found.append(f"{len(diagnosis.unseen)} not possible")
    return Text(told + ", ".join(found), style="bold red" if counts[Severity.WRONG] else "bold yellow")
