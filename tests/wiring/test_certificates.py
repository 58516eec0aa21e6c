"""What the doctor says of the certificates that we show to stores; nobody listens, so only files are looked at."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
import yaml

from penstock.config import load
from penstock.errors import ConfigurationError
from penstock.lanes.diagnosis import Finding, Severity
from penstock.wiring.clock import SystemClock
from penstock.wiring.doctoring.certificates import check_certificates
from penstock.wiring.doctoring.patient import Patient
from penstock.wiring.doctoring.references import certificates_in
from penstock.wiring.places import Places
from penstock.wiring.stores import Service, address
from tests.system.services import free_port


class Desk:
    """An authority's two certificates, and a configuration that shows one of them to Redis."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(str(folder / "ca.pem"))

    def issue(self, name: str, *, days: int) -> None:
        issued = self.authority.issue_cert("penstock.example", not_after=datetime.now(UTC) + timedelta(days=days))
        issued.cert_chain_pems[0].write_to_path(str(self.folder / f"{name}.pem"))
        issued.private_key_pem.write_to_path(str(self.folder / f"{name}.key"))

    def patient(self, certificate: str, key: str) -> Patient:
        names = {"ca": "ca.pem", "certificate": certificate, "key": key}
        files = {part: {"file": str(self.folder / name)} for part, name in names.items()}
        stores = {
            "redis": {"url": f"rediss://localhost:{free_port()}", **files},
            "postgresql": {"url": "postgresql://localhost/penstock"},
            "rabbitmq": {"url": "amqp://localhost"},
        }
        described = {"models": {"m": {"upstream": "http://m", "context": 4096}}, "stores": stores}
        file = self.folder / "penstock.yaml"
        file.write_text(yaml.safe_dump(described))
        return Patient(configuration=load([file]), places=Places(self.folder), environment={}, clock=SystemClock())

    def examined(self, certificate: str = "own.pem", key: str = "own.key") -> list[Finding]:
        return asyncio.run(check_certificates(self.patient(certificate, key)))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    made.issue("own", days=90)
    return made


def test_a_certificate_with_its_key_and_a_long_life_is_healthy(desk: Desk) -> None:
    assert desk.examined() == []


def test_a_certificate_of_ours_that_ends_soon_is_a_warning_and_an_ended_one_is_wrong(desk: Desk) -> None:
    desk.issue("own", days=10)
    (soon,) = desk.examined()
    assert (soon.severity, "stores.redis.certificate" in soon.what) == (Severity.WARNING, True)
    assert "in 9 days" in soon.what
    desk.issue("own", days=-1)
    (ended,) = desk.examined()
    assert (ended.severity, "certificate ended on" in ended.what) == (Severity.WRONG, True)


@pytest.mark.parametrize("content", ["another's", "nothing", "encrypted", "missing"])
def test_a_key_that_is_not_the_certificates_is_found(desk: Desk, content: str) -> None:
    """An encrypted one is not asked a password for."""
    desk.issue("other", days=90)
    other = desk.folder / "other.key"
    if content == "nothing":
        other.write_text("")
    elif content == "encrypted":
        other.write_text(
            other.read_text().replace("-----\n", "-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0\n\n", 1)
        )
    elif content == "missing":
        other.unlink()
    (finding,) = desk.examined(key="other.key")
    assert finding.severity is Severity.WRONG
    assert finding.what.startswith("stores.redis.key:")
    assert str(other) in finding.what
    patient = desk.patient("own.pem", "other.key")
    with pytest.raises(ConfigurationError, match=r"^stores\.redis\.key: "):
        address(patient.configuration, Service.REDIS, None, {}).tls.context()


def test_a_key_has_no_end_and_no_metric(desk: Desk) -> None:
    names = [path for path, _ in certificates_in(desk.patient("own.pem", "own.key").configuration)]
    assert names == ["stores.redis.ca", "stores.redis.certificate"]
