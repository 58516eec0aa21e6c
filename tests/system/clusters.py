"""``penstock up`` as tests run it, with a simulated model: every process and service of a cluster, to be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx2 as httpx
import yaml

from penstock.config import load
from penstock.quota.events import Event
from penstock.wiring.places import Places
from penstock.wiring.rehearsing import make_keys, read_ledger
from tests import polling
from tests.system.deployments import ENDS
from tests.system.programs import Program, SimulatedModel
from tests.system.services import free_port

BOUND_S = 180.0
until = partial(polling.until, bound_s=BOUND_S)  # ten processes
DRAINED_S = 60.0
ORGANISATION = "acme"
LIMITS = ("100M tokens/day", "1k concurrent")


class Cluster(Program):
    """``penstock up`` with models ``m`` and ``n`` on a simulated model server; a ``Deployment``."""

    start_s = 180.0  # ten processes, of which several are slow to start on a busy machine
    stop_s = 90.0

    def __init__(
        self,
        folder: Path,
        *model_options: str,
        limits: tuple[str, ...] = LIMITS,
        tracing: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        queue: Mapping[str, Any] | None = None,
        capacity: Mapping[str, int] | None = None,
        generic: Mapping[str, Any] | None = None,
    ) -> None:
        names = ("--model", "m", "--model", "n", "--model", "g")
        self.model = model = SimulatedModel(folder / "model", *names, *model_options)
        self.data = folder / "cluster"
        self.ports = {"port": free_port(), "operations_port": free_port()}
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder, *folder.parents):  # pytest makes its folders for their owner alone
            if place.stat().st_uid == os.getuid() and not place.stat().st_mode & 0o001:
                place.chmod(place.stat().st_mode | 0o001)
        served = {"upstream": model.url, "context": 4096, "max_tokens": 64, "price": {"input": 1, "output": 2}}
        served["managed_by"] = "api"
        if capacity:  # of each model: then the keeper says how many are needed
            served["capacity"] = dict(capacity)
        described = {
            "models": {"m": served, "n": served} | ({"g": served | dict(generic)} if generic else {}),
            "plans": {"p": {"limits": list(limits)}},
            "organisations": {ORGANISATION: {"plan": "p"}, "other": {"plan": "p"}},
            "server": self.ports,
            "queue": {"shards": 3, **(queue or {})},
            "tracing": tracing or {},
        }
        (folder / "penstock.yaml").write_text(yaml.safe_dump(described))
        super().__init__(folder, "up", "--data", str(self.data), environment=environment)
        self.keys: dict[str, str] = {}

    def start(self) -> None:
        self.model.start()
        super().start()
        self.keys = make_keys(self.configuration, Places(self.data))
        for key in self.keys.values():
            with self.client(key) as client:
                until(lambda client=client: client.get("/v1/models").status_code == 200)

    def stop(self) -> int:
        try:
            return super().stop()
        finally:
            self.model.stop()

    def key(self, organisation: str = ORGANISATION) -> str:
        return self.keys[organisation]

    def is_ready(self) -> bool:
        return (self.data / "serve.json").exists()

    @property
    def files(self) -> list[Path]:
        return [self.folder / "penstock.yaml", self.data / "cluster.yaml"]

    @property
    def configuration(self) -> Any:
        return load(self.files)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['port']}"

    @property
    def pids(self) -> dict[str, int]:
        """Of every process and service, by name."""
        return dict(json.loads((self.data / "processes.json").read_text()))

    def client(self, key: str | None = None) -> httpx.Client:
        bearer = {"authorization": f"Bearer {key or self.keys[ORGANISATION]}"}
        return httpx.Client(base_url=self.url, headers=bearer, timeout=60, trust_env=False)

    def kill_one(self, name: str) -> None:
        """SIGKILL, and what it started with it; wait until it runs again."""
        pid = self.pids[name]
        os.killpg(pid, signal.SIGKILL)
        until(lambda: self.pids.get(name, pid) != pid)

    def command(self, *arguments: str, expect: int = 0) -> str:
        files = [argument for file in self.files for argument in ("-c", str(file))]
        done = subprocess.run(
            [sys.executable, "-m", "penstock", *arguments, *files], cwd=self.folder, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=180, check=False,
        )  # fmt: skip
        assert done.returncode == expect, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def submit(self, client: httpx.Client, *, content: str = "hello", simulate: str = "tokens=20", **body: Any) -> str:
        """Hand one job in; its id, once it was accepted."""
        asked = {"model": "m", "messages": [{"role": "user", "content": content}], "metadata": {"simulate": simulate}}
        answer = client.post("/v1/chat/completions", json=asked | body, headers={"prefer": "respond-async"})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def ended(self, client: httpx.Client, job: str) -> dict[str, Any]:
        """Wait for a job's end."""
        ends_at = time.monotonic() + BOUND_S
        while time.monotonic() < ends_at:
            try:
                answer = client.get(f"/v1/jobs/{job}", params={"wait": "10s"})
            except httpx.TransportError:
                continue  # the API service was killed, and comes back
            if answer.status_code == 200 and answer.json()["status"] in ENDS:
                return dict(answer.json())
        raise AssertionError(f"job {job} did not end within {BOUND_S} s: {answer.text}")

    def audited(self, *, bound_s: float = DRAINED_S) -> list[Event]:
        """Wait until nothing is held and all is written; the audit must be clean. The ledger's rows."""

        def is_still() -> bool:
            report = json.loads(self.command("audit", "--json"))
            assert [each["differences"] for each in report["organisations"]] == [[], []]
            return not any(each["holds"] or each["unwritten"] for each in report["organisations"])

        until(is_still, bound_s=bound_s)
        return list(read_ledger(self.configuration, Places(self.data)))

    def charges(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for event in read_ledger(self.configuration, Places(self.data)):
            if event.charge.requests:
                found.setdefault(event.reservation, []).append(event.charge.tokens)
        return found


def billed(events: list[Event]) -> Counter[str]:
    """How often each reservation was charged."""
    return Counter(event.reservation for event in events if event.charge.requests)
