"""``penstock audit``: exit codes that cron can rely on, and differences with names."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from penstock.adapters.embedded.restarting import open_store
from penstock.adapters.sql.database import open_engine
from penstock.config import definitions, load
from penstock.lanes.audit_report import AuditReport
from penstock.wiring.auditing import audit_service
from penstock.wiring.places import Places
from tests.cli.conftest import Run
from tests.wiring.conftest import DEFINITIONS, MONTH, Operations, announced, now_ms, serve, tamper


@pytest.fixture
def places(data: Path) -> Places:
    return Places(data)


@pytest.fixture
def live(places: Places, configuration: Path) -> AuditReport:
    """What a service said of itself before it stopped: one request charged, one open."""

    async def run() -> AuditReport:
        governed = {name: definitions(load([configuration]), name) for name in ("acme", "globex")}
        governed["acme"] = DEFINITIONS
        async with open_store(places.database, governed, version=1, now_ms=now_ms) as store:
            await serve(store, places)
            engine = open_engine(places.database)
            report = await audit_service(store, engine, now_ms=now_ms())
            engine.dispose()
            return report

    places.create()
    return asyncio.run(run())


@pytest.fixture
def operations(places: Places) -> Iterator[Operations]:
    with announced(places) as server:
        yield server


@pytest.mark.usefixtures("live")
def test_a_clean_database_exits_0(run: Run) -> None:
    outcome = run("audit")
    assert (outcome.code, outcome.err) == (0, "")
    assert "no service runs" in outcome.out
    assert "counters, open holds and ledger agree" in outcome.out


@pytest.mark.usefixtures("live")
def test_differences_exit_1_and_name_the_reservation(run: Run, places: Places) -> None:
    tamper(places, "UPDATE ledger SET tokens = tokens + 1")
    outcome = run("audit", "acme", "--json")
    assert outcome.code == 1
    report = AuditReport.decode(outcome.out.encode())
    engine = open_engine(places.database)
    with engine.connect() as connection:
        charged = connection.exec_driver_sql("SELECT reservation FROM ledger").scalar_one()
    engine.dispose()
    (difference,) = report.organisations[0].differences
    assert (difference.limit, difference.reservations) == (MONTH, (charged,))
    assert charged in run("audit", "acme").out


def test_without_a_database_it_exits_2(run: Run) -> None:
    outcome = run("audit")
    assert (outcome.code, outcome.out) == (2, "")
    assert "there is no database" in outcome.err


@pytest.mark.usefixtures("live")
def test_an_unknown_organisation_exits_2(run: Run) -> None:
    outcome = run("audit", "acne")
    assert outcome.code == 2
    assert "did you mean `acme`?" in outcome.err


@pytest.mark.usefixtures("live")
def test_a_service_that_does_not_answer_exits_2(run: Run, operations: Operations) -> None:
    outcome = run("audit")
    assert outcome.code == 2
    assert "answered 503" in outcome.err


def test_a_wrong_configuration_exits_2(run: Run, configuration: Path) -> None:
    configuration.write_text("modles: {}")
    assert run("audit").code == 2


def test_a_running_service_is_asked(run: Run, live: AuditReport, operations: Operations) -> None:
    operations.body = msgspec.json.encode(live)
    outcome = run("audit", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["source"] == "service"
