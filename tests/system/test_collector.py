"""The Bento collector and the reader of dead letters with real services: the first result wins, and is settled once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import psycopg
import pytest

from penstock.lanes.jobs import Job, JobStatus
from penstock.quota.events import EventKind
from penstock.quota.operations import State
from tests.system.bento import VHOST, Bento
from tests.system.queue_lane import QUEUE, SECRET, QueueLane, result_of, until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("streams")]

MANY = 30


@pytest.fixture(scope="module")
def lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueueLane]:
    started = QueueLane(tmp_path_factory.mktemp("lane"))
    try:
        started.start()
        started.start_database()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def collector(lane: QueueLane) -> Iterator[Bento]:
    started = lane.stream("collector", PENSTOCK_SHUTDOWN_TIMEOUT="5s")
    started.start()
    yield started
    started.stop()
    assert SECRET not in started.log.read_text()


@pytest.fixture(scope="module")
def dead_letters(lane: QueueLane) -> Iterator[Bento]:
    started = lane.stream("dead_letters", PENSTOCK_SHUTDOWN_TIMEOUT="5s")
    started.start()
    yield started
    started.stop()
    assert SECRET not in started.log.read_text()


def accepted(lane: QueueLane, organisation: str, count: int = 1) -> list[Job]:
    lane.define_acme(organisation)
    return [lane.accept(organisation) for _ in range(count)]


def until_settled(lane: QueueLane, jobs: list[Job]) -> list[dict[str, Any]]:
    until(lambda: sum(row["settled"] for row in lane.rows(jobs)) == len(jobs), f"{len(jobs)} results are settled")
    until(lambda: lane.depth("results").get("messages") == 0, "every result is acknowledged")
    return lane.rows(jobs)


def until_stuck(lane: QueueLane, jobs: list[Job]) -> None:
    """Results are stored, and nothing settles them."""
    until(lambda: len(lane.rows(jobs)) > 0, "results are stored")
    assert not any(row["settled"] for row in lane.rows(jobs))


def test_a_result_is_stored_settled_and_told_to_those_who_wait(lane: QueueLane, collector: Bento) -> None:
    (job,) = accepted(lane, "happy")
    with psycopg.connect(lane.engine.url.set(drivername="postgresql").render_as_string(False), autocommit=True) as ear:
        ear.execute("LISTEN penstock_jobs")
        body = msgspec.Raw(b'{"text": "<a>\\u0000\xc3\xa9", "n": 1.50, "big": 12345678901234567890}')
        lane.publish_results(result_of(job, body=body, attempts=2))
        (row,) = until_settled(lane, [job])
        (notice,) = list(ear.notifies(timeout=30, stop_after=1))
    assert notice.payload == job.job
    assert (row["organisation"], row["model"], row["route"]) == ("happy", "m", "chat.completions")
    assert (row["status"], row["http_status"], row["attempts"]) == ("succeeded", 200, 2)
    assert (row["prompt_tokens"], row["cached_tokens"], row["completion_tokens"]) == (10, 0, 5)
    assert row["usage_source"] == "upstream"
    assert json.loads(row["body"]) == json.loads(bytes(body))
    assert '"n":1.50' in row["body"]
    assert row["arguments"] == json.loads(msgspec.json.encode(job.reserve))
    assert lane.used("happy") == 15


def test_the_same_result_twice_is_one_row_and_one_charge(lane: QueueLane, collector: Bento) -> None:
    jobs = accepted(lane, "twice", 3)
    for _ in range(2):
        lane.publish_results(*(result_of(job) for job in jobs))
    until_settled(lane, jobs)
    assert len(lane.ends("twice")) == 3
    assert lane.used("twice") == 45


def test_a_second_result_with_other_usage_changes_nothing(lane: QueueLane, collector: Bento) -> None:
    at_once, later = accepted(lane, "second", 2)
    lane.publish_results(result_of(later))
    until_settled(lane, [later])
    lane.publish_results(result_of(at_once), result_of(at_once, completion=3), result_of(later, completion=4))
    rows = until_settled(lane, [at_once, later])
    assert [row["completion_tokens"] for row in rows] == [5, 5]
    assert lane.used("second") == 30


def test_a_result_without_usage_is_voided(lane: QueueLane, collector: Bento) -> None:
    (job,) = accepted(lane, "free")
    failed = result_of(job, usage=None, status=JobStatus.FAILED, http_status=502, body=msgspec.Raw(b"null"), reason="x")
    lane.publish_results(failed)
    (row,) = until_settled(lane, [job])
    assert (row["body"], row["usage_source"], row["reason"]) == (None, None, "x")
    assert [event.kind for event in lane.ends("free")] == [EventKind.VOIDED]
    assert lane.used("free") == 0


def test_what_redis_no_longer_knows_is_stored_for_the_keeper_to_post(lane: QueueLane, collector: Bento) -> None:
    (job,) = accepted(lane, "forgotten")
    lane.void(job)
    unknown_id = f"{'0' * 12}{'a' * 20}"
    unknown = msgspec.structs.replace(job, job=unknown_id, reserve=replace(job.reserve, reservation=unknown_id))
    lane.publish_results(result_of(unknown))
    until(lambda: len(lane.rows([unknown])) == 1, "the result is stored")
    until(lambda: lane.depth("results").get("messages") == 0, "the result is acknowledged")
    (row,) = lane.rows([unknown])
    assert row["settled"] is False


def test_one_bad_row_is_rejected_alone(lane: QueueLane, collector: Bento) -> None:
    jobs = accepted(lane, "mixed", 2 * MANY)
    collector.stop()
    bad = '{"job": "no result"}'
    for index, job in enumerate(jobs):
        lane.publish_results(result_of(job))
        if index == MANY:
            lane.publish(bad.encode(), "penstock.results", "results")
            # the database takes no NUL in jsonb: the whole statement fails
            unstorable = json.loads(msgspec.json.encode(result_of(job)))
            unstorable["arguments"]["fingerprint"] = "\0"
            lane.publish(json.dumps(unstorable).encode(), "penstock.results", "results")
    collector.start()
    until_settled(lane, jobs)
    dead: list[dict[str, Any]] = []

    def both() -> bool:
        dead.extend(lane.take("dead"))
        return len(dead) >= 2

    until(both, "two dead letters")
    reasons = [each["properties"]["headers"]["x-first-death-reason"] for each in dead]
    assert reasons == ["rejected", "rejected"]
    assert [each["properties"]["headers"]["x-death"][0]["count"] for each in dead] == [1, 1]
    assert [each["properties"]["headers"]["x-delivery-count"] for each in dead] == [0, 0]
    assert lane.used("mixed") == 15 * len(jobs)


def test_postgresql_that_is_away_is_waited_for(lane: QueueLane, collector: Bento) -> None:
    assert lane.postgresql is not None
    jobs = accepted(lane, "database", MANY)
    lane.postgresql.kill()
    lane.engine.dispose()
    lane.publish_results(*(result_of(job) for job in jobs))
    until(lambda: lane.depth("results").get("messages_unacknowledged") == MANY, "the collector has them")
    lane.postgresql.start()
    until_settled(lane, jobs)
    assert lane.take("dead") == []
    assert lane.used("database") == 15 * MANY


def test_redis_that_is_away_is_waited_for(lane: QueueLane, collector: Bento) -> None:
    jobs = accepted(lane, "redis", MANY)
    lane.redis.kill()
    lane.publish_results(*(result_of(job) for job in jobs))
    until_stuck(lane, jobs)
    lane.redis.start()
    until_settled(lane, jobs)
    assert lane.take("dead") == []
    assert lane.used("redis") == 15 * MANY


def test_collector_killed_while_it_waits_loses_nothing(lane: QueueLane, collector: Bento) -> None:
    jobs = accepted(lane, "killed", MANY)
    lane.redis.kill()
    lane.publish_results(*(result_of(job) for job in jobs))
    until_stuck(lane, jobs)
    collector.kill()
    lane.redis.start()
    collector.start()
    until_settled(lane, jobs)
    assert len(lane.ends("killed")) == MANY
    assert lane.used("killed") == 15 * MANY


def test_broker_restarted_loses_nothing(lane: QueueLane, collector: Bento) -> None:
    jobs = accepted(lane, "broker", MANY)
    lane.redis.kill()
    lane.publish_results(*(result_of(job) for job in jobs))
    until_stuck(lane, jobs)
    lane.broker.kill()
    lane.redis.start()
    lane.broker.start()
    until_settled(lane, jobs)
    assert lane.used("broker") == 15 * MANY


def test_dead_jobs_become_failed_ones_and_their_holds_are_given_back(lane: QueueLane, dead_letters: Bento) -> None:
    rejected, worn_out = accepted(lane, "dead", 2)
    lane.publish(msgspec.json.encode({"reserve": rejected.reserve}), "penstock.dead", "")
    lane.publish_job(worn_out)
    for _ in range(6):  # as often as the cluster's bound allows, and once more
        body = {"count": 1, "ackmode": "reject_requeue_true", "encoding": "auto"}
        lane.manage("POST", "queues", VHOST, QUEUE, "get", body=body)
    until(lambda: len(lane.rows([rejected, worn_out])) == 2, "both jobs have a result")
    until(lambda: all(row["settled"] for row in lane.rows([rejected, worn_out])), "both are settled")
    first, second = lane.rows([rejected, worn_out])
    assert (first["status"], first["http_status"], first["usage_source"]) == ("failed", 500, None)
    assert second["reason"] == "it was delivered too often"
    assert json.loads(second["body"])["error"]["code"] == "dead_letter"
    assert [lane.look(job).state for job in (rejected, worn_out)] == [State.VOIDED, State.VOIDED]
    assert lane.used("dead") == 0


def test_a_dead_result_that_can_be_read_is_charged(lane: QueueLane, dead_letters: Bento) -> None:
    (job,) = accepted(lane, "read")
    lane.publish(msgspec.json.encode(result_of(job)), "penstock.dead", "")
    until_settled(lane, [job])
    assert lane.used("read") == 15


def test_a_dead_result_that_cannot_be_read_is_a_failed_job(lane: QueueLane, dead_letters: Bento) -> None:
    (job,) = accepted(lane, "absurd")
    absurd = json.loads(msgspec.json.encode(result_of(job)))
    absurd["usage"]["completion"] = -1
    lane.publish(json.dumps(absurd).encode(), "penstock.dead", "")
    (row,) = until_settled(lane, [job])
    assert row["status"] == "failed"
    assert lane.used("absurd") == 0


@pytest.mark.parametrize("message", ["", "nothing", "[]", "{}", '{"reserve": 3}', '{"reserve": {"reservation": 1}}'])
def test_what_is_neither_job_nor_result_is_counted_and_dropped(
    lane: QueueLane, dead_letters: Bento, message: str
) -> None:
    before = dead_letters.metric("dead_letters_unreadable_total")
    lane.publish(message.encode(), "penstock.dead", "")
    until(lambda: dead_letters.metric("dead_letters_unreadable_total") == before + 1, "it is counted")
    until(lambda: lane.depth("dead").get("messages") == 0, "it is dropped")
