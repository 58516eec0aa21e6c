"""``penstock top``: one screen for scripts, and a live one that leaves the terminal as it was."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from penstock.wiring.places import Places
from tests.cli.conftest import Run
from tests.cli.test_usage import Charged, charged
from tests.wiring.conftest import Operations, announced

__all__ = ["charged"]

PAGE = (
    'penstock_requests_total{organisation="acme",model="chat-small",route="r",lane="realtime",outcome="ok",'
    'status_class="2xx"} 7\npenstock_in_flight_requests 3\n'
)
SEEN_S = 60.0


@pytest.fixture
def page(charged: Charged, data: Path) -> Iterator[Operations]:
    """A service that answers its metrics, and an empty database beside it."""
    with announced(Places(data)) as operations:
        operations.path, operations.body = "/metrics", PAGE.encode()
        yield operations


def test_once_prints_one_screen_of_what_the_service_tells(run: Run, page: Operations) -> None:
    outcome = run("top", "--once", "--every", "200ms")
    assert outcome.code == 0, outcome.err
    assert "3 in flight" in outcome.out
    lines = [line.split()[0] for line in outcome.out.splitlines() if line]
    assert {"realtime", "queue", "chat-small", "embed-small", "acme"} <= set(lines)


def test_a_page_that_does_not_answer_is_told_and_the_rest_is_shown(run: Run, page: Operations) -> None:
    outcome = run("top", "--once", "--every", "200ms", "--metrics", page.url, "--metrics", "http://127.0.0.1:1")
    assert outcome.code == 0
    assert "! http://127.0.0.1:1/metrics does not answer" in outcome.out
    assert "3 in flight" in outcome.out


def test_without_a_terminal_only_once_is_possible(run: Run, page: Operations) -> None:
    outcome = run("top")
    assert (outcome.code, "add --once" in outcome.err) == (1, True)
    assert "wanted at least 200ms" in run("top", "--once", "--every", "1ms").err


@contextmanager
def in_terminal(configuration: Path, data: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command on a terminal of its own; its process, and our end of the terminal."""
    ours, theirs = pty.openpty()
    arguments = ["top", "--every", "200ms", "-c", str(configuration), "--data", str(data)]
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "NO_COLOR": "1", "TERM": "xterm"}, start_new_session=True,
    )  # fmt: skip
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def seen(terminal: int, wanted: bytes) -> bytes:
    """What it shows, until it has shown that."""
    shown = b""
    while wanted not in shown:
        readable, _, _ = select.select([terminal], [], [], SEEN_S)
        assert readable, f"{wanted!r} is not in {shown!r}"
        shown += os.read(terminal, 65536)
    return shown


@pytest.mark.slow
@pytest.mark.parametrize(("key", "code"), [(b"q", 0), (b"\x03", 0), (None, 128 + signal.SIGTERM)])
def test_it_leaves_the_terminal_as_it_was_however_it_ends(
    page: Operations, configuration: Path, data: Path, key: bytes | None, code: int
) -> None:
    with in_terminal(configuration, data) as (process, terminal):
        before = termios.tcgetattr(terminal)[3]
        shown = seen(terminal, b"3 in flight")
        assert b"\x1b[?1049h" in shown  # a screen of its own
        assert termios.tcgetattr(terminal)[3] & termios.ECHO == 0
        if key is None:
            process.send_signal(signal.SIGTERM)
        else:
            os.write(terminal, key)
        seen(terminal, b"\x1b[?1049l")
        assert process.wait(SEEN_S) == code
        assert termios.tcgetattr(terminal)[3] == before
