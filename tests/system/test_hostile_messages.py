"""Messages that nobody of ours would send, and each message more than once: others go on, and nobody pays for them."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import msgspec
import pytest

from penstock.lanes.jobs import Job, write_job, write_result
from penstock.quota.events import EventKind
from tests.counts import count
from tests.fuzzing.mutating import inputs
from tests.system.broker_wire import Message, Publisher
from tests.system.queue_lane import BOUND_S, QueueLane, now_ms, result_of, until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("streams")]

TOKENS = 5
DEAD, DROPPED, FAILED, RUN = "dead", "dropped", "failed", "run"
NESTED = b"[" * 1_500 + b"]" * 1_500
GARBAGE = bytes(Random(1).randbytes(3_000))


class Streams:
    """The lane with everything that reads from the broker, and their own accounts to write to it."""

    def __init__(self, lane: QueueLane) -> None:
        self.lane = lane
        self.worker, self.collector, self.dead_letters = (
            lane.stream(name, PENSTOCK_SHUTDOWN_TIMEOUT="2s") for name in ("worker", "collector", "dead_letters")
        )
        self.every = (self.worker, self.collector, self.dead_letters)

    def start(self) -> None:
        for stream in self.every:
            stream.start()
        self.pids = [stream.process.pid for stream in self.every if stream.process is not None]

    def stop(self) -> None:
        for stream in self.every:
            if stream.process is not None:
                stream.kill()

    def send(self, *messages: Message) -> None:
        broker = self.lane.broker
        with Publisher(f"amqp://{broker.user}:{broker.password}@127.0.0.1:{broker.port}/penstock") as publisher:
            publisher.publish(messages)

    def accept(self, organisation: str, jobs: int) -> list[Job]:
        return [self.lane.accept(organisation, TOKENS) for _ in range(jobs)]

    def until_done(self, jobs: list[Job], told: str = "", *, bound_s: float = BOUND_S) -> None:
        """These jobs are settled, and all that was published is acknowledged, by streams that never ended."""
        lane = self.lane

        def is_empty() -> bool:
            return not any(queue.get("messages", 1) for queue in lane.manage("GET", "queues", "penstock"))

        def are_settled() -> bool:
            rows = lane.rows(jobs)
            return len(rows) == len(jobs) and all(row["settled"] for row in rows)

        until(are_settled, f"{len(jobs)} are settled {told}", bound_s=bound_s)
        until(is_empty, f"no queue has a message {told}", bound_s=bound_s)
        assert [stream.process.pid for stream in self.every if stream.process is not None] == self.pids, told
        assert all(stream.is_ready() for stream in self.every), told

    def produced(self) -> list[dict[str, Any]]:
        assert self.lane.model is not None
        return self.lane.model.produced()

    def unreadable(self) -> float:
        return self.dead_letters.metric("dead_letters_unreadable_total")

    def assert_charged_once(self, organisation: str, jobs: list[Job], told: str = "") -> None:
        """Each of these has succeeded, was charged once for what its result shows, and nothing else was."""
        rows = {row["job"]: row for row in self.lane.rows(jobs)}
        assert {rows[job.job]["status"] for job in jobs} == {"succeeded"}, told
        ends = self.lane.ends(organisation)
        posted = [event.reservation for event in ends if event.charge.requests]
        assert sorted(posted) == sorted(job.job for job in jobs), told
        shown = sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows.values())
        assert self.lane.used(organisation) == shown, told


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Streams]:
    lane = QueueLane(tmp_path_factory.mktemp("hostile"))
    started = None
    try:
        lane.start()
        lane.start_database()
        lane.start_executor(tokens_per_second=2_000)
        started = Streams(lane)
        started.start()
        yield started
    finally:
        if started is not None:
            started.stop()
        lane.stop()


def changed(message: bytes, **changes: Any) -> bytes:
    """The same with other fields; ``part__field`` is a field of a part."""
    told = json.loads(message)
    for name, value in changes.items():
        *parts, last = name.split("__")
        place = told
        for part in parts:
            place = place[part]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return json.dumps(told).encode()


def as_result(body: bytes, **changes: Any) -> Message:
    return Message(body, exchange="penstock.results", routing_key="results", **changes)


Poison = Callable[[Job], Message]
JOBS: dict[str, tuple[str, Poison]] = {
    "not JSON": (DEAD, lambda job: Message(b"this is no job")),
    "empty": (DEAD, lambda job: Message(b"")),
    "not an object": (DEAD, lambda job: Message(b"[1, 2]")),
    "without its reserve": (DEAD, lambda job: Message(changed(write_job(job), reserve=...))),
    "without a reservation": (DEAD, lambda job: Message(changed(write_job(job), reserve__reservation=...))),
    "of another schema": (
        FAILED, lambda job: Message(changed(write_job(job), epoch={"of": "what"}, request=["a list"])),
    ),
    "of the realtime lane": (FAILED, lambda job: Message(changed(write_job(job), reserve__lane="realtime"))),
    "of a model that is not there": (
        FAILED, lambda job: Message(changed(write_job(job), model="gone", reserve__model="gone")),
    ),
    "oversized": (DEAD, lambda job: Message(b'{"job":"' + b"a" * 40_000_000 + b'"}')),
    "of another content type": (DEAD, lambda job: Message(GARBAGE, content_type="application/gzip")),
    "a job of another content type": (RUN, lambda job: Message(write_job(job), content_type="text/plain; charset=x")),
    "with half a character": (DEAD, lambda job: Message(write_job(job)[:-2] + b',"x":"\xe2\x82"}')),
    "with half a surrogate": (FAILED, lambda job: Message(changed(write_job(job), request__user="\ud800"))),
    "nested deeply": (DEAD, lambda job: Message(b'{"job":' * 50_000)),
    "nested deeply where anything goes": (
        FAILED, lambda job: Message(write_job(job).replace(b'"messages"', b'"x":' + NESTED + b',"messages"')),
    ),
    "with negative numbers": (
        FAILED, lambda job: Message(changed(write_job(job), reserve__outputs_bound=-5, reserve__body_bytes=-1)),
    ),
    "without bounds": (FAILED, lambda job: Message(changed(write_job(job), reserve__outputs_bound=10**30))),
    "with a NUL": (DEAD, lambda job: Message(changed(write_job(job), job="a\0", reserve__reservation="a\0"))),
    "of a hold that never was": (
        DROPPED, lambda job: Message(
            changed(
                write_job(job), job="f" * 32, reserve__reservation="f" * 32,
                reserve__job_deadline_ms=now_ms() - 1000,  # before it, it is taken for a hold that was lost
            )
        ),
    ),
    "of a hold of another": (
        DROPPED, lambda job: Message(
            changed(
                write_job(job), organisation="bystander", reserve__organisation="bystander",
                reserve__job_deadline_ms=now_ms() - 1000,
            )
        ),
    ),
    "of an organisation that never was": (
        DEAD, lambda job: Message(
            changed(
                write_job(job), job="e" * 32, reserve__reservation="e" * 32,
                organisation="nobody", reserve__organisation="nobody",
                reserve__job_deadline_ms=now_ms() - 1000,
            )
        ),
    ),
    "with headers of all types": (
        RUN, lambda job: Message(
            write_job(job), message_id="x" * 255,
            headers={
                "x-request-id": {"a": [1, None]}, "traceparent": 7, "tracestate": b"\xff\x00",
                "x-delivery-count": "many", "x-first-death-reason": [True, 1.5], "x" * 200: "y" * 100_000,
            },
        ),
    ),
}  # fmt: skip


def test_poison_of_every_kind_becomes_a_dead_letter_or_is_dropped_and_valid_jobs_beside_it_run(
    streams: Streams,
) -> None:
    lane = streams.lane
    lane.define_acme("poisoned")
    lane.define_acme("bystander")
    unreadable, dropped = streams.unreadable(), streams.worker.metric("worker_dropped_total")
    baits, valid = dict(zip(JOBS, streams.accept("poisoned", len(JOBS)), strict=True)), []
    for kind, (_, poison) in JOBS.items():
        valid += streams.accept("poisoned", 1)
        streams.send(poison(baits[kind]), Message(write_job(valid[-1])))
    ends = (FAILED, RUN)
    streams.until_done(valid + [baits[kind] for kind, (outcome, _) in JOBS.items() if outcome in ends])
    ended = {kind: row for kind, bait in baits.items() for row in lane.rows([bait])}
    for kind, (outcome, _) in JOBS.items():
        if outcome in ends:
            assert ended[kind]["status"] == {FAILED: "failed", RUN: "succeeded"}[outcome], kind
            assert (ended[kind]["usage_source"] is None) == (outcome == FAILED), kind
            assert ended[kind]["reason"] or outcome == RUN, kind
        else:
            assert kind not in ended, kind
            lane.void(baits[kind])
    kinds = [outcome for outcome, _ in JOBS.values()]
    until(lambda: streams.worker.metric("worker_dropped_total") - dropped == kinds.count(DROPPED), "some are dropped")
    counted = kinds.count(DEAD) - 1  # one of them names a job, which is failed
    until(lambda: streams.unreadable() - unreadable == counted, f"{counted} dead letters are counted")
    run = [baits[kind] for kind, (outcome, _) in JOBS.items() if outcome == RUN]
    streams.assert_charged_once("poisoned", valid + run)
    assert lane.used("bystander") == 0


def poisoned_result(job: Job, **changes: Any) -> Message:
    return as_result(changed(write_result(result_of(job)), **changes))


RESULT_KINDS: dict[str, Poison] = {
    "not JSON": lambda job: as_result(b"\x00\xff"),
    "empty": lambda job: as_result(b""),
    "not an object": lambda job: as_result(b'"a"'),
    "a job": lambda job: as_result(write_job(job)),
    "without arguments": lambda job: poisoned_result(job, arguments=...),
    "of an unknown status": lambda job: poisoned_result(job, status="done"),
    "with negative usage": lambda job: poisoned_result(job, usage__completion=-1),
    "with broken usage": lambda job: poisoned_result(job, usage__completion=1.5),
    "with usage without bounds": lambda job: poisoned_result(job, usage__prompt=10**14),
    "with usage in words": lambda job: poisoned_result(job, usage="much"),
    "with more cached than there is": lambda job: poisoned_result(job, usage__cached=11),
    "of another organisation": lambda job: poisoned_result(job, organisation="bystander"),
    "with times before time": lambda job: poisoned_result(job, started_at_ms=-1),
    "oversized": lambda job: as_result(b'{"job":"' + b"a" * 40_000_000 + b'"}'),
    "compressed": lambda job: as_result(GARBAGE, content_type="application/gzip"),
    "with half a character": lambda job: as_result(write_result(result_of(job)).replace(b'"n"', b'"\xe2\x82')),
    "nested deeply": lambda job: as_result(b"[" * 100_000),
    "with a NUL in its reserve": lambda job: poisoned_result(job, arguments__fingerprint="\0"),
}  # fmt: skip


def test_poison_among_results_is_a_failed_job_or_dropped_and_results_beside_it_are_settled(streams: Streams) -> None:
    lane = streams.lane
    lane.define_acme("misled")
    baits, valid = streams.accept("misled", len(RESULT_KINDS)), streams.accept("misled", len(RESULT_KINDS))
    poison = streams.collector.metric("collector_poison_total")
    for bait, sound, kind in zip(baits, valid, RESULT_KINDS.values(), strict=True):
        headers = {"traceparent": ["not", {"a": "trace"}], "x-request-id": 1}
        streams.send(kind(bait), as_result(write_result(result_of(sound)), headers=headers))
    streams.until_done(valid)
    seen = len(RESULT_KINDS) - 1  # it is the database that refuses the one with a NUL
    until(lambda: streams.collector.metric("collector_poison_total") - poison == seen, f"{seen} are poison")
    for row in lane.rows(baits):
        assert (row["status"], row["usage_source"]) == ("failed", None), row
    for bait in baits:
        lane.void(bait)  # of those that name no job any more
    streams.assert_charged_once("misled", valid)


def test_a_result_of_an_organisation_that_is_not_ready_is_left_to_the_keeper_and_delays_no_other(
    streams: Streams,
) -> None:
    lane = streams.lane
    lane.define_acme("ready")
    jobs = streams.accept("ready", 20)
    lost = [
        poisoned_result(job, organisation=f"lost-{number}", arguments__organisation=f"lost-{number}")
        for number, job in enumerate(streams.accept("ready", 20))
    ]
    streams.send(*lost, *(as_result(write_result(result_of(job))) for job in jobs))
    streams.until_done(jobs)


def test_each_message_thrice_and_again_later_is_one_execution_billed_and_one_result(streams: Streams) -> None:
    lane = streams.lane
    lane.define_acme("repeated")
    jobs = streams.accept("repeated", count(300, short=20))
    results = [as_result(write_result(result_of(job, completion=70))) for job in jobs[::2]]
    orders = [Message(write_job(job)) for job in jobs]
    Random(len(jobs)).shuffle(everything := [*orders, *orders, *orders, *results, *results])
    streams.send(*everything)
    streams.until_done(jobs)
    first = {row["job"]: row for row in lane.rows(jobs)}
    streams.send(*orders, *(as_result(write_result(result_of(job, completion=9))) for job in jobs))
    streams.until_done(jobs)
    assert {row["job"]: row for row in lane.rows(jobs)} == first
    streams.assert_charged_once("repeated", jobs)
    assert [event.kind for event in lane.ends("repeated")] == [EventKind.POSTED] * len(jobs)


def test_jobs_whose_results_a_full_disk_keeps_out_wait_and_are_billed_once(streams: Streams) -> None:
    lane, worker = streams.lane, streams.worker.process
    assert worker is not None
    lane.define_acme("disk")
    jobs = streams.accept("disk", 30)
    worker.send_signal(signal.SIGSTOP)
    streams.send(*(Message(write_job(job)) for job in jobs))
    lane.broker.control("set_disk_free_limit", "900000GB")
    worker.send_signal(signal.SIGCONT)
    ids = {job.job for job in jobs}
    until(lambda: any(line["request_id"] in ids for line in streams.produced()), "some of them have run")
    assert lane.rows(jobs) == [], "the broker took a result"
    lane.broker.control("set_disk_free_limit", "50MB")
    streams.until_done(jobs)
    streams.assert_charged_once("disk", jobs)


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_no_body_stops_a_stream_or_costs_a_valid_job(streams: Streams, seed: int) -> None:
    """Bodies changed at random on both queues, with valid jobs between them."""
    lane, organisation = streams.lane, f"fuzzed-{seed}"
    lane.define_acme(organisation)
    bodies = count(100_000, short=2_000)
    valid, baits = streams.accept(organisation, bodies // 200), streams.accept(organisation, 4)
    corpus = [write_job(job) for job in baits] + [
        write_result(msgspec.structs.replace(result_of(job), body=msgspec.Raw(b'{"a":1}'))) for job in baits
    ]
    told = f"seed {seed}"

    def messages() -> Iterator[Message]:
        for number, raw in inputs(seed, corpus, bodies):
            yield as_result(raw) if number % 2 else Message(raw)
            if number % 200 == 0 and waiting:
                yield Message(write_job(waiting.pop()))

    waiting = list(valid)
    streams.send(*messages())
    streams.send(*(Message(write_job(job)) for job in [*waiting, *baits]))
    streams.until_done([*valid, *baits], told, bound_s=count(1_800, short=60))
    rows = {row["job"]: row for row in lane.rows([*valid, *baits])}
    assert [rows[job.job]["status"] for job in valid] == ["succeeded"] * len(valid), told
    ends = lane.ends(organisation)
    charged = [event.reservation for event in ends if event.charge.requests]
    assert len(charged) == len(set(charged)), told
    shown = sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows.values() if row["usage_source"])
    assert lane.used(organisation) == shown, told
