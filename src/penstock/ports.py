"""What the lanes need of the world: protocols that adapters implement, and the plain data that crosses them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from penstock.quota.events import Event, EventKind, Usage
from penstock.quota.operations import Call, Reserve, Settle, Void

A = TypeVar("A")


class Clock(Protocol):
    """Time, as an argument."""

    def now_ms(self) -> int:
        """Unix milliseconds."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that never go back, for durations."""
        ...


class QuotaStore(Protocol):
    """The quota, wherever it lives: the model in process with SQLite, or the Redis functions."""

    async def apply(self, call: Call[A]) -> A:
        """Carry out one operation atomically.

        A settle, void or post returns once it is durable; a queue-lane reserve too.

        Raises:
            StoreUnavailable: The store did not answer in time, or cannot commit; nothing is known of the call.
        """
        ...


class Spool(Protocol):
    """Where the end of a reservation is kept that the store did not acknowledge, until it does."""

    async def keep(self, ending: Settle | Void, reserve: Reserve) -> None:
        """Take it over; it is as safe as this spool makes anything once this returns.

        Args:
            ending: What to apply until it is acknowledged; idempotent.
            reserve: What it ends, for a store that lost the reservation meanwhile.
        """
        ...


USAGE_GROUPS = ("day", "model", "key", "team")
USAGE_SUMS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_nanos")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """Which part of the ledger to add up, for one organisation.

    Args:
        start_ms: Unix milliseconds, included; ``end_ms`` excluded.
        group_by: Any of ``USAGE_GROUPS``.
    """

    organisation: str
    start_ms: int
    end_ms: int
    group_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One group's sum. ``group`` has one value for each of the query's ``group_by``; days are ISO dates, UTC."""

    group: tuple[str | None, ...]
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_nanos: int

    @property
    def sums(self) -> dict[str, int]:
        """The numbers by name, in the order of ``USAGE_SUMS``."""
        return {name: getattr(self, name) for name in USAGE_SUMS}

    @classmethod
    def total(cls, rows: Sequence[UsageRow]) -> UsageRow:
        """Add rows up, into one of no group.

        Example:
            >>> UsageRow.total([UsageRow(("a",), 1, 10, 2, 5, 7), UsageRow(("b",), 1, 20, 0, 5, 8)])
            UsageRow(group=(), requests=2, prompt_tokens=30, cached_tokens=2, completion_tokens=10, cost_nanos=15)
        """
        return cls((), *(sum(getattr(row, name) for row in rows) for name in USAGE_SUMS))


class Ledger(Protocol):
    """The append-only record of what was charged."""

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        """Add up charges, sorted by group."""
        ...


class JobState(StrEnum):
    """Where a job of the queue lane is. The last four are final.

    ::

        queued -> running -> succeeded | failed | cancelled | expired
             '-> cancelled | expired | failed     running -> queued, when its executor went silent
    """

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Nothing follows."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredJob:
    """One job, as far as it is known. Times are Unix milliseconds, 0 for never or not known.

    Args:
        id: Its reservation.
        route: "chat.completions"...; empty while it has no result.
        usage: What is charged so far; None if nothing.
        cost_nanos: Nano-dollars; None if the ledger has not charged anything (yet).
        reason: Why it ended as it did, for people; empty if it succeeded.
        http_status: Of ``body``; 0 while there is none.
        body: The model server's answer or an error, JSON; None if there is none, or it was not asked for.
        cancel_requested: It still runs, and will stop.
    """

    id: str
    organisation: str
    team: str | None
    key: str
    model: str
    state: JobState
    created_at_ms: int
    deadline_ms: int
    started_at_ms: int = 0
    finished_at_ms: int = 0
    route: str = ""
    usage: Usage | None = None
    cost_nanos: int | None = None
    reason: str = ""
    http_status: int = 0
    body: str | None = None
    cancel_requested: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResult:
    """How a job ended in an executor, or what a request with an idempotency key was answered.

    Args:
        usage: To be settled; None: nothing is charged, the hold is voided.
        body: JSON, or the events of a streamed answer; None if there is none.
        arguments: Of its reserve, by name, for a store that no longer knows the job.
        settled: The quota store has acknowledged its usage.
    """

    job: str
    organisation: str
    model: str
    route: str
    state: JobState
    http_status: int
    body: str | None
    reason: str
    usage: Usage | None
    attempts: int
    started_at_ms: int
    finished_at_ms: int
    arguments: dict[str, Any]
    settled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """Which of an organisation's jobs to list, newest first.

    Args:
        models: Any of these; None for all.
        created_from_ms: Included; ``created_before_ms`` is not.
        after: (created_at_ms, id) of the last one of the page before.
        count_max: Length of a page.
    """

    organisation: str
    state: JobState | None = None
    models: tuple[str, ...] | None = None
    created_from_ms: int | None = None
    created_before_ms: int | None = None
    after: tuple[int, str] | None = None
    count_max: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What the ledger knows of the last job that one idempotency key led to.

    Args:
        number: From 1; part of the job's id.
        ended: Which transition ended it; None while it is open.
        job: None once it was forgotten.
        fingerprint: Of the request's body, if there is a result.
    """

    number: int
    ended: EventKind | None
    job: StoredJob | None
    fingerprint: str | None


class Answers(Protocol):
    """Answers that are kept, for requests that may be sent again. All raise ``StoreUnavailable``, like ``Jobs.get``."""

    async def last_attempt(self, organisation: str, prefix: str) -> Attempt | None:
        """See ``Jobs.last_attempt``."""
        ...

    async def result(self, job: str) -> StoredResult | None:
        """The answer of this name; None if there is none."""
        ...

    async def store(self, result: StoredResult) -> StoredResult:
        """Keep an answer unless there is one; the one that is kept."""
        ...

    async def mark_settled(self, job: str) -> None:
        """What it cost is charged."""
        ...

    async def events(self, organisation: str, reservation: str) -> Sequence[Event]:
        """What the ledger has of one reservation."""
        ...

    async def unsettled(self) -> Sequence[StoredResult]:
        """Those whose cost is not charged, and that nobody else will see to."""
        ...


class JobWatch(Protocol):
    """Somebody waits for a job."""

    async def changed(self, wait_s: float) -> None:
        """Return once the job may have changed since the last call, or after ``wait_s``."""
        ...


class Jobs(Protocol):
    """What became of the queue lane's jobs: a projection of the quota's events, and their results.

    The quota store knows a job first, and this a moment later; the end of a job is here before it is settled.
    """

    async def get(self, organisation: str, job: str) -> StoredJob | None:
        """One job with its body; None if the organisation has none of this id, or it is not here yet.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        ...

    async def list(self, query: JobQuery) -> Sequence[StoredJob]:
        """A page of jobs without bodies. Raises like ``get``."""
        ...

    async def last_attempt(self, organisation: str, prefix: str) -> Attempt | None:
        """The newest of the jobs whose ids are ``prefix`` and a number; None if there never was one."""
        ...

    def watch(self, job: str) -> AbstractContextManager[JobWatch]:
        """Notice changes of a job from now on. Missing one is possible, so nobody waits without a bound."""
        ...


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """One place in the embedded queue. ``place`` rises with each job."""

    place: int
    job: str
    organisation: str
    model: str


class Kept(NamedTuple):
    """How long results of jobs, and answers for idempotency keys, are kept where an organisation says nothing else."""

    results_ms: int
    answers_ms: int


class WorkQueue(Protocol):
    """The queue as a table, for a process without a broker. Everything is durable when it returns.

    Each method raises ``StoreUnavailable`` if the database refuses; whether anything was written is then not known,
    and doing it again does no harm.
    """

    async def put(self, job: str, organisation: str, model: str, message: bytes) -> QueuedJob:
        """Add a job at the end."""
        ...

    async def waiting(self) -> Sequence[QueuedJob]:
        """All jobs, in order of their places."""
        ...

    async def message(self, job: str) -> bytes | None:
        """What was put; None if it was removed."""
        ...

    async def result(self, job: str) -> StoredResult | None:
        """The result that won; None if there is none."""
        ...

    async def store(self, result: StoredResult) -> StoredResult:
        """Keep a result unless there is one; the one that is kept."""
        ...

    async def remove(self, job: str) -> None:
        """The job has ended, and its result, if it has one, is settled."""
        ...

    async def forget(self, *, now_ms: int, kept: Kept) -> int:
        """Delete jobs and results that are due; tells how many jobs."""
        ...


class UpstreamRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request to a model server.

    Args:
        url: Absolute. Clients can never name it.
        headers: Lower-case names; credentials included. Never a client's header.
        *_s: Bounds in seconds; ``between_chunks_s`` holds while the body arrives.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    connect_s: float = 5.0
    first_byte_s: float = 60.0
    between_chunks_s: float = 30.0
    total_s: float = 600.0


class UpstreamResponse(Protocol):
    """An answer whose head has arrived."""

    status: int
    headers: Mapping[str, str]

    async def read(self, bytes_max: int) -> bytes:
        """The whole body.

        Raises:
            UpstreamBroken: It broke off, is larger than ``bytes_max``, or is not HTTP.
            UpstreamTimeout: A bound passed.
        """
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, pieces of any size. Raises like ``read``."""
        ...

    async def pour(self, take: Callable[[bytes], bool]) -> None:
        """Give what has come and what comes of the body to ``take``, as it arrives and without waking anybody.

        Returns when ``take`` answers False, or when nothing more comes; ``chunks`` then goes on, and says how it ended.
        ``take`` raises nothing.
        """
        ...

    def close(self) -> None:
        """Done with it. Before the end of the body this closes the connection, which cancels the work upstream."""
        ...


class UpstreamClient(Protocol):
    """Sends requests to model servers, over connections that it keeps."""

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send, and wait for the answer's head.

        Raises:
            UpstreamUnreachable: Nothing was sent.
            UpstreamTimeout: A bound passed; ``phase`` names it.
            UpstreamBroken: The connection was lost after something was sent, or the answer is not HTTP.
        """
        ...


class Trace(Protocol):
    """The trace that one request belongs to, and what is told of it as it goes."""

    @property
    def traceparent(self) -> str:
        """W3C's header for whoever takes the request over."""
        ...

    @property
    def is_recorded(self) -> bool:
        """It was chosen to be kept; the others only hand their choice on."""
        ...

    def calling(self) -> str:
        """A model server is asked from now on; ``traceparent`` for it. Asking another ends this."""
        ...

    def settling(self) -> None:
        """The model server has done its part; what it used is settled from now on."""
        ...


class Tracer(Protocol):
    """Begins traces, or goes on with a client's. The observer of the same process ends them."""

    def begin(self, record: RequestRecord, parent: str | None) -> Trace:
        """A request was received.

        Args:
            parent: The ``traceparent`` that came with it, of any form; one that is malformed counts as none.
        """
        ...


class RequestRecord(msgspec.Struct, kw_only=True):
    """What is known of one request, filled in as it goes; one log line and a few metrics at its end.

    No prompt, answer, secret or header of a client ever enters it.

    Args:
        outcome: "ok", "invalid", "unauthenticated", "denied", "unavailable", "upstream_error", "client_gone"...
        denied_by: The limit's id.
        *_ms: Durations from the moment the request was received.
        trace: None where nothing is traced.
    """

    request_id: str
    route: str = ""
    lane: str = "realtime"
    organisation: str = ""
    team: str | None = None
    key: str = ""
    model: str = ""
    reservation: str = ""
    stream: bool = False
    status: int = 0
    outcome: str = "ok"
    error: str = ""
    denied_by: str = ""
    upstream: str = ""
    attempts: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    usage_source: str = "none"
    tokens_held: int = 0
    cost_nanos: int = 0
    received_at_s: float = 0.0  # monotonic
    waited_ms: float = 0.0  # in a queue, before all else
    reserved_ms: float = 0.0
    first_token_ms: float = 0.0
    total_ms: float = 0.0
    chunks: int = 0
    extra: dict[str, str | int] = {}
    trace: Trace | None = None


class Observer(Protocol):
    """Metrics and the request log."""

    def started(self, record: RequestRecord) -> None:
        """A request was received."""
        ...

    def finished(self, record: RequestRecord) -> None:
        """A request's last byte was sent, or its client is gone. Called exactly once for each started."""
        ...

    def upstream_changed(self, model: str, upstream: str, healthy: bool) -> None:
        """An upstream was ejected or came back."""
        ...
