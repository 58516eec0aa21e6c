"""What a supervisor that was killed left running: found by what it wrote down, and ended before a new one begins.

A process counts as left over only if its environment says that it was started for this very directory: process numbers
are used again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from penstock.errors import ConfigurationError

MARK = "PENSTOCK_SUPERVISED_IN"
ENDS_S = 20.0
LOOK_S = 0.05

_log = logging.getLogger(__name__)


@contextmanager
def sole_supervisor(folder: Path) -> Iterator[None]:
    """Hold the lock that makes this process the one supervisor in a directory; the kernel frees it, however this ends.

    Raises:
        ConfigurationError: Another process holds it.
    """
    descriptor = os.open(folder / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
            fix = "stop it, or name another directory with --data"
            raise ConfigurationError((f"{folder}: in use by process {other}; {fix}",)) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def end_leftovers(pids: Mapping[str, int], folder: Path) -> list[str]:
    """End the processes that were started for ``folder`` and still run; their names. Blocks until they are gone.

    Args:
        pids: By name, as the supervisor last wrote them; the last started last.
    """
    ended = []
    for name, pid in reversed(list(pids.items())):
        if not _is_ours(pid, folder):
            continue
        _log.warning("%s, process %d, was left over by a supervisor that was killed; ending it", name, pid)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGTERM)
        ends_at_s = time.monotonic() + ENDS_S
        while _is_ours(pid, folder) and time.monotonic() < ends_at_s:
            time.sleep(LOOK_S)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        ended.append(name)
    return ended


def _is_ours(pid: int, folder: Path) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"{MARK}={folder}".encode() in environment
