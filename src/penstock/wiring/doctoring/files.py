"""Checks of this machine's files: secrets, the spool, and how much room there is."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from penstock.config import read_secret
from penstock.errors import ConfigurationError
from penstock.lanes.diagnosis import Finding, warning, wrong
from penstock.wiring.doctoring.patient import Patient, cause_and_fix
from penstock.wiring.doctoring.references import secrets_in

OTHERS = 0o037
"""What a secret's file may not allow: anything to everyone, more than reading to its group."""
FREE_BYTES_MIN = 1_000_000_000
FREE_SHARE_MIN = 0.05
SPOOL_OLD_MS = 600_000


async def check_secrets(patient: Patient) -> list[Finding]:
    """Every reference leads to a secret, and nobody else may read its file."""
    return list(_secrets(patient))


def _secrets(patient: Patient) -> Iterator[Finding]:
    for path, reference in secrets_in(patient.configuration):
        try:
            read_secret(reference, environment=patient.environment, what=path)
        except ConfigurationError as error:
            what, fix = cause_and_fix(error.problems[0])
            yield warning("secrets", f"{what}; a process that needs it does not start here", fix)
        if reference.file is not None:
            yield from _rights(path, Path(reference.file))
    for own in (patient.places.pepper, patient.places.database, patient.places.spool):
        if own.exists() and not stat.S_IMODE(patient.places.data.stat().st_mode) & 0o001:
            continue  # nobody else reaches what is in the directory
        yield from _rights("the data directory", own)


def _rights(path: str, file: Path) -> Iterator[Finding]:
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
    except OSError:
        return  # told where it is read
    if mode & OTHERS:
        yield wrong("secrets", f"{path}: {file} has mode {mode:04o}, so others may use it", f"chmod 600 {file}")


async def check_spool(patient: Patient) -> list[Finding]:
    """No end of a reservation waits on the disk for a store that does not take it."""
    spool = patient.places.spool
    try:
        waiting = sum(1 for line in spool.read_bytes().splitlines() if line)
        changed_ms = round(spool.stat().st_mtime * 1000)
    except FileNotFoundError:
        return []
    if not waiting:
        return []
    age_ms = max(0, patient.clock.now_ms() - changed_ms)
    what = f"{waiting} ends of requests wait in {spool}, the last since {age_ms // 1000} s; they are not billed yet"
    if age_ms < SPOOL_OLD_MS:
        return [warning("spool", what, "they are told Redis as soon as it answers; if Redis is well, see the log")]
    return [wrong("spool", what, f"start `penstock serve --data {patient.places.data}`, which tells them Redis")]


async def check_disk(patient: Patient) -> list[Finding]:
    """The data directory's disk has room."""
    if not patient.places.data.exists():
        return []
    found = shutil.disk_usage(patient.places.data)
    return judged(str(patient.places.data), free_bytes=found.free, total_bytes=found.total)


def judged(name: str, *, free_bytes: int, total_bytes: int) -> list[Finding]:
    """What so little room means.

    Example:
        >>> [each.what for each in judged("/data", free_bytes=900_000_000, total_bytes=90_000_000_000)]
        ['/data: 900 MB free of 90,000']
    """
    if free_bytes >= min(FREE_BYTES_MIN, FREE_SHARE_MIN * total_bytes):
        return []
    what = f"{name}: {free_bytes // 1_000_000:,} MB free of {total_bytes // 1_000_000:,}"
    return [warning("disk", what, "free the disk; when it is full, admissions stop and ends can no longer be spooled")]
