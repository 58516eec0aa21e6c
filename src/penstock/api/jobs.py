"""The queue lane's jobs as their owners see them: one, all, as they change, and their end by request.

Every look is by (organisation, id); what belongs to another organisation, or to a model outside the key's scope, is
not there.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from penstock.api.answers import json_answer
from penstock.api.instants import instant_ms, iso
from penstock.api.permissions import ENDPOINTS
from penstock.api.services import Services
from penstock.api.visitors import Visitor
from penstock.config.notation import parse_duration
from penstock.errors import InvalidRequest, NotFound
from penstock.lanes.following import JobEvent
from penstock.ports import JobQuery, JobState, StoredJob

WAIT_MS_MAX = 60_000
PAGE_MAX = 100
PAGE = 20
FINAL_EVENT = 3
_FILTERS = frozenset({"state", "model", "created_after", "created_before", "limit", "cursor"})


class JobPages:
    """The pages under ``/v1/jobs``."""

    def __init__(self, services: Services) -> None:
        self._jobs = services.jobs

    async def one(self, request: Request, visitor: Visitor) -> Response:
        """Look at a job, or cancel it."""
        return await (self._cancel if request.method == "DELETE" else self._get)(request, visitor)

    async def _get(self, request: Request, visitor: Visitor) -> Response:
        unknown = set(request.query_params) - {"wait"}
        if unknown:
            raise InvalidRequest("a job takes wait only, as in ?wait=30s")
        job = await self._mine(request, visitor)
        if "wait" in request.query_params:
            wait_ms = _wait_ms(request.query_params["wait"])
            job = await self._jobs.wait(visitor.organisation, job.id, wait_ms / 1000)
        return json_answer(shown(job))

    async def _cancel(self, request: Request, visitor: Visitor) -> Response:
        job = await self._mine(request, visitor)
        job = await self._jobs.cancel(visitor.organisation, job.id)
        return json_answer(shown(job), status=200 if job.state.is_final else 202)

    async def all(self, request: Request, visitor: Visitor) -> Response:
        """A page of jobs, newest first."""
        query = _query(request.query_params, visitor)
        found = await self._jobs.list(query)
        page, has_more = found[: query.count_max - 1], len(found) == query.count_max
        return json_answer(
            {
                "object": "list",
                "data": [shown(job, with_result=False) for job in page],
                "has_more": has_more,
                "next_cursor": _cursor(page[-1]) if has_more else None,
            }
        )

    async def events(self, request: Request, visitor: Visitor) -> Response:
        """Each step of a job as a server-sent event, until its end."""
        job = await self._mine(request, visitor)
        seen = request.headers.get("last-event-id", "0")
        after = int(seen) if seen.isascii() and seen.isdecimal() and len(seen) == 1 else 0
        if after >= FINAL_EVENT:
            return Response(status_code=204)  # which tells a browser not to come again
        events = self._jobs.events(visitor.organisation, job.id, after=after)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(_texts(events), media_type="text/event-stream", headers=headers)

    async def _mine(self, request: Request, visitor: Visitor) -> StoredJob:
        job = await self._jobs.get(visitor.organisation, request.path_params["id"])
        if visitor.key.models is not None and job.model not in visitor.key.models:
            raise NotFound("there is no such job, or it is not yours", code="job_not_found")
        return job


async def _texts(events: AsyncIterator[JobEvent | None]) -> AsyncIterator[bytes]:
    async for event in events:
        if event is None:
            yield b": still waiting\n\n"
        else:
            data = msgspec.json.encode(shown(event.job))
            yield b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, event.job.state.value.encode(), data)


def shown(job: StoredJob, *, with_result: bool = True) -> dict[str, Any]:
    """A job as clients see it; times as ISO, null for what has not happened."""
    usage = job.usage
    told: dict[str, Any] = {
        "id": job.id,
        "object": "job",
        "status": job.state.value,
        "model": job.model,
        "endpoint": ENDPOINTS[job.route].replace("{name}", job.model) if job.route in ENDPOINTS else None,
        "team": job.team,
        "key": job.key,
        "created_at": _iso_or_none(job.created_at_ms),
        "started_at": _iso_or_none(job.started_at_ms),
        "finished_at": _iso_or_none(job.finished_at_ms),
        "expires_at": _iso_or_none(job.deadline_ms),
        "cancel_requested": job.cancel_requested,
        "reason": job.reason or None,
        "usage": None,
        "cost_nanos": job.cost_nanos,
    }
    if usage is not None:
        told["usage"] = {
            "prompt_tokens": usage.prompt,
            "cached_tokens": usage.cached,
            "completion_tokens": usage.completion,
            "total_tokens": usage.prompt + usage.completion,
            "source": usage.source.value,
        }
    if with_result:
        body = None if job.body is None else msgspec.Raw(job.body.encode())
        told["result"] = {"status_code": job.http_status, "body": body} if job.http_status else None
    return told


def _iso_or_none(at_ms: int) -> str | None:
    return iso(at_ms) if at_ms else None


def _wait_ms(text: str) -> int:
    try:
        wait_ms = int(text) * 1000 if text.isascii() and text.isdecimal() and len(text) < 6 else parse_duration(text)
    except ValueError:
        wait_ms = -1
    if not 0 <= wait_ms <= WAIT_MS_MAX:
        raise InvalidRequest(f"wait: must be 0s to {WAIT_MS_MAX // 1000}s, as in ?wait=30s; ask again for longer")
    return wait_ms


def _query(asked: Mapping[str, str], visitor: Visitor) -> JobQuery:
    """The filters, and one more than a page, which tells whether another follows."""
    unknown = set(asked) - _FILTERS
    if unknown:
        raise InvalidRequest(f"jobs take {', '.join(sorted(_FILTERS))} only")
    models = visitor.key.models
    if "model" in asked:
        models = frozenset({asked["model"]}) & (models if models is not None else {asked["model"]})
    state = None
    if "state" in asked:
        if asked["state"] not in set(JobState):
            raise InvalidRequest(f"state: must be one of {', '.join(JobState)}", param="state")
        state = JobState(asked["state"])
    count = asked.get("limit", str(PAGE))
    if not (count.isascii() and count.isdecimal() and 1 <= int(count[:9]) <= PAGE_MAX):
        raise InvalidRequest(f"limit: must be an integer from 1 to {PAGE_MAX}", param="limit")
    return JobQuery(
        organisation=visitor.organisation,
        state=state,
        models=None if models is None else tuple(sorted(models)),
        created_from_ms=instant_ms("created_after", asked["created_after"]) if "created_after" in asked else None,
        created_before_ms=instant_ms("created_before", asked["created_before"]) if "created_before" in asked else None,
        after=_read_cursor(asked["cursor"]) if "cursor" in asked else None,
        count_max=int(count) + 1,
    )


def _cursor(job: StoredJob) -> str:
    return base64.urlsafe_b64encode(f"{job.created_at_ms}.{job.id}".encode()).decode().rstrip("=")


def _read_cursor(text: str) -> tuple[int, str]:
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode("ascii")
        created, dot, job = decoded.partition(".")
        if not (dot and job and len(created) <= 15):
            raise ValueError
        return int(created), job
    except (ValueError, binascii.Error):
        raise InvalidRequest("cursor: must be the next_cursor of a page before, unchanged", param="cursor") from None
