"""A service that is told to stop: not ready at once, closed to new connections after a while, and all is charged."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.system.deployments import until
from tests.system.programs import Service, SimulatedModel

pytestmark = pytest.mark.slow


class Patient(Service):
    """Still takes connections for a while after it was told to stop."""

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder, url, limits=("1M tokens/day",), server="shutdown: 2s")
        self._arguments = (*self._arguments, "--stop-delay", "3s")


def test_told_to_stop_it_is_not_ready_at_once_takes_requests_for_a_while_then_ends_streams_and_charges_them(
    tmp_path: Path,
) -> None:
    model = SimulatedModel(tmp_path / "model", "--model", "m")
    service = Patient(tmp_path / "service", model.url)
    model.start()
    try:
        service.start()
        bearer = {"authorization": f"Bearer {service.key}"}
        asked: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        slow = asked | {
            "stream": True,
            "max_tokens": 2000,
            "metadata": {"simulate": "tokens=2000 fault=slow_chunks:20"},
        }
        with httpx.Client(base_url=service.url, headers=bearer, timeout=60, trust_env=False) as client:
            operations = service.running["operations_url"]
            with client.stream("POST", "/v1/chat/completions", json=slow) as stream:
                events = stream.iter_raw()
                assert b"data: " in next(events)
                assert service.process is not None
                service.process.send_signal(signal.SIGTERM)
                until(lambda: httpx.get(f"{operations}/health/ready", trust_env=False).status_code == 503)
                answer = httpx.post(f"{service.url}/v1/chat/completions", json=asked, headers=bearer, trust_env=False)
                assert answer.status_code == 200  # who has not noticed yet
                until(lambda: refuses(service.url))
                rest = b"".join(events)
        assert b'"code":"stopping"' in rest.splitlines()[-2]
        assert b"[DONE]" not in rest
        assert service.process.wait(30) == 0, service.log.read_text()
        charged = service.command("usage", "acme", "--json")
        produced = [line["completion"] for line in model.produced() if line["outcome"] == "aborted"]
        assert f'"requests":{2}' in charged
        assert len(produced) == 1
        service.audited()
    finally:
        model.stop()


def refuses(url: str) -> bool:
    try:
        httpx.get(f"{url}/health/live", trust_env=False)
    except httpx.ConnectError:
        return True
    except httpx.TransportError:
        return False
    return False
