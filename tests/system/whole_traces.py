"""What one trace of each lane must be, whole: spans, services, parents, links and attributes."""

from __future__ import annotations

import secrets
from typing import Any

from tests.system.clusters import Cluster
from tests.system.deployments import Client
from tests.system.traces import Receiver, Span, shape

CLIENT, CONSUMER, PRODUCER, SERVER = 3, 5, 4, 2
API: str = "penstock-api: POST /v1/chat/completions"
MODEL: str = "simulated-model: POST /v1/chat/completions"
REALTIME = {
    "penstock-api: reserve": API,
    "penstock-api: chat m": API,
    MODEL: "penstock-api: chat m",
    "penstock-api: settle": API,
}


def fresh(*, sampled: bool = True) -> tuple[str, str, str]:
    """A client's trace: its id, its span's, and the header."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    return trace, span, f"00-{trace}-{span}-{'01' if sampled else '00'}"


def whole_in_each_lane(deployment: Any, receiver: Receiver) -> None:
    """One trace of each lane has every span, and one that its client does not want recorded has none."""
    with Client(deployment) as client:
        dropped = fresh(sampled=False)
        for header in (dropped[2], "00-nonsense"):
            headers = {"traceparent": header}
            assert client.http.post("/v1/chat/completions", json=client.ask(), headers=headers).status_code == 200
            client.ended(client.submit(headers).json()["id"])
        trace, span, header = fresh()
        answer = client.http.post("/v1/chat/completions", json=client.ask(), headers={"traceparent": header})
        assert answer.status_code == 200
        job_trace, job_span, job_header = fresh()
        job = client.submit({"traceparent": job_header, "x-request-id": "mine-7"}).json()["id"]
        client.ended(job)
    if isinstance(deployment, Cluster):
        _whole_in_a_cluster(receiver, (trace, span), (job_trace, job_span), job)
    else:
        _whole_in_one_process(receiver, (trace, span), (job_trace, job_span))
    assert dropped[0] not in {each.trace for each in receiver.spans}


def _whole_in_one_process(receiver: Receiver, realtime: tuple[str, str], queued: tuple[str, str]) -> None:
    expected = {API: realtime[1], **REALTIME}
    assert shape(receiver.trace(realtime[0], count=len(expected))) == expected
    executed = "penstock-api: execute chat.completions"
    expected = {
        API: queued[1],
        "penstock-api: reserve": API,
        executed: API,
        "penstock-api: chat m": executed,
        MODEL: "penstock-api: chat m",
    }
    assert shape(receiver.trace(queued[0], count=len(expected))) == expected


def _whole_in_a_cluster(receiver: Receiver, realtime: tuple[str, str], queued: tuple[str, str], job: str) -> None:
    expected = {API: realtime[1], **REALTIME, "penstock-keeper: ledger posted": API}
    answered = receiver.trace(realtime[0], count=len(expected))
    assert shape(answered) == expected
    gateway, sent = "penstock-gateway: POST /v1/async/chat/completions", "penstock-gateway: send penstock.jobs"
    worker, told = "penstock-worker: process jobs.m.standard", "penstock-worker: send penstock.results"
    executed, asked = "penstock-executor: execute chat.completions", "penstock-executor: chat m"
    expected = {
        API: queued[1],
        gateway: API,
        sent: gateway,
        worker: sent,
        executed: worker,
        asked: executed,
        MODEL: asked,
        told: worker,
        "penstock-collector: process results": told,
        "penstock-keeper: ledger reserved": gateway,
        "penstock-keeper: ledger acquired": gateway,
        "penstock-keeper: ledger posted": gateway,
    }
    spans = receiver.trace(queued[0], count=len(expected))
    assert shape(spans) == expected
    batches = receiver.linked(answered + spans)
    assert {batch.name for batch in batches} == {"drain", "process results batch"}
    linked_as_they_are_told(answered + spans, batches)
    attributes_by_convention(spans, job)


def linked_as_they_are_told(spans: list[Span], batches: list[Span]) -> None:
    """A batch names every trace it served, and each part in a trace the batch."""
    served = [each for each in spans if each.service == "penstock-keeper" or each.name == "process results"]
    by_id = {(batch.trace, batch.id): batch for batch in batches}
    for each in served:
        (link,) = each.links
        assert (each.trace, each.parent) in by_id[link].links
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
