"""The realtime lane on the embedded store, against simulated model servers in processes of their own.

What is charged is compared with the ledger's rows, and with what the model server says that it really produced.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from penstock.adapters.embedded import open_store
from penstock.adapters.http import HttpClient
from penstock.adapters.sql.database import open_engine
from penstock.errors import PenstockError
from penstock.lanes.models import ServedModel, Upstream
from penstock.lanes.realtime import RealtimeLane
from penstock.lanes.requests import InferenceRequest, Reply
from penstock.ports import RequestRecord
from penstock.quota import Definitions, Inspect, Inspected, Key, Kind, Limit, Metric, Model
from tests.lanes.stage import Health

pytestmark = pytest.mark.slow

PROMPT = 2  # "four" is one token, its message another
ESTIMATE = 5  # of the same: one for the text, and what a template adds, which nobody here can know
TOKENS = 12
DEFINITIONS = Definitions(
    limits=(
        Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.WINDOW, period_ms=86_400_000, cap=1_000_000),
        Limit(owner="acme", metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY, cap=10),
    ),
    keys={"k1": Key(id="k1", verified=True)},
    models={"chat": Model(name="chat", context=4096)},
)


class SystemClock:
    """The machine's."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


class Simulated:
    """``penstock simulate-model`` in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log
        assert process.stdout is not None
        self.url = process.stdout.readline().split(" on ")[1].split(",")[0]

    def stop(self) -> None:
        """End it; its log is complete then."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)

    def produced(self) -> dict[str, dict[str, Any]]:
        """Its log's lines by reservation."""
        self.stop()
        lines = [json.loads(line) for line in self._log.read_text().splitlines()]
        return {line["request_id"]: line for line in lines}


@contextmanager
def simulated(folder: Path, name: str = "one", *options: str) -> Iterator[Simulated]:
    log = folder / f"{name}.jsonl"
    command = [sys.executable, "-m", "penstock", "simulate-model", "--port", "0", "--model", "real", "--log", str(log)]
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield Simulated(process, log)
        finally:
            process.kill()


class System:
    """A lane, its store, and the database behind it."""

    def __init__(self, lane: RealtimeLane, store: Any, health: Health, database: Path) -> None:
        self.lane = lane
        self.store = store
        self.health = health
        self._database = database

    def rows(self) -> list[Any]:
        """The ledger."""
        engine = open_engine(self._database)
        try:
            with engine.connect() as connection:
                columns = "kind, reservation, prompt_tokens, completion_tokens, usage_source"
                return list(connection.execute(text(f"SELECT {columns} FROM ledger")))
        finally:
            engine.dispose()

    async def assert_books_agree(self) -> None:
        """The counters and the ledger are equal, and nothing is held."""
        found = await self.store.apply(Inspect(organisation="acme", caller_now_ms=SystemClock().now_ms()))
        assert isinstance(found, Inspected)
        assert found.holds == ()
        used = next(limit.used for limit in found.limits if limit.metric == "tokens")
        assert used == sum(row.prompt_tokens + row.completion_tokens for row in self.rows())


@asynccontextmanager
async def system(folder: Path, *servers: Simulated, **bounds: float) -> AsyncIterator[System]:
    """The lane with all of ``servers`` for its one model."""
    clock, health, client = SystemClock(), Health(), HttpClient()
    database = folder / "penstock.db"
    model = ServedModel(
        name="chat",
        upstreams=tuple(Upstream(url=server.url) for server in servers),
        upstream_model="real",
        context=4096,
        max_tokens=64,
        **bounds,  # type: ignore[arg-type]
    )
    async with open_store(database, {"acme": DEFINITIONS}, version=1, now_ms=clock.now_ms) as store:
        lane = RealtimeLane(store, client, clock, {"chat": model}, observer=health)
        await lane.start()
        try:
            yield System(lane, store, health, database)
        finally:
            await lane.close()
            await client.close()


def request(faults: str, *, stream: bool, tokens: int = TOKENS) -> InferenceRequest:
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "four"}],
        "stream": stream,
        "metadata": {"simulate": f"tokens={tokens} {faults}"},
    }
    return InferenceRequest(
        organisation="acme", key="k1", key_mac="", route="chat.completions", model="chat", body=body, fingerprint="f",
        body_bytes=len(json.dumps(body)), prompts=1, outputs=1, max_tokens=None, stream=stream, include_usage=False,
        record=RequestRecord(request_id="r", received_at_s=time.monotonic()),
    )  # fmt: skip


async def outcome(lane: RealtimeLane, asked: InferenceRequest) -> str:
    """ "whole", "cut off" after some events, or the error's class."""
    try:
        reply = await lane.answer(asked)
    except PenstockError as error:
        return type(error).__name__
    if isinstance(reply, Reply):
        return "whole"
    shown = b"".join([events async for events in reply.events])
    return "whole" if shown.endswith(b"data: [DONE]\n\n") else "cut off"


WHOLE = ("posted", PROMPT, TOKENS, "upstream")
COUNTED = ("posted", ESTIMATE, TOKENS, "local")
CUT_AFTER_5 = ("posted", ESTIMATE, 5, "local")
PROMPT_ONLY = ("posted", ESTIMATE, 0, "local")
VOIDED = ("voided", 0, 0, "none")

FAULTS: list[tuple[str, bool, str, tuple[str, int, int, str]]] = [
    ("", True, "whole", WHOLE),
    ("", False, "whole", WHOLE),
    ("fault=slow_chunks:10", True, "whole", WHOLE),
    ("fault=no_done", True, "whole", WHOLE),
    ("fault=no_usage", True, "whole", COUNTED),
    ("fault=no_usage", False, "whole", COUNTED),
    ("fault=absurd_usage:negative", True, "whole", COUNTED),
    ("fault=absurd_usage:string", True, "whole", COUNTED),
    ("fault=absurd_usage:float", False, "whole", COUNTED),
    ("fault=absurd_usage:huge", False, "whole", COUNTED),
    ("fault=break_after:5", True, "cut off", CUT_AFTER_5),
    ("fault=hang_after:5", True, "cut off", CUT_AFTER_5),
    ("fault=error_after:5", True, "cut off", CUT_AFTER_5),
    ("fault=break_after:5", False, "UpstreamBroken", PROMPT_ONLY),
    ("fault=break_before", True, "UpstreamBroken", PROMPT_ONLY),
    ("fault=garbage_body", False, "UpstreamBroken", PROMPT_ONLY),
    ("fault=slow_first_byte:5000", True, "UpstreamTimeout", PROMPT_ONLY),
    ("fault=hang", False, "UpstreamTimeout", PROMPT_ONLY),
    ("fault=refuse:400", True, "UpstreamError", VOIDED),
    ("fault=refuse:429", True, "UpstreamError", VOIDED),
    ("fault=refuse:500", False, "UpstreamError", VOIDED),
]


def test_each_fault_is_answered_and_charged_as_the_table_says(tmp_path: Path) -> None:
    async def main(server: Simulated) -> None:
        async with system(tmp_path, server, first_byte_s=0.3, between_chunks_s=0.3) as penstock:
            for faults, stream, expected, charged in FAULTS:
                asked = request(faults, stream=stream)
                assert (faults, stream, await outcome(penstock.lane, asked)) == (faults, stream, expected)
                (row,) = [row for row in penstock.rows() if row.reservation == asked.record.reservation]
                found = (row.kind, row.prompt_tokens, row.completion_tokens, row.usage_source)
                assert (faults, stream, found) == (faults, stream, charged)
            await penstock.assert_books_agree()
            produced = server.produced()
            for row in penstock.rows():
                if row.usage_source == "upstream":
                    line = produced[row.reservation]
                    assert (row.prompt_tokens, row.completion_tokens) == (line["prompt"], line["completion"])

    with simulated(tmp_path) as server:
        asyncio.run(main(server))


def test_a_garbage_stream_is_an_error_and_never_charged_for_more_than_arrived(tmp_path: Path) -> None:
    async def main(server: Simulated) -> None:
        async with system(tmp_path, server) as penstock:
            asked = request("fault=garbage_stream", stream=True)
            assert await outcome(penstock.lane, asked) in ("cut off", "UpstreamBroken")
            (row,) = penstock.rows()
            assert (row.kind, row.usage_source) == ("posted", "local")
            assert row.completion_tokens <= server.produced()[row.reservation]["completion"]
            await penstock.assert_books_agree()

    with simulated(tmp_path) as server:
        asyncio.run(main(server))


def test_a_client_that_leaves_stops_the_server_and_pays_for_what_was_produced(tmp_path: Path) -> None:
    async def main(server: Simulated) -> None:
        async with system(tmp_path, server) as penstock:
            reply = await penstock.lane.answer(request("fault=slow_chunks:50", stream=True, tokens=60))
            assert not isinstance(reply, Reply)
            for _ in range(5):
                await anext(reply.events)
            await reply.events.aclose()
            (row,) = penstock.rows()
            line = server.produced()[row.reservation]
            assert line["outcome"] == "aborted"
            assert 4 <= row.completion_tokens <= line["completion"] <= row.completion_tokens + 2
            await penstock.assert_books_agree()

    with simulated(tmp_path) as server:
        asyncio.run(main(server))


def test_a_server_that_dies_is_left_for_the_other_and_each_request_is_billed_once(tmp_path: Path) -> None:
    async def main(one: Simulated, two: Simulated) -> None:
        async with system(tmp_path, one, two) as penstock:
            outcomes = []
            for count in range(20):
                if count == 8:
                    one.process.kill()
                    one.process.wait(20)
                outcomes.append(await outcome(penstock.lane, request("", stream=count % 2 == 0)))
            assert outcomes == ["whole"] * 20
            assert [row.kind for row in penstock.rows()] == ["posted"] * 20
            assert penstock.health.changes[2:] == [(one.url, False)]
            await penstock.assert_books_agree()
            charged = {row.reservation: row.completion_tokens for row in penstock.rows()}
            by_two = {name: line["completion"] for name, line in two.produced().items()}
            assert set(by_two) < set(charged)
            assert {name: charged[name] for name in by_two} == by_two

    with simulated(tmp_path) as one, simulated(tmp_path, "two") as two:
        asyncio.run(main(one, two))
