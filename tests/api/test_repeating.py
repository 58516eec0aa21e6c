"""One idempotency key, one bill: the official paths with the real lane, and answers kept in a real database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from penstock.adapters.sql.database import migrate, open_engine
from penstock.adapters.sql.job_store import SqlJobs
from penstock.api.application import application
from penstock.errors import Mismatched, StoreUnavailable
from penstock.lanes.accepting import job_prefix, stored_answer
from penstock.lanes.repeating import Repeating
from penstock.ports import StoredResult
from penstock.quota.events import EventKind
from tests.api.door import NARROW_TOKEN, TOKEN, Clock, chat_body, listening
from tests.api.test_end_to_end import Whole


class Jobs(SqlJobs):
    """Fails to keep or to note answers, if told so."""

    keeps = marks = True

    async def store(self, result: StoredResult) -> StoredResult:
        if not self.keeps:
            raise StoreUnavailable("the disk is full")
        return await super().store(result)

    async def mark_settled(self, job: str) -> None:
        if not self.marks:
            raise StoreUnavailable("the disk is full")
        await super().mark_settled(job)


class Repeated(Whole):
    """A door whose answers are kept in a database."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.engine = open_engine(path)
        migrate(self.engine)
        self.jobs = Jobs(self.engine)
        self.once = Repeating(self.lane, self.jobs, self.door.store, Clock())
        self.services = replace(self.services, repeating=self.once)

    @asynccontextmanager
    async def around(self) -> Any:
        async with super().around():
            yield
            await self.once.close()
        self.engine.dispose()

    def ask(self, *, key: str | None = "k", path: str = "chat/completions", token: str = TOKEN, **more: Any) -> Any:
        headers = {"authorization": f"Bearer {token}"} | ({} if key is None else {"idempotency-key": key})
        body = {"model": "chat-small", "input": "hi", **more} if path == "responses" else chat_body(**more)
        url = f"http://127.0.0.1:{self.door.port}/v1/{path}"
        return httpx.post(url, json=body, headers=headers, timeout=30)

    def calls(self) -> int:
        """How often the model server was asked."""
        return sum(1 for record in self.door.watcher.ended if record.attempts)


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[Repeated]:
    whole = Repeated(tmp_path / "penstock.db")
    with listening(application(whole.services), around=whole.around) as (whole.door.port, _):
        yield whole
    assert not whole.door.store.inspected().holds


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
def test_the_same_key_gets_the_same_answer_and_one_bill(whole: Repeated, path: str) -> None:
    first = whole.ask(path=path)
    used = whole.used_tokens()
    again = whole.ask(path=path)
    assert (first.status_code, again.status_code) == (200, 200)
    if path == "responses":
        assert again.json()["id"] == first.json()["id"]
        assert again.json()["output"] == first.json()["output"]
    else:
        assert again.content == first.content
    assert (whole.used_tokens(), whole.calls()) == (used, 1)
    assert whole.door.watcher.last(2).extra == {"repeated": 1}


def test_a_stream_is_repeated_event_by_event(whole: Repeated) -> None:
    more: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 9}
    first = whole.ask(**more)
    used = whole.used_tokens()
    again = whole.ask(**more)
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.content == first.content
    assert again.content.endswith(b"data: [DONE]\n\n")
    assert (whole.used_tokens(), whole.calls()) == (used, 1)


def test_a_quoted_key_is_the_same_and_another_one_is_another_request(whole: Repeated) -> None:
    whole.ask(key="k")
    whole.ask(key='"k"')
    assert whole.calls() == 1
    whole.ask(key="l")
    whole.ask(key=None)
    assert whole.calls() == 3


def test_another_body_is_refused(whole: Repeated) -> None:
    whole.ask()
    answer = whole.ask(max_tokens=3)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_mismatch")


def test_a_failure_that_cost_nothing_is_tried_again(whole: Repeated) -> None:
    for _ in range(2):
        assert whole.ask(metadata={"simulate": "fault=refuse:500"}).status_code == 502
    assert whole.calls() == 2
    assert whole.used_tokens() == 0


def test_a_denied_request_is_as_if_never_sent(whole: Repeated) -> None:
    assert whole.ask(token=NARROW_TOKEN, path="completions", prompt="x").status_code == 403
    assert whole.ask().status_code == 200


def test_a_failure_that_was_charged_is_not_sent_again(whole: Repeated) -> None:
    fault = {"simulate": "fault=break_before"}
    assert whole.ask(metadata=fault).status_code == 502
    used = whole.used_tokens()
    again = whole.ask(metadata=fault)
    assert used > 0
    assert (again.status_code, again.json()["error"]["code"]) == (409, "answer_not_kept")
    assert (whole.used_tokens(), whole.calls()) == (used, 1)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_too_large_is_given_once(whole: Repeated, stream: bool) -> None:
    whole.once.bytes_max = 100
    first = whole.ask(stream=stream)
    used = whole.used_tokens()
    assert first.status_code == 200
    again = whole.ask(stream=stream)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "answer_too_large")
    assert whole.used_tokens() == used


def test_a_key_whose_request_is_under_way_is_refused_and_not_sent_twice(whole: Repeated) -> None:
    slow = {"simulate": "tokens=20 fault=slow_chunks:50"}
    headers = {"authorization": f"Bearer {TOKEN}", "idempotency-key": "k"}
    url = f"http://127.0.0.1:{whole.door.port}/v1/chat/completions"
    body = chat_body(stream=True, metadata=slow)
    with httpx.stream("POST", url, json=body, headers=headers) as stream:
        events = stream.iter_raw()
        next(events)
        second = whole.ask(stream=True, metadata=slow)
        assert (second.status_code, second.json()["error"]["code"]) == (409, "request_under_way")
        rest = b"".join(events)
    assert rest.endswith(b"data: [DONE]\n\n")
    assert whole.ask(stream=True, metadata=slow).content.endswith(rest)


def test_a_client_that_left_is_told_that_its_answer_was_not_kept(whole: Repeated) -> None:
    slow = {"simulate": "tokens=200 fault=slow_chunks:20"}
    headers = {"authorization": f"Bearer {TOKEN}", "idempotency-key": "k"}
    url = f"http://127.0.0.1:{whole.door.port}/v1/chat/completions"
    with httpx.stream("POST", url, json=chat_body(stream=True, metadata=slow), headers=headers) as stream:
        next(stream.iter_raw())
    whole.door.watcher.last()
    used = whole.used_tokens()
    again = whole.ask(stream=True, metadata=slow)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "answer_not_kept")
    assert whole.used_tokens() == used > 0


def test_an_answer_that_cannot_be_kept_is_given_and_billed_once(whole: Repeated) -> None:
    whole.jobs.keeps = False
    assert whole.ask().status_code == 200
    used = whole.used_tokens()
    assert whole.ask().json()["error"]["code"] == "answer_not_kept"
    assert whole.used_tokens() == used


def test_an_answer_stored_and_not_noted_as_settled_is_settled_no_second_time(whole: Repeated) -> None:
    whole.jobs.marks = False
    first = whole.ask()
    used = whole.used_tokens()
    whole.jobs.marks = True
    assert whole.ask().content == first.content
    assert whole.used_tokens() == used


def test_the_queue_lane_knows_what_the_key_was_answered(whole: Repeated) -> None:
    first = whole.ask()
    prefix = job_prefix("acme", "k")
    last = asyncio.run(whole.jobs.last_attempt("acme", prefix))
    result = asyncio.run(whole.jobs.result(f"{prefix}-1"))
    assert last is not None
    assert result is not None
    assert last.fingerprint is not None
    known = replace(last, ended=EventKind.POSTED)  # as the ledger says a moment later
    assert stored_answer(known, last.fingerprint).body == first.content
    with pytest.raises(Mismatched):
        stored_answer(known, "another")
    assert asyncio.run(whole.jobs.last_attempt("globex", prefix)) is None
