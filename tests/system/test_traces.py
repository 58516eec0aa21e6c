"""One trace follows a request, or a job, through every process; what is not sampled is not sent."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.deployments import Client, Embedded
from tests.system.traces import Receiver, shape

pytestmark = pytest.mark.slow


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # ms between two batches of each process
    receiver = Receiver()
    yield receiver
    receiver.close()


def fresh(*, sampled: bool = True) -> tuple[str, str, str]:
    """A client's trace: its id, its span's, and the header."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    return trace, span, f"00-{trace}-{span}-{'01' if sampled else '00'}"


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported() -> None:
    wanted = "import sys, penstock.cli, penstock.wiring.serving, penstock.wiring.keeping, penstock.wiring.executing\n"
    subprocess.run([sys.executable, "-c", wanted + "sys.exit('opentelemetry' in sys.modules)"], check=True)


def test_one_process_traces_both_lanes_and_honours_what_the_client_decided(tmp_path: Path, receiver: Receiver) -> None:
    deployment = Embedded(tmp_path, tracing=f"endpoint: '{receiver.url}', ratio: 0", traces=receiver.url)
    deployment.start()
    try:
        with Client(deployment) as client:
            trace, span, header = fresh()
            unsampled = fresh(sampled=False)
            body = client.ask(content="canary")
            for each in (header, unsampled[2], None, "00-nonsense"):
                headers = {"traceparent": each} if each else {}
                assert client.http.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
            job_trace, job_span, job_header = fresh()
            job = client.submit({"traceparent": job_header}).json()["id"]
            client.ended(job)
        realtime = receiver.trace(trace, complete=lambda spans: len(spans) == 5)
        queued = receiver.trace(job_trace, complete=lambda spans: len(spans) == 5)
    finally:
        deployment.stop()
    api = "penstock-api: POST /v1/chat/completions"
    asked = "penstock-api: chat m"
    assert shape(realtime) == {
        api: span,
        "penstock-api: reserve": api,
        asked: api,
        "simulated-model: POST /v1/chat/completions": asked,
        "penstock-api: settle": api,
    }
    executed = "penstock-api: execute chat.completions"
    assert shape(queued) == {
        api: job_span,
        "penstock-api: reserve": api,
        executed: api,
        asked: executed,
        "simulated-model: POST /v1/chat/completions": asked,
    }
    assert {each.trace for each in receiver.spans} == {trace, job_trace}
    assert b"canary" not in receiver.raw
