"""One trace follows a request, or a job, through every process; what is not sampled is not sent."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.clusters import Cluster
from tests.system.deployments import Client, Embedded
from tests.system.traces import Receiver, Span, collector, shape

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


CLIENT, CONSUMER, PRODUCER, SERVER = 3, 5, 4, 2


def test_a_clusters_trace_of_each_lane_is_whole(tmp_path: Path, receiver: Receiver) -> None:
    whole_in_a_cluster(tmp_path, receiver, receiver.url)


@pytest.mark.kubernetes
def test_the_opentelemetry_collector_takes_a_clusters_traces_and_hands_them_on(
    tmp_path: Path, receiver: Receiver
) -> None:
    with collector(tmp_path / "collector", receiver.url) as endpoint:
        whole_in_a_cluster(tmp_path, receiver, endpoint)


def whole_in_a_cluster(folder: Path, receiver: Receiver, endpoint: str) -> None:
    """One trace of each lane has every span, and what is not to be recorded none."""
    cluster: Any = Cluster(folder, "--traces", endpoint, tracing={"endpoint": endpoint, "ratio": 0})
    cluster.start()
    try:
        with Client(cluster) as client:
            unsampled = fresh(sampled=False)[2]
            for each in (unsampled, None):
                headers = {"traceparent": each} if each else {}
                assert client.http.post("/v1/chat/completions", json=client.ask(), headers=headers).status_code == 200
                client.ended(client.submit(headers).json()["id"])
            trace, span, header = fresh()
            answer = client.http.post("/v1/chat/completions", json=client.ask(), headers={"traceparent": header})
            assert answer.status_code == 200
            job_trace, job_span, job_header = fresh()
            job = client.submit({"traceparent": job_header, "x-request-id": "mine-7"}).json()["id"]
            client.ended(job)
        realtime = receiver.trace(trace, complete=lambda spans: len(spans) == 6)
        queued = receiver.trace(job_trace, complete=lambda spans: len(spans) == 12)
        batches = receiver.linked({trace, job_trace}, names={"drain", "process results batch"})
    finally:
        cluster.stop()
    api, gateway = "penstock-api: POST /v1/chat/completions", "penstock-gateway: POST /v1/async/chat/completions"
    asked = "penstock-api: chat m"
    assert shape(realtime) == {
        api: span,
        "penstock-api: reserve": api,
        asked: api,
        "simulated-model: POST /v1/chat/completions": asked,
        "penstock-api: settle": api,
        "penstock-keeper: ledger posted": api,
    }
    sent, worker = "penstock-gateway: send penstock.jobs", "penstock-worker: process jobs.m.standard"
    executed, asked = "penstock-executor: execute chat.completions", "penstock-executor: chat m"
    told = "penstock-worker: send penstock.results"
    assert shape(queued) == {
        api: job_span,
        gateway: api,
        sent: gateway,
        worker: sent,
        executed: worker,
        asked: executed,
        "simulated-model: POST /v1/chat/completions": asked,
        told: worker,
        "penstock-collector: process results": told,
        "penstock-keeper: ledger reserved": gateway,
        "penstock-keeper: ledger acquired": gateway,
        "penstock-keeper: ledger posted": gateway,
    }
    linked_as_they_are_told(realtime + queued, batches)
    attributes_by_convention(queued, job)
    assert {each.trace for each in receiver.spans} == {trace, job_trace, *(each.trace for each in batches)}


def linked_as_they_are_told(spans: list[Span], batches: list[Span]) -> None:
    """A batch names every trace it served, and each part in a trace the batch."""
    served = [each for each in spans if each.service == "penstock-keeper" or each.name == "process results"]
    by_id = {(batch.trace, batch.id): batch for batch in batches}
    for each in served:
        ((_, _),) = each.links
        assert (each.trace, each.parent) in by_id[each.links[0]].links
    assert {batch.parent for batch in batches} == {""}


def attributes_by_convention(spans: list[Span], job: str) -> None:
    """OpenTelemetry's names for what is done with models and queues, and the ids that logs have."""
    found = {f"{each.service.removeprefix('penstock-')}: {each.name}": each for each in spans}
    asked = found["executor: chat m"]
    assert asked.kind == CLIENT
    assert asked.attributes["gen_ai.operation.name"] == "chat"
    assert asked.attributes["gen_ai.provider.name"] == "penstock"
    assert asked.attributes["gen_ai.request.model"] == "m"
    assert asked.attributes["gen_ai.usage.output_tokens"] == 5
    assert asked.attributes["gen_ai.usage.input_tokens"] > 0
    assert found["gateway: send penstock.jobs"].kind == PRODUCER
    assert found["worker: process jobs.m.standard"].kind == CONSUMER
    assert found["gateway: POST /v1/async/chat/completions"].kind == SERVER
    for name in ("worker: process jobs.m.standard", "executor: execute chat.completions", "collector: process results"):
        assert found[name].attributes["penstock.request_id"] == "mine-7"
        assert found[name].attributes["penstock.reservation"] == job
    assert [name for name, each in found.items() if each.is_error] == []
    assert all(each.began_ns <= each.ended_ns for each in spans)
