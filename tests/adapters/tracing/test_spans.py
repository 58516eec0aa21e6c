"""The spans of a request and of the ledger's batches, as an exporter gets them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import StatusCode

from penstock.adapters.observing.vocabulary import Vocabulary
from penstock.adapters.tracing.ledger import LedgerTracer
from penstock.adapters.tracing.requests import RequestTracer
from penstock.lanes.tracing import nonce_of, traceparent_of
from penstock.ports import RequestRecord
from penstock.quota.definitions import Price
from penstock.quota.events import Charge, Event, EventKind, Usage

RECORDED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
DROPPED = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class World:
    """A tracer of requests that would record none of its own accord, and what it exported."""

    def __init__(self, *, ratio: float = 0.0) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(ratio)), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("test")
        names = Vocabulary(organisations={"acme"}, models={"m"})
        self.requests = RequestTracer(self.tracer, names, paths={"chat.completions": "/v1/chat/completions"})

    def record(self, **known: object) -> RequestRecord:
        record = RequestRecord(request_id="r-1", route="chat.completions", organisation="acme", model="m")
        for name, value in known.items():
            setattr(record, name, value)
        return record

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}


def names(spans: Sequence[ReadableSpan]) -> list[str]:
    return [span.name for span in spans]


def test_a_second_model_server_is_a_span_of_its_own_and_the_first_failed() -> None:
    world = World()
    record = world.record(upstream="http://one:8000", attempts=1)
    record.trace = trace = world.requests.begin(record, RECORDED)
    first = trace.calling()
    record.upstream, record.attempts = "https://two", 2
    second = trace.calling()
    trace.settling()
    record.reservation, record.reserved_ms, record.status = "a1", 2.5, 200
    world.requests.finished(record)
    found = world.exporter.get_finished_spans()
    assert names(found) == ["chat m", "chat m", "settle", "reserve", "POST /v1/chat/completions"]
    asked = found[:2]
    assert [span.status.status_code for span in asked] == [StatusCode.ERROR, StatusCode.UNSET]
    ports = [(span.attributes or {})["server.port"] for span in asked]
    assert ports == [8000, 443]
    for header, span in zip((first, second), asked, strict=True):
        assert span.context is not None
        assert header.split("-")[1:3] == ["0af7651916cd43dd8448eb211c80319c", f"{span.context.span_id:016x}"]


def test_what_is_not_recorded_makes_no_span_and_hands_its_choice_on() -> None:
    world = World(ratio=1.0)
    record = world.record()
    record.trace = trace = world.requests.begin(record, DROPPED)
    assert trace.calling().split("-")[1::2] == ["1af7651916cd43dd8448eb211c80319c", "00"]
    trace.settling()
    world.requests.finished(record)
    assert world.spans == {}
    assert nonce_of(trace, 7) == f"{7:020x}"


def test_a_recorded_requests_reservation_carries_its_trace_and_another_ones_does_not() -> None:
    world = World()
    trace = world.requests.begin(world.record(), RECORDED)
    assert traceparent_of(nonce_of(trace, 7)) == trace.traceparent
    assert traceparent_of(nonce_of(None, 7)) is None


@pytest.mark.parametrize("parent", [None, "00-nonsense", "", "ff" + RECORDED[2:]])
def test_a_request_without_a_sound_traceparent_is_decided_by_the_ratio(parent: str | None) -> None:
    assert not World(ratio=0.0).requests.begin(World().record(), parent).is_recorded
    assert World(ratio=1.0).requests.begin(World().record(), parent).is_recorded


def test_a_refusal_is_told_with_its_limit_and_what_clients_invent_is_not() -> None:
    world = World()
    record = world.record(model="a prompt", organisation="a prompt", reserved_ms=1.0)
    record.trace = world.requests.begin(record, RECORDED)
    record.status, record.outcome, record.denied_by = 429, "denied", "acme/tokens/minute"
    world.requests.finished(record)
    span, reserve = world.spans["POST /v1/chat/completions"], world.spans["reserve"]
    assert span.attributes is not None
    assert reserve.attributes is not None
    assert reserve.attributes["penstock.denied_by"] == "acme/tokens/minute"
    assert (span.attributes["error.type"], span.attributes["http.response.status_code"]) == ("denied", 429)
    assert span.status.status_code is StatusCode.UNSET
    assert "a prompt" not in repr([dict(each.attributes or {}) for each in world.spans.values()])


def test_a_batch_links_to_what_it_wrote_and_that_to_it() -> None:
    world = World(ratio=1.0)
    other = RECORDED.replace("0af7", "0bf7")
    event = Event(
        kind=EventKind.POSTED, reservation="a1", organisation="acme", team=None, key="k", model="m", lane="realtime",
        occurred_at_ms=1, usage=Usage(1, 2), charge=Charge(3, 1, 4), amounts=(), price=Price(), tokens_held=9,
        job_deadline_ms=5,
    )  # fmt: skip
    LedgerTracer(world.tracer).drained([], began_ms=1, ended_ms=2)
    assert world.spans == {}
    LedgerTracer(world.tracer).drained([(RECORDED, event), (other, event)], began_ms=1_000, ended_ms=1_005)
    *written, batch = world.exporter.get_finished_spans()
    assert names(written) == ["ledger posted", "ledger posted"]
    assert [f"{link.context.trace_id:032x}" for link in batch.links] == [RECORDED[3:35], other[3:35]]
    assert batch.context is not None
    assert {link.context.span_id for span in written for link in span.links} == {batch.context.span_id}
    assert {(span.start_time, span.end_time) for span in written} == {(1_000_000_000, 1_005_000_000)}
