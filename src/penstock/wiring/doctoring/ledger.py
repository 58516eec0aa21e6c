"""Checks of what is counted: the quota's state is there, governed as the file says, and equal to the ledger."""

from __future__ import annotations

from penstock.adapters.sql.definition_rows import organisations_without_keys
from penstock.config.settings import ManagedBy
from penstock.errors import StoreUnavailable
from penstock.lanes.audit_report import AuditReport
from penstock.lanes.diagnosis import Finding, warning, wrong
from penstock.lanes.inspecting import OVERDUE_MS, inspect, overdue
from penstock.quota.operations import NotReady
from penstock.wiring.auditing import audit_database
from penstock.wiring.auditing_cluster import audit_from_outside
from penstock.wiring.doctoring.patient import Patient
from penstock.wiring.governing import in_file
from penstock.wiring.quota import open_quota
from penstock.wiring.running import ask
from penstock.wiring.stores import Role

SHOWN = 5


async def check_definitions(patient: Patient) -> list[Finding]:
    """Organisations that the file owns have the limits that it gives them."""
    described = in_file(patient.configuration)
    found = await patient.ask_database(organisations_without_keys)
    fix = "penstock setup" if patient.configuration.stores is not None else "start `penstock serve` again"
    missing = sorted(described.keys() - found.keys())
    findings = []
    if missing:
        what = f"the configuration names organisations that the database does not have: {', '.join(missing[:SHOWN])}"
        findings.append(wrong("definitions", what, fix))
    for name, each in described.items():
        is_owned = patient.configuration.organisations[name].managed_by is ManagedBy.FILE
        if is_owned and name in found and set(found[name].limits) != set(each.limits):
            what = f"{name} is governed by other limits than the configuration gives it"
            findings.append(warning("definitions", what, fix))
    return findings


async def check_organisations(patient: Patient) -> list[Finding]:
    """Each organisation's quota state is there, and no hold is kept past its lease."""
    names = await patient.ask_database(organisations_without_keys)
    lost, rebuilding, unswept = [], [], 0
    async with open_quota(patient.configuration, Role.API) as quota:
        for name in sorted(names):
            read = await inspect(quota, name, now_ms=patient.clock.now_ms())
            if isinstance(read, NotReady):
                lost.append(name)
                continue
            found = read.inspected
            if found.epoch == 0:
                rebuilding.append(name)
            unswept += overdue(found)
    findings = []
    if lost:
        what = f"Redis has no quota state of {', '.join(lost[:SHOWN])}, so they are answered 503"
        findings.append(wrong("organisations", what, "start `penstock keeper`, or `penstock rebuild` without one"))
    if rebuilding:
        what = f"{', '.join(rebuilding[:SHOWN])}: rebuilt, and waiting for running requests to claim their holds"
        findings.append(warning("organisations", what, "nothing to do: admissions begin within a minute"))
    if unswept:
        what = f"{unswept} holds are more than {OVERDUE_MS // 1000} s past their lease, so nobody sweeps"
        findings.append(wrong("organisations", what, "start `penstock keeper`; if one runs, see its log"))
    return findings


async def check_drift(patient: Patient) -> list[Finding]:
    """Counters, open holds and ledger agree."""
    if patient.configuration.stores is not None:
        report = await audit_from_outside(patient.configuration)
    elif (answer := ask(patient.places, "/audit")) is not None:
        report = AuditReport.decode(answer)
    else:
        report = audit_database(patient.places, in_file(patient.configuration), now_ms=patient.clock.now_ms())
    findings = []
    for each in report.organisations:
        findings += [wrong("drift", found.message, f"penstock audit {each.organisation}") for found in each.differences]
    return findings


async def check_service(patient: Patient) -> list[Finding]:
    """The embedded default's service runs, and is ready."""
    try:
        answer = ask(patient.places, "/health/ready")
    except StoreUnavailable as error:
        return [wrong("service", error.message.rpartition("; ")[0], "see its log")]
    if answer is None:
        what = f"no service runs on {patient.places.data}"
        return [warning("service", what, f"penstock serve --data {patient.places.data}")]
    return []
