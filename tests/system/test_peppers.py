"""The pepper is replaced under a service: nobody's key stops working, and the list says when the old one can go."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.system.deployments import until
from tests.system.programs import Service

pytestmark = pytest.mark.slow


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service whose models nobody asks."""
    service = Service(tmp_path, "http://127.0.0.1:1")
    yield service
    if service.process is not None and service.process.poll() is None:
        service.stop()


def _status(service: Service, key: str) -> int:
    bearer = {"authorization": f"Bearer {key}"}
    return httpx.get(f"{service.url}/v1/models", headers=bearer, trust_env=False).status_code


def _peppers(service: Service, auth: str) -> None:
    """Write the section ``auth`` of the configuration."""
    file = service.folder / "penstock.yaml"
    kept = [line for line in file.read_text().splitlines() if not line.startswith("auth:")]
    file.write_text("\n".join([*kept, f"auth: {auth}", ""]))


def test_keys_pass_through_the_rotation_of_the_pepper(service: Service) -> None:
    service.start()
    used, unused = service.key, service.command("keys", "create", "acme").strip()
    until(lambda: _status(service, unused) == 200)
    assert service.stop() == 0
    new = service.folder / "new-pepper"
    new.write_text(secrets.token_hex(32))
    _peppers(service, f"{{pepper: {{file: '{new}'}}, pepper_previous: {{file: '{service.data / 'pepper'}'}}}}")
    service.start()
    assert _status(service, used) == 200
    until(lambda: '"peppers":["newest"]' in service.command("keys", "list", "--json"))
    listed = service.command("keys", "list", "--json")
    assert listed.count('"peppers":["newest"]') == 1
    assert listed.count('"peppers":["previous"]') == 1
    assert _status(service, unused) == 200
    until(lambda: service.command("keys", "list", "--json").count('"peppers":["newest"]') == 2)
    assert service.stop() == 0
    _peppers(service, f"{{pepper: {{file: '{new}'}}}}")
    service.start()
    assert [_status(service, key) for key in (used, unused)] == [200, 200]
