"""Runs a Bento stream in Bento's place, and kills it between two of its writes if it is told to.

Our own processes have named points in their code. Bento has none, but each of its writes goes over a link and is
answered: a point is such an answer, which never arrives, since the stream is dead by then. So of what it wrote
everything is there, and of what it would have written next, nothing.

Started as ``penstock up`` starts Bento, with ``PENSTOCK_CRASH_AT=@<file>`` as ``penstock.wiring.crash`` reads it. If
the file names no point of the stream, this becomes Bento at once; else a proxy stands on the link of the point.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from penstock.wiring.crash import VARIABLE
from tests.system.fault_proxy import FaultProxy

KEPT_BYTES: Final = 4096
CONFIRMED: Final = b"\x00\x3c\x00\x50"  # AMQP's basic.ack
REDIS, RABBITMQ = "PENSTOCK_REDIS_URL", "PENSTOCK_RABBITMQ_URL"
POSTGRESQL, EXECUTOR = "PENSTOCK_POSTGRESQL_URL", "PENSTOCK_EXECUTOR_URL"


@dataclass(frozen=True, slots=True)
class Point:
    """The answer that contains ``answered`` to what contains ``asked``, on the link that a variable names."""

    link: str
    asked: bytes
    answered: bytes


POINTS: Final = {
    "gateway": {
        "gateway-reserved": Point(REDIS, b"penstock_reserve", b"Reserved"),
        "gateway-published": Point(RABBITMQ, b"penstock.jobs", CONFIRMED),
    },
    "worker": {
        "worker-executed": Point(EXECUTOR, b"POST /execute", b"HTTP/1.1 200"),
        "worker-published": Point(RABBITMQ, b"penstock.results", CONFIRMED),
        "worker-told": Point(REDIS, b"penstock_published", b"answer"),
    },
    "collector": {
        "collector-stored": Point(POSTGRESQL, b"INSERT INTO results", b"SELECT "),
        "collector-settled": Point(REDIS, b"penstock_settle", b"answer"),
        "collector-noted": Point(POSTGRESQL, b"pg_notify", b"SELECT "),
    },
    "dead_letters": {
        "dead-letters-stored": Point(POSTGRESQL, b"INSERT INTO results", b"SELECT "),
        "dead-letters-voided": Point(REDIS, b"penstock_void", b"answer"),
        "dead-letters-noted": Point(POSTGRESQL, b"pg_notify", b"SELECT "),
    },
}


class Watch:
    """Listens on a link, and calls ``die`` before the answer of the point passes for the ``count``-th time."""

    def __init__(self, point: Point, count: int, die: Callable[[], None]) -> None:
        self._point = point
        self._left = count
        self._die = die
        self._asked: dict[int, bytes] = {}
        self._answered: dict[int, bytes] = {}

    def passing(self, connection: int, is_answer: bool, data: bytes) -> None:
        """Some bytes of a connection, one way or the other."""
        point = self._point
        if not is_answer:
            said = self._asked.get(connection, b"") + data
            self._asked[connection] = point.asked if point.asked in said else said[-len(point.asked) :]
        elif point.asked in self._asked.get(connection, b""):
            said = self._answered.get(connection, b"")[-KEPT_BYTES:] + data
            self._answered[connection] = said
            if point.answered in said:
                self._answered[connection] = self._asked[connection] = b""
                self._left -= 1
                if self._left == 0:
                    self._die()


def told(environment: str) -> tuple[Path, str, int] | None:
    """The file that names a point, the point, and how often it is passed by; None if none is named."""
    file = Path(environment.removeprefix("@"))
    if not environment.startswith("@") or not file.exists():
        return None
    point, _, count = file.read_text().strip().partition(":")
    return file, point, int(count)


def run(command: list[str], file: Path, point: Point, count: int) -> int:
    """Run the stream behind a proxy until it ends, or until this kills it and itself."""
    children: list[subprocess.Popen[bytes]] = []

    def die() -> None:
        file.unlink(missing_ok=True)
        for child in children:
            child.kill()
        os.kill(os.getpid(), signal.SIGKILL)

    url = os.environ[point.link]
    port = re.search(r"127\.0\.0\.1:(\d+)", url)
    assert port is not None, url.rpartition("@")[2]
    proxy = FaultProxy(int(port[1]), passing=Watch(point, count, die).passing)
    proxy.start()
    children.append(
        subprocess.Popen(command, env=os.environ | {point.link: url.replace(f":{port[1]}", f":{proxy.port}")})
    )

    def stop(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            children[0].send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    return children[0].wait()


def main() -> int:
    """The program: Bento's path, then what Bento is given."""
    command = sys.argv[1:]
    named = told(os.environ.get(VARIABLE, ""))
    point = None if named is None else POINTS[Path(command[-1]).stem].get(named[1])
    if named is None or point is None:
        os.execv(command[0], command)
    return run(command, named[0], point, named[2])


if __name__ == "__main__":
    sys.exit(main())
