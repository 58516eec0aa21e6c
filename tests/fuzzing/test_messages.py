"""What a broker may hand over, changed at random: understood whole, or given up as a dead letter; never a crash."""

from __future__ import annotations

import msgspec
import pytest

from penstock.lanes.jobs import Job, JobResult, JobStatus, read_job, read_result, write_job, write_result
from penstock.quota.events import Usage
from penstock.quota.operations import Lane, Reserve
from tests.counts import count
from tests.fuzzing.mutating import Kept, found, inputs

RESERVE = Reserve(
    organisation="acme", caller_now_ms=1_700_000_000_000, reservation="0" * 32, nonce="n", fingerprint="f",
    key="jwt.corp~0123", key_mac="", route="chat.completions", model="m", body_bytes=100, outputs_bound=64,
    lane=Lane.QUEUE, job_deadline_ms=1_700_000_600_000,
)  # fmt: skip
JOB = Job(
    job=RESERVE.reservation, organisation="acme", epoch=1, route="chat.completions", model="m", request_id="r",
    accepted_at_ms=1_700_000_000_000, reserve=RESERVE,
    request={"model": "m", "messages": [{"role": "user", "content": "hé"}], "max_tokens": 64},
)  # fmt: skip
RESULT = JobResult(
    job=JOB.job, organisation="acme", model="m", status=JobStatus.SUCCEEDED, http_status=200,
    body=msgspec.Raw(b'{"id":"x","choices":[{"message":{"content":"a"}}]}'), reason="",
    usage=Usage(prompt=5, completion=3), attempts=1,
    started_at_ms=1_700_000_001_000, finished_at_ms=1_700_000_002_000, arguments=RESERVE,
)  # fmt: skip
MESSAGES = [write_job(JOB), write_result(RESULT), write_result(JobResult(**{
    **{name: getattr(RESULT, name) for name in RESULT.__struct_fields__},
    "status": JobStatus.EXPIRED, "body": None, "usage": None, "http_status": 0, "reason": "late",
}))]  # fmt: skip


def read(raw: bytes) -> None:
    """As executor and keeper read it: equal when it is written again, or a ``ValueError``."""
    try:
        job = read_job(raw)
    except ValueError:
        pass
    else:
        assert read_job(write_job(job)) == job
    try:
        result = read_result(raw)
    except ValueError:
        return
    assert read_result(write_result(result)) == result


@pytest.mark.torture
def test_no_message_is_our_fault(seed: int) -> None:
    for raw in (*found("messages"), *MESSAGES):
        read(raw)
    for number, raw in inputs(seed, MESSAGES, count(80_000, short=2_000)):
        with Kept("messages", number, raw):
            read(raw)
