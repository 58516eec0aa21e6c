"""The format of what travels through the queue."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from penstock.lanes.jobs import Job, JobResult, JobStatus, read_job, read_result, write_job, write_result
from penstock.quota.events import Usage
from penstock.quota.operations import Lane, Reserve

RESERVE = Reserve(
    organisation="acme", caller_now_ms=1, reservation="0" * 32, nonce="n", fingerprint="f", key="k1", key_mac="",
    route="completions", model="m", body_bytes=80, outputs_bound=50, lane=Lane.QUEUE, job_deadline_ms=9,
)  # fmt: skip
JOB = Job(
    job="0" * 32, organisation="acme", epoch=1, route="completions", model="m", request_id="r", accepted_at_ms=1,
    reserve=RESERVE, request={"model": "m", "prompt": "twelve bytes", "max_tokens": 50},
)  # fmt: skip


def test_a_job_is_read_as_it_was_written() -> None:
    assert read_job(write_job(JOB)) == JOB


def test_a_result_is_read_as_it_was_written() -> None:
    result = JobResult(
        job="j", organisation="acme", model="m", status=JobStatus.SUCCEEDED, http_status=200,
        body=msgspec.Raw(b'{"a":1}'), reason="", usage=Usage(7, 3), attempts=1, started_at_ms=2, finished_at_ms=3,
        arguments=RESERVE,
    )  # fmt: skip
    written = write_result(result)
    assert write_result(read_result(written)) == written
    told = json.loads(written)
    assert told["usage"] == {"prompt": 7, "completion": 3, "cached": 0, "source": "upstream"}
    assert (told["status"], told["body"]) == ("succeeded", {"a": 1})


@pytest.mark.parametrize(
    "changed",
    [
        {"job": "1" * 32},
        {"organisation": "bad"},
        {"model": "n"},
        {"route": "embeddings"},
        {"reserve": {"lane": "realtime"}},
        {"route": "rerank", "reserve": {"route": "rerank"}},
        {"epoch": "1"},
        {"request": []},
        {"reserve": {"body_bytes": None}},
    ],
    ids=str,
)
def test_a_job_that_contradicts_itself_is_refused(changed: dict[str, Any]) -> None:
    written = json.loads(write_job(JOB))
    reserve = {**written["reserve"], **changed.get("reserve", {})}
    with pytest.raises(ValueError, match=r"."):
        read_job(json.dumps({**written, **changed, "reserve": reserve}).encode())


DEEP = write_job(JOB).replace(b'"twelve bytes"', b"[" * 100_000 + b"]" * 100_000)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"{}", DEEP], ids=lambda text: text[:9])
def test_what_is_no_job_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_job(text)
