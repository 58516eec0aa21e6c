"""``penstock doctor`` on the embedded default, and on a configuration that is none."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from penstock.adapters.sql.database import open_engine, scrub
from penstock.config import load
from penstock.lanes.diagnosis import Severity
from penstock.wiring.clock import SystemClock
from penstock.wiring.doctoring.certificates import check_certificates
from penstock.wiring.doctoring.files import check_spool
from penstock.wiring.doctoring.patient import Patient
from penstock.wiring.places import Places
from tests.cli.conftest import Run
from tests.cli.test_usage import Charged, charged
from tests.wiring.conftest import announced

__all__ = ["charged"]


def findings(run: Run, *, code: int) -> dict[str, Any]:
    """By check, each the last of its kind."""
    outcome = run("doctor", "--json")
    assert outcome.code == code, outcome.out + outcome.err
    return {each["check"]: each for each in json.loads(outcome.out)["findings"]}


@pytest.fixture
def patient(configuration: Path, data: Path) -> Patient:
    return Patient(
        configuration=load([configuration]), places=Places(data), environment=os.environ, clock=SystemClock()
    )


def test_a_service_that_does_not_run_is_a_warning(run: Run, charged: Charged, data: Path) -> None:
    data.chmod(0o755)  # what `penstock serve` makes is its owner's alone
    (data / "penstock.db").chmod(0o600)
    found = findings(run, code=2)
    assert found["service"]["fix"] == f"penstock serve --data {data}"
    assert "does not have: acme, globex" in found["definitions"]["what"]
    assert found.keys() == {"service", "definitions"}


def test_a_service_that_is_not_ready_is_wrong(run: Run, charged: Charged, data: Path) -> None:
    with announced(Places(data)):
        found = findings(run, code=2)
    assert "answered 503 to /health/ready" in found["service"]["what"]


def test_without_a_database_nothing_is_guessed(run: Run) -> None:
    outcome = run("doctor", "--json")
    told = json.loads(outcome.out)
    assert outcome.code == 1
    assert {each["check"] for each in told["unseen"]} == {"database", "drift", "schema", "definitions"}
    assert "start `penstock serve` once" in run("doctor").out


def test_a_damaged_database_is_found(run: Run, charged: Charged, data: Path) -> None:
    charged()
    engine = open_engine(data / "penstock.db")
    scrub(engine)  # out of the log of changes, into the file
    engine.dispose()
    with (data / "penstock.db").open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096 * 4)
    assert findings(run, code=2)["database"]["severity"] == "wrong"


def test_a_secret_that_others_may_read_is_found(run: Run, charged: Charged, data: Path, configuration: Path) -> None:
    data.chmod(0o700)
    secret = configuration.parent / "pepper"
    secret.write_text("p" * 64)
    secret.chmod(0o644)
    configuration.write_text(configuration.read_text() + f"auth: {{pepper: {{file: {secret}}}}}\n")
    assert findings(run, code=2)["secrets"]["fix"] == f"chmod 600 {secret}"
    secret.chmod(0o600)
    assert "secrets" not in findings(run, code=2)
    secret.unlink()
    assert "does not start here" in findings(run, code=2)["secrets"]["what"]


def test_a_configuration_that_cannot_be_read_is_the_one_finding(run: Run, configuration: Path) -> None:
    configuration.write_text("models: 1\n")
    found = findings(run, code=2)
    assert found.keys() == {"configuration"}


def test_ends_that_wait_in_the_spool_are_found(patient: Patient, data: Path) -> None:
    data.mkdir()
    spool = patient.places.spool
    spool.write_text("")
    assert asyncio.run(check_spool(patient)) == []
    spool.write_text("{}\n{}\n")
    (finding,) = asyncio.run(check_spool(patient))
    assert finding.severity is Severity.WARNING
    assert "2 ends of requests wait" in finding.what
    os.utime(spool, (1, 1))
    (finding,) = asyncio.run(check_spool(patient))
    assert finding.severity is Severity.WRONG


def test_certificates_that_end_soon_or_name_another_host_are_found(configuration: Path, data: Path) -> None:
    authority = trustme.CA()
    ca = configuration.parent / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    soon = authority.issue_cert("localhost", not_after=datetime.now(UTC) + timedelta(days=10))

    def named(url: str) -> Patient:
        upstream = f"{{url: '{url}', ca: {{file: {ca}}}}}"
        configuration.write_text(f"models: {{m: {{upstream: {upstream}, context: 4096}}}}\n")
        return Patient(configuration=load([configuration]), places=Places(data), environment={}, clock=SystemClock())

    async def told(host: str) -> list[Any]:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        soon.configure_cert(context)
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
        url = f"https://{host}:{server.sockets[0].getsockname()[1]}"
        found = await check_certificates(named(url))
        server.close()
        return found

    (ending,) = asyncio.run(told("localhost"))
    assert ending.severity is Severity.WARNING
    assert "in 9 days" in ending.what
    (wrong_name,) = asyncio.run(told("127.0.0.1"))
    assert wrong_name.severity is Severity.WRONG
    assert "models.m.upstream" in wrong_name.what
    ca.write_text("not PEM")
    assert any("holds no certificates" in each.what for each in asyncio.run(told("localhost")))
