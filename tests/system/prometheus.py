"""A real Prometheus on a free loopback port, which watches the processes of a cluster each second."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError
from urllib.request import urlopen

import httpx2 as httpx
import yaml

from tests.system.services import Service, found_program

LISTENS = "0A"  # a socket's state, as the kernel writes it


class Prometheus(Service):
    """Watches ``targets``: addresses by the name of their job."""

    name: ClassVar[str] = "prometheus"

    def __init__(self, folder: Path, targets: Mapping[str, list[str]]) -> None:
        super().__init__(folder)
        self.program = found_program("prometheus")
        jobs = [{"job_name": job, "static_configs": [{"targets": found}]} for job, found in targets.items()]
        watched = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs}
        (self.folder / "prometheus.yaml").write_text(yaml.safe_dump(watched))

    def command(self) -> list[str]:
        return [
            self.program, f"--config.file={self.folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={self.folder / 'data'}", f"--web.listen-address=127.0.0.1:{self.port}",
        ]  # fmt: skip

    def is_ready(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def ask(self, path: str, **parameters: str | float) -> Any:
        """What its API answers; an error of a query is an error here."""
        answer = httpx.get(
            f"http://127.0.0.1:{self.port}/api/v1/{path}", params=parameters, timeout=30, trust_env=False
        )
        found = answer.json()
        assert found["status"] == "success", f"{parameters}: {found.get('error')}"
        return found["data"]


def operations_address(pid: int) -> str:
    """Where a process answers ``/metrics``: of the ports on which it listens, the one that does."""
    sockets = {os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir() if each.exists() or each.is_symlink()}
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    listening = [row for row in map(str.split, lines) if row[3] == LISTENS and f"socket:[{row[9]}]" in sockets]
    for row in listening:
        address = f"127.0.0.1:{int(row[1].partition(':')[2], 16)}"
        answer = httpx.get(f"http://{address}/metrics", timeout=10, trust_env=False)
        if answer.status_code == 200 and "# TYPE" in answer.text:
            return address
    raise AssertionError(f"process {pid} answers /metrics on none of {len(listening)} ports")
