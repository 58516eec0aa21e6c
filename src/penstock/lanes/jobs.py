"""What travels through the work queue: a job on its way to a model, and its result on the way back.

Apart from whoever writes or reads them, since they are a format: the gateway writes jobs, `penstock execute` and the
embedded queue read them, the collector reads results. The texts are JSON, with the field names below.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import msgspec

from penstock.quota.events import Usage
from penstock.quota.operations import Lane, Reserve

ROUTES: Final = ("chat.completions", "completions", "embeddings", "responses", "infer")

TRANSLATED: Final = frozenset({"responses"})
"""Routes whose body stays as the client sent it: whoever runs the job makes of it what the model gets."""


class JobStatus(StrEnum):
    """How a job ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One accepted request, whose reservation holds what it may cost.

    Args:
        job: Its id, which is its reservation's.
        epoch: Of the answer to its reserve (``Reserved.epoch``); its acquire names it.
        route: One of ``ROUTES``.
        request_id: Of the request that brought it, for logs.
        accepted_at_ms: Unix milliseconds.
        reserve: As it was reserved, in the queue lane.
        request: The decoded body, as the client sent it but for ``max_tokens``, which is written where it has one.
        received_bytes: The body's length as received, where its reserve has a bound in its place; else 0.
    """

    job: str
    organisation: str
    epoch: int
    route: str
    model: str
    request_id: str
    accepted_at_ms: int
    reserve: Reserve
    request: dict[str, Any]
    received_bytes: int = 0


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a job; to be stored, and its usage settled, once.

    Args:
        http_status: What the realtime lane would have answered; 499 if cancelled, 504 if expired.
        body: The answer, or ``{"error": ...}`` of a failure; null if cancelled or expired.
        reason: Why it did not succeed, for people; empty if it did.
        usage: To be settled; null: nothing is charged, void.
        attempts: Requests sent to model servers.
        started_at_ms: When it was acquired, Unix milliseconds; 0 if it never was.
        arguments: Its reserve, to post to a store that no longer knows the id.
    """

    job: str
    organisation: str
    model: str
    status: JobStatus
    http_status: int
    body: msgspec.Raw
    reason: str
    usage: Usage | None
    attempts: int
    started_at_ms: int
    finished_at_ms: int
    arguments: Reserve


_decode_job: Final = msgspec.json.Decoder(Job).decode
_decode_result: Final = msgspec.json.Decoder(JobResult).decode
_encode: Final = msgspec.json.Encoder().encode


def read_job(message: bytes) -> Job:
    """Read a job.

    Raises:
        ValueError: It can never be understood: no JSON, fields missing, or its parts name different things.
    """
    try:
        job = _decode_job(message)
    except RecursionError:
        raise ValueError("its request nests too deeply") from None
    reserve = job.reserve
    if (job.job, job.organisation, job.model, job.route) != (
        reserve.reservation,
        reserve.organisation,
        reserve.model,
        reserve.route,
    ):
        raise ValueError("the job and its reserve name a different id, organisation, model or route")
    if reserve.lane is not Lane.QUEUE:
        raise ValueError("its reserve names the realtime lane")
    if job.route not in ROUTES:
        raise ValueError(f"its route is none of {', '.join(ROUTES)}")
    return job


def write_job(job: Job) -> bytes:
    """Write a job as JSON."""
    return _encode(job)


def read_result(message: bytes) -> JobResult:
    """Read a result. Raises ``ValueError`` like ``read_job``."""
    return _decode_result(message)


def write_result(result: JobResult) -> bytes:
    """Write a result as JSON."""
    return _encode(result)
