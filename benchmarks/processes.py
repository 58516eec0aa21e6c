"""Programs under measurement: start, wait until they answer, read their CPU time from /proc, stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat after the program's name, which may hold spaces; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    """``pid`` and every process below it."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat_fields(int(entry.name))):
            below.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:
        found.extend(below.get(parent, ()))
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds, user and system, of a process, of all below it, and of those below it that have ended."""
    ticks = 0
    for one in descendants(pid):
        if fields := stat_fields(one):
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / TICKS_PER_S


def settled_cpu_s(pid: int, *, quiet_s: float = 0.3, wait_s: float = 10.0) -> float:
    """CPU seconds once the process has come to rest, so that work done after the answers is counted too."""
    before = cpu_s(pid)
    for _ in range(int(wait_s / quiet_s)):
        time.sleep(quiet_s)
        now = cpu_s(pid)
        if now - before <= 2 / TICKS_PER_S:
            return now
        before = now
    return before


def free(port: int) -> bool:
    """Nobody listens on this port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@contextmanager
def running(
    command: Sequence[str],
    *,
    port: int | None,
    folder: Path,
    environment: Mapping[str, str],
    ready_s: float = 120.0,
    stop_s: float = 20.0,
) -> Iterator[int]:
    """Run a server until the block ends; gives its process id once it accepts connections on ``port``, if it has one.

    Raises:
        SystemExit: The port is taken, or the program ended or did not listen in time; its output is shown.
    """
    if port is not None and not free(port):
        raise SystemExit(f"port {port} is taken: stop what listens there, then run this again")
    name = Path(command[0]).name
    log = folder / "output.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        until = time.monotonic() + ready_s
        while port is not None and free(port):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{name} does not listen on port {port}; its last words:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(stop_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
