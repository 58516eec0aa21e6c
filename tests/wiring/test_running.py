"""Asking the service that runs on a data directory, over a real socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.errors import StoreUnavailable
from penstock.wiring.places import Places
from penstock.wiring.running import Running, announce, ask, retract
from tests.wiring.conftest import Operations, announced


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


@pytest.fixture
def operations(places: Places) -> Iterator[Operations]:
    with announced(places) as server:
        server.body = b"found"
        yield server


@pytest.mark.usefixtures("operations")
def test_the_service_that_announced_itself_is_asked(places: Places) -> None:
    assert ask(places, "/audit") == b"found"


@pytest.mark.usefixtures("operations")
def test_a_proxy_in_the_environment_is_not_used(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert ask(places, "/audit") == b"found"


@pytest.mark.usefixtures("operations")
def test_nobody_is_asked_once_the_service_has_stopped(places: Places) -> None:
    retract(places)
    retract(places)
    assert ask(places, "/audit") is None
    assert list(places.data.iterdir()) == []


def test_a_file_left_by_a_killed_service_counts_as_none(places: Places) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        announce(places, Running(pid=os.getpid(), url=url, operations_url=url))
        assert ask(places, "/audit") is None


@pytest.mark.usefixtures("operations")
def test_a_service_that_fails_is_not_taken_for_none(places: Places) -> None:
    with pytest.raises(StoreUnavailable, match="answered 503 to /other"):
        ask(places, "/other")


def test_a_file_that_is_no_announcement_is_an_error(places: Places) -> None:
    places.running.write_text("{}")
    with pytest.raises(StoreUnavailable, match="restart the service"):
        ask(places, "/audit")
