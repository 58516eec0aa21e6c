"""What stands for a container's image where none can be pulled: this machine's installation, in a root of its own.

Of the project's images the Dockerfile's last stage says how a process is started; of the others, their documentation.
A root holds what is named here and nothing else, and is read-only.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.chart.rendering import ROOT, TOOLS

SYSTEM: Final = ("/usr", "/bin", "/lib", "/lib64", "/sbin")
"""Programs and libraries of this machine."""
SYSTEM_FILES: Final = (
    "/etc/alternatives", "/etc/ssl", "/etc/nsswitch.conf", "/etc/ld.so.cache",
)  # fmt: skip
ACCOUNTS: Final = {
    "/etc/passwd": "root:x:0:0::/root:/bin/sh\nstore:x:999:999::/:/bin/sh\n",
    "/etc/group": "store:x:999:\n",
}
POSTGRESQL_START: Final = """#!/bin/sh
# What the image's own entry point does at the first start, with the variables that its page documents.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb -D "$PGDATA" -U "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" -A scram-sha-256 -E UTF8 --locale C -N
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
    sed -i '/^local/s/scram-sha-256/trust/' "$PGDATA/pg_hba.conf"
    echo "create database $POSTGRES_DB" | postgres --single -D "$PGDATA" postgres
fi
exec postgres -D "$PGDATA" -c "listen_addresses=*"
"""
RABBITMQ_START: Final = '#!/bin/sh\nexec "$@"\n'
STARTED_BY: Final = "/opt/image/docker-entrypoint.sh"


@dataclass(frozen=True, kw_only=True)
class Image:
    """How a container of it starts, and what it sees.

    Attributes:
        seen: Files and folders by their path in the container; the value is where they are on this machine.
        written: Files by their path in the container, and their text; programs.
    """

    entry: tuple[str, ...]
    user: int = 0
    folder: str = "/"
    environment: Mapping[str, str] = field(default_factory=dict)
    seen: Mapping[str, Path] = field(default_factory=dict)
    written: Mapping[str, str] = field(default_factory=dict)


def image(name: str) -> Image:
    """What stands for an image as the chart names it."""
    known = {
        "penstock": _penstock, "penstock-local": _penstock, "penstock-bento": _bento,
        "redis": _redis, "postgres": _postgresql, "rabbitmq": _rabbitmq,
    }  # fmt: skip
    return known[re.split("[:@]", name)[0]]()


def _system() -> dict[str, Path]:
    return {path: Path(path) for path in (*SYSTEM, *SYSTEM_FILES) if Path(path).exists()}


def _penstock() -> Image:
    """The installation that runs the tests, where the image has its own; started as the Dockerfile says."""
    installed = {path: Path(path) for path in {sys.prefix, sys.base_prefix, str(ROOT / "src"), str(ROOT / "config")}}
    program = {"/opt/penstock/bin/penstock": Path(sys.prefix, "bin", "penstock")}
    return _built("penstock.Dockerfile", {**_system(), **installed, **program})


def _bento() -> Image:
    """One program and its files, as in the image; no shell, no library."""
    bento = TOOLS / "bento"
    if not bento.is_file():
        pytest.skip("Bento is not built; `make bento` builds it")
    certificates = "/etc/ssl/certs/ca-certificates.crt"
    seen = {"/bento": bento, "/etc/penstock/bento": ROOT / "config" / "bento", certificates: Path(certificates)}
    return _built("bento.Dockerfile", {each: path for each, path in seen.items() if path.exists()})


def _built(file: str, seen: Mapping[str, Path]) -> Image:
    """What the last stage of a Dockerfile says."""
    last = (ROOT / "manifests" / "images" / file).read_text().rsplit("\nFROM ", 1)[1]
    said = dict(re.findall(r"^(USER|WORKDIR|ENV|ENTRYPOINT) (.*)$", last, re.MULTILINE))
    return Image(
        entry=tuple(json.loads(said["ENTRYPOINT"])), user=int(said["USER"].partition(":")[0]), seen=seen,
        folder=said.get("WORKDIR", "/"), environment=dict(each.split("=", 1) for each in said.get("ENV", "").split()),
    )  # fmt: skip


def _redis() -> Image:
    return Image(entry=(STARTED_BY,), environment={"PATH": "/usr/bin:/bin"}, seen=_system(), written=ACCOUNTS)


def _postgresql() -> Image:
    (programs,) = Path("/").glob("usr/lib/postgresql/*/bin")
    return Image(
        entry=(STARTED_BY, "postgres"), environment={"PATH": f"{programs}:/usr/bin:/bin"},
        seen=_system(), written={**ACCOUNTS, STARTED_BY: POSTGRESQL_START},
    )  # fmt: skip


def _rabbitmq() -> Image:
    """The management plugin is on in the image that the chart names, and its programs are on the PATH."""
    (programs,) = Path("/").glob("usr/lib/rabbitmq/lib/*/sbin")
    return Image(
        entry=(STARTED_BY, "rabbitmq-server"),
        environment={
            "PATH": f"{Path(STARTED_BY).parent}:{programs}:/usr/bin:/bin", "HOME": "/var/lib/rabbitmq",
            "RABBITMQ_LOGS": "-", "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2",
        },
        seen=_system(),
        written={**ACCOUNTS, STARTED_BY: RABBITMQ_START, "/etc/rabbitmq/enabled_plugins": "[rabbitmq_management].\n"},
    )  # fmt: skip
