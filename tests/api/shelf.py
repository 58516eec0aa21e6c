"""Jobs in memory, for tests of the API alone."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from penstock.adapters.sql.job_store import Watches
from penstock.errors import PenstockError
from penstock.lanes.accepting import Acceptance, Accepted, AsyncRequest
from penstock.lanes.refusals import refusal_error
from penstock.lanes.requests import InferenceRequest
from penstock.ports import (
    Attempt,
    JobQuery,
    JobState,
    JobWatch,
    QuotaStore,
    StoredJob,
    StoredResult,
    UsageQuery,
    UsageRow,
)
from penstock.quota.definitions import SUBJECT
from penstock.quota.events import Event
from penstock.quota.identity import reservation_id
from penstock.quota.operations import Lane, Look, Reserve, ReserveAnswer, Reserved, Seen, State


class Shelf:
    """Jobs in memory: accepted into the quota, and ended by the test. Implements ``Acceptor`` and ``Jobs``."""

    def __init__(self, store: QuotaStore, *, now_ms: int, key_mac: str) -> None:
        self.store = store
        self.now_ms = now_ms
        self.key_mac = key_mac
        self.jobs: dict[str, StoredJob] = {}
        self.asked: list[AsyncRequest] = []
        self.queries: list[JobQuery] = []
        self.answer: Acceptance | PenstockError | None = None
        self.last: Attempt | None = None
        self.watches = Watches()

    async def accept(self, asked: AsyncRequest) -> Acceptance:
        self.asked.append(asked)
        if isinstance(self.answer, PenstockError):
            raise self.answer
        return self.answer or Accepted(await self.put(asked.request))

    async def put(self, request: InferenceRequest) -> str:
        number = len(self.jobs) + 1
        job = reservation_id(self.now_ms, (1 << 40) + number)
        reserve = Reserve(
            organisation=request.organisation, caller_now_ms=self.now_ms, reservation=job, nonce="1", key=request.key,
            fingerprint=request.fingerprint, key_mac=request.key_mac or self._mac(request.key), route=request.route,
            model=request.model, body_bytes=10, outputs_bound=10, lane=Lane.QUEUE, job_deadline_ms=self.now_ms + 60_000,
        )  # fmt: skip
        answer: ReserveAnswer = await self.store.apply(reserve)
        if not isinstance(answer, Reserved):
            raise refusal_error(answer)
        self.jobs[job] = StoredJob(
            id=job, organisation=request.organisation, team=None, key=request.key, model=request.model,
            state=JobState.QUEUED, created_at_ms=self.now_ms + number, deadline_ms=self.now_ms + 60_000,
        )  # fmt: skip
        return job

    def _mac(self, key: str) -> str:
        """Of a key that a test names without its secret; a verified subject has none."""
        return "" if SUBJECT in key else self.key_mac

    def end(self, job: str, **fields: Any) -> None:
        """Its end, as the database would know it."""
        ended: dict[str, Any] = {"state": JobState.SUCCEEDED, "finished_at_ms": self.now_ms + 99, "http_status": 200}
        self.jobs[job] = replace(self.jobs[job], **{**ended, "body": '{"id":"x"}', **fields})
        self.watches.tell(job)

    async def get(self, organisation: str, job: str) -> StoredJob | None:
        found = self.jobs.get(job)
        if found is None or found.organisation != organisation:
            return None
        seen = await self.store.apply(Look(organisation=organisation, caller_now_ms=self.now_ms, reservation=job))
        if not found.state.is_final and isinstance(seen, Seen) and seen.state is State.VOIDED:
            self.end(job, state=JobState.CANCELLED, reason="cancelled", http_status=0, body=None)
        return self.jobs[job]

    async def list(self, query: JobQuery) -> list[StoredJob]:
        self.queries.append(query)
        newest = sorted(self.jobs.values(), key=lambda job: (-job.created_at_ms, job.id))
        after = query.after or (1 << 62, "")
        mine = [job for job in newest if job.organisation == query.organisation and job.created_at_ms < after[0]]
        return mine[: query.count_max]

    async def last_attempt(self, organisation: str, prefix: str) -> Attempt | None:
        return self.last

    def watch(self, job: str) -> AbstractContextManager[JobWatch]:
        return self.watches.watch(job)


class Kept:
    """Stored answers in memory. Implements ``Answers``."""

    def __init__(self) -> None:
        self.results: dict[str, StoredResult] = {}

    async def last_attempt(self, organisation: str, prefix: str) -> Attempt | None:
        return None

    async def result(self, job: str) -> StoredResult | None:
        return self.results.get(job)

    async def store(self, result: StoredResult) -> StoredResult:
        return self.results.setdefault(result.job, result)

    async def mark_settled(self, job: str) -> None:
        self.results[job] = replace(self.results[job], settled=True)

    async def events(self, organisation: str, reservation: str) -> list[Event]:
        return []

    async def unsettled(self) -> list[StoredResult]:
        return [result for result in self.results.values() if not result.settled]


class Rows:
    """A ledger of fixed rows."""

    def __init__(self) -> None:
        self.asked: list[UsageQuery] = []
        self.rows: list[UsageRow] = []

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        self.asked.append(query)
        return self.rows
