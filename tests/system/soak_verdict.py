"""What must hold when a soak is over: jobs against what their owners were told, the ledger against the model's own log.

Pure comparisons; each gives sentences that name what is wrong, and nothing where all is right.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from penstock.quota.events import Event, EventKind, UsageSource
from penstock.quota.pricing import cost_nanos
from tests.system.soak_load import Accepted, Seen
from tests.system.soak_samples import Samples

MEMORY_MB_PER_HOUR: Final = {"postgresql": 40.0, "rabbitmq": 40.0, "redis": 40.0, "model": 60.0}  # it is a test's own
MEMORY_MB_PER_HOUR_OURS: Final = 15.0
FILES_PER_HOUR: Final = {
    "redis": 150.0,
    "postgresql": 300.0,
}  # clients' pools fill after a freeze; sessions open tables
FILES_PER_HOUR_OURS: Final = 30.0
FILES_MAX: Final = {"postgresql": 2000}  # all its sessions together
FILES_MAX_OURS: Final = 200
ERRORS: Final = 3
"""A slope is too steep if it is by so many standard errors."""


def jobs_wrong(accepted: Mapping[str, Accepted], stored: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Accepted jobs that are not there, did not end, or ended in a way that nothing explains."""
    for job, mine in accepted.items():
        found = stored.get(job)
        if found is None:
            yield f"job {job} was accepted and is not there"
            continue
        explained = {"succeeded"}
        if mine.cancelled:
            explained.add("cancelled")
        if mine.wishes.startswith(("fault=refuse", "fault=break")):
            explained.add("failed")
        if found["status"] == "failed" and "refuse" not in mine.wishes and _upstream_failed(found):
            explained.add("failed")  # the model server was cut off under it, more often than a job is tried again
        if found["status"] not in explained:
            yield f"job {job} is {found['status']} ({found['reason']}), with wishes {mine.wishes!r}"


def _upstream_failed(job: Mapping[str, Any]) -> bool:
    """Whether the reason is the model server's."""
    return "upstream" in (job["reason"] or "") or "model server" in (job["reason"] or "")


def bills_wrong(events: Sequence[Event], stored: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Billed twice, not at all, without a result, for another usage than shown, or at another price."""
    rows: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        rows[event.reservation].append(event)
    for reservation, mine in rows.items():
        charged = sum(event.charge.requests for event in mine)
        if charged > 1:
            yield f"{reservation} was billed {charged} times: {[event.kind.value for event in mine]}"
        for event in mine:
            usage, price = event.usage, event.price
            due = cost_nanos(price, usage.prompt, usage.cached, usage.completion) if event.charge.requests else 0
            if event.kind is EventKind.POSTED and event.charge.cost_nanos != due:
                yield f"{reservation}: {event.charge.cost_nanos} nano-dollars were charged, {due} are due"
    for job, shown in stored.items():
        charged = sum(event.charge.requests for event in rows.get(job, ()))
        if shown["status"] == "succeeded" and charged != 1:
            yield f"job {job} succeeded and was billed {charged} times"
        if charged and shown["status"] not in ("succeeded", "failed", "cancelled"):
            yield f"job {job} was billed and is {shown['status']}"
        if shown["status"] == "succeeded" and charged == 1 and shown["usage"]:
            posted = sum(event.charge.tokens for event in rows[job])
            if posted != shown["usage"]["total_tokens"]:
                yield f"job {job} shows {shown['usage']['total_tokens']} tokens, the ledger {posted}"


def ledger_wrong(events: Sequence[Event], produced: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Where the ledger is outside the charge table, by what the model server says that it made of each request."""
    lines: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line in produced:
        lines[line["request_id"]].append(line)
    rows: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event.kind in (EventKind.POSTED, EventKind.EXPIRED, EventKind.LATE):
            rows[event.reservation].append(event)
    for reservation, mine in rows.items():
        made = lines.get(reservation, [])
        prompt, cached, completion = (
            sum(getattr(event.usage, part) for event in mine) for part in ("prompt", "cached", "completion")
        )
        most = max((line["completion"] for line in made), default=0)
        told = f"{reservation}: {prompt}+{completion} tokens ({cached} cached) are in the ledger as " + "+".join(
            f"{event.kind.value}/{event.usage.source.value}" for event in mine
        )
        if mine[-1].kind is not EventKind.EXPIRED and mine[-1].usage.source is UsageSource.UPSTREAM:
            exact = [(line["prompt"], line["cached"], line["completion"]) for line in made]
            if (prompt, cached, completion) not in exact:
                yield f"{told}, the model server made {exact}"
        elif completion > most:
            yield f"{told}, the model server made {most} at most"


def answers_unbilled(seen: Seen, events: Sequence[Event]) -> Iterator[str]:
    """Answers that clients saw to their end, and that no row of the ledger carries."""
    jobs = set(seen.jobs)
    sums: dict[str, list[int]] = {}
    named: dict[str, tuple[str, str]] = {}
    for event in events:
        if event.reservation not in jobs and event.kind in (EventKind.POSTED, EventKind.EXPIRED, EventKind.LATE):
            usage = event.usage
            mine = sums.setdefault(event.reservation, [0, 0, 0])
            for index, part in enumerate((usage.prompt, usage.cached, usage.completion)):
                mine[index] += part
            named[event.reservation] = (event.organisation, event.model)
    billed = Counter((*named[each], prompt, cached, completion) for each, (prompt, cached, completion) in sums.items())
    for told, count in sorted((seen.whole - billed).items()):
        yield f"{count} answer(s) {told} were seen whole and are not in the ledger"


def slopes_wrong(samples: Samples) -> Iterator[str]:
    """Processes that grow faster than they may, where that is certain by three standard errors."""
    for name in samples.names:
        bounds = {
            "memory_mb": MEMORY_MB_PER_HOUR.get(name, MEMORY_MB_PER_HOUR_OURS),
            "files": FILES_PER_HOUR.get(name, FILES_PER_HOUR_OURS),
        }
        files, files_max = samples.summary(name)["files_max"], FILES_MAX.get(name, FILES_MAX_OURS)
        if files > files_max:
            yield f"{name}: {files} files were open at once, {files_max} are allowed"
        for what, found in samples.slopes(name).items():
            if found.lives and found.per_hour - ERRORS * found.error > bounds[what]:
                yield f"{name}: {what} grow by {found.per_hour} an hour, {bounds[what]} are allowed"


def executions_again(produced: Sequence[Mapping[str, Any]], jobs: Mapping[str, Any]) -> int:
    """How many more times than once the jobs' calls reached the model server's work."""
    calls = Counter(line["request_id"] for line in produced if line["outcome"] != "refused")
    return sum(count - 1 for job, count in calls.items() if job in jobs)
