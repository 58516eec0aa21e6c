"""The log: one line for each request, whole, bounded, and silent about prompts and secrets."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from penstock.adapters.observing.lines import LineWriter
from penstock.adapters.observing.log import LogFormat, configure_log, resolve_format
from penstock.adapters.observing.request_log import RequestLog
from penstock.adapters.observing.vocabulary import Vocabulary
from penstock.ports import RequestRecord

NOW_MS = 1_700_000_000_123
RECORD = RequestRecord(
    request_id="r-1",
    route="chat.completions",
    organisation="acme",
    team="search",
    key="k1",
    model="chat-small",
    reservation="018bcfe56800000000000000000000ff",
    status=200,
    attempts=1,
    prompt_tokens=12,
    completion_tokens=34,
    usage_source="upstream",
    tokens_held=100,
    cost_nanos=22_200,
    first_token_ms=80.04,
    total_ms=123.456,
)


@contextmanager
def writing(path: Path, **options: Any) -> Iterator[LineWriter]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    writer = LineWriter(descriptor, **options)
    try:
        yield writer
    finally:
        writer.close()
        os.close(descriptor)


def lines_of(path: Path, *records: RequestRecord, as_text: bool = False) -> list[str]:
    names = Vocabulary(organisations={"acme"}, models={"chat-small"})
    with writing(path) as writer:
        log = RequestLog(writer, names, now_ms=lambda: NOW_MS, as_text=as_text)
        for record in records:
            log.started(record)
            log.finished(record)
    return path.read_text().splitlines()


def test_one_request_makes_one_json_line_that_says_what_happened(tmp_path: Path) -> None:
    (line,) = lines_of(tmp_path / "log", RECORD)
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.123Z",
        "level": "info",
        "service": "penstock",
        "event": "request",
        "request_id": "r-1",
        "route": "chat.completions",
        "lane": "realtime",
        "organisation": "acme",
        "team": "search",
        "key": "k1",
        "model": "chat-small",
        "reservation": "018bcfe56800000000000000000000ff",
        "status": 200,
        "outcome": "ok",
        "attempts": 1,
        "prompt_tokens": 12,
        "completion_tokens": 34,
        "usage_source": "upstream",
        "tokens_held": 100,
        "cost_nanos": 22_200,
        "first_token_ms": 80.0,
        "total_ms": 123.5,
    }


def test_a_server_error_is_logged_as_an_error(tmp_path: Path) -> None:
    (line,) = lines_of(tmp_path / "log", replace(RECORD, status=502, outcome="upstream_error", error="broke off"))
    assert json.loads(line)["level"] == "error"


@pytest.mark.parametrize("as_text", [False, True])
def test_a_prompt_or_a_secret_in_a_name_stays_out_of_the_log(tmp_path: Path, as_text: bool) -> None:
    secret = "psk_acme_k1_" + "canary" * 12
    records = (
        replace(RECORD, model="canary: my prompt sent as a model", status=404),
        replace(RECORD, organisation="canary-organisation", status=401, outcome="unauthenticated"),
        replace(RECORD, key=secret, status=401, outcome="unauthenticated"),
        replace(RECORD, route="/v1/canary?key=" + secret, status=404),
    )
    lines = lines_of(tmp_path / "log", *records, as_text=as_text)
    assert len(lines) == 4
    assert "canary" not in "\n".join(lines)


def test_a_line_stays_small_whatever_a_client_sends(tmp_path: Path) -> None:
    long = "x" * 100_000
    record = replace(
        RECORD,
        request_id=long,
        organisation=long,
        key=long,
        model=long,
        route=long,
        error=long,
        denied_by=long,
        reservation=long,
        extra={f"{long}{number}": long for number in range(100)},
    )
    (line,) = lines_of(tmp_path / "log", record)
    assert len(line) < 4_000


def test_a_newline_in_a_field_cannot_forge_a_second_line(tmp_path: Path) -> None:
    record = replace(RECORD, error='broke\n{"level":"forged"}', outcome="upstream_error")
    assert len(lines_of(tmp_path / "json", record)) == 1
    assert len(lines_of(tmp_path / "text", record, as_text=True)) == 1


def test_text_is_one_readable_line(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "log", RECORD, as_text=True) == [
        "22:13:20  200  chat.completions  acme  chat-small  12+34 tokens of 100 held  $0.000022  "
        "first token 80 ms  124 ms"
    ]


def test_an_ejection_and_its_end_have_lines_of_their_own_and_the_start_has_none(tmp_path: Path) -> None:
    with writing(tmp_path / "log") as writer:
        log = RequestLog(writer, Vocabulary(organisations=(), models=()), now_ms=lambda: NOW_MS)
        for healthy in (True, False, True, True):
            log.upstream_changed("chat-small", "http://a:8000", healthy)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("upstream_ejected", "warning"),
        ("upstream_back", "info"),
    ]
    assert {(line["model"], line["upstream"]) for line in lines} == {("chat-small", "http://a:8000")}


def test_close_writes_every_line_in_order(tmp_path: Path) -> None:
    with writing(tmp_path / "log", flush_every_s=3600) as writer:
        for number in range(10_000):
            writer.write(b"%d\n" % number)
    assert (tmp_path / "log").read_text().splitlines() == [str(number) for number in range(10_000)]


def test_an_urgent_line_is_written_before_the_next_flush() -> None:
    reading, writing_end = os.pipe()
    writer = LineWriter(writing_end, flush_every_s=3600)
    writer.write(b"now\n", urgent=True)
    assert os.read(reading, 100) == b"now\n"
    writer.close()
    os.close(reading)
    os.close(writing_end)


def test_a_stalled_reader_costs_lines_and_never_blocks_the_service() -> None:
    reading, writing_end = os.pipe()
    writer = LineWriter(writing_end, flush_every_s=3600, pending_bytes_max=200_000)
    for _ in range(400):
        writer.write(b"x" * 999 + b"\n", urgent=True)
    assert writer.dropped >= 400 - 200 - 65  # 200 pending, at most a pipe's 64 kB written
    assert writer.dropped < 400
    os.close(reading)
    writer.close()
    os.close(writing_end)


def test_a_stream_that_nobody_reads_any_more_is_counted_not_raised() -> None:
    reading, writing_end = os.pipe()
    os.close(reading)
    writer = LineWriter(writing_end, flush_every_s=3600)
    writer.write(b"lost\n")
    writer.close()
    assert writer.dropped == 1
    os.close(writing_end)


@pytest.fixture
def _logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("_logging_restored")
def test_the_services_own_messages_share_stream_and_format(tmp_path: Path) -> None:
    with writing(tmp_path / "log") as writer:
        configure_log(writer, LogFormat.JSON)
        logger = logging.getLogger("penstock.lanes")
        logger.info("started on port %d", 8000, extra={"organisations": 3})
        try:
            raise ValueError("bad")
        except ValueError:
            logger.exception("a loop went on")
        logging.getLogger("uvicorn.access").info("silenced")
    first, second = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert (first["event"], first["level"], first["organisations"]) == ("started on port 8000", "info", 3)
    assert second["level"] == "error"
    assert "ValueError: bad" in second["exception"]


@pytest.mark.usefixtures("_logging_restored")
def test_a_message_that_cannot_be_formatted_does_not_stop_the_service(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with writing(tmp_path / "log") as writer:
        configure_log(writer, LogFormat.TEXT)
        logging.getLogger("penstock").warning("%d", "not a number")
        logging.getLogger("penstock").warning("after", extra={"limit": "acme/tokens/day"})
    assert (tmp_path / "log").read_text().endswith(" warning after  limit=acme/tokens/day\n")
    assert "not a number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wanted", "is_terminal", "got"),
    [
        (LogFormat.AUTO, True, LogFormat.TEXT),
        (LogFormat.AUTO, False, LogFormat.JSON),
        (LogFormat.JSON, True, LogFormat.JSON),
        (LogFormat.TEXT, False, LogFormat.TEXT),
    ],
)
def test_auto_means_text_on_a_terminal_and_json_elsewhere(wanted: LogFormat, is_terminal: bool, got: LogFormat) -> None:
    assert resolve_format(wanted, is_terminal=is_terminal) is got
