"""Penstock's own processes as tests run them: on free ports, with their state and logs in the test's folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from tests.system.services import STOP_S, free_port, wait_until

START_S = 60.0


class Program:
    """One ``penstock`` command as a child process."""

    start_s = START_S
    stop_s = STOP_S

    def __init__(self, folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = folder / "log"
        self._arguments = arguments
        self.environment = dict(environment or {})
        self.process: subprocess.Popen[bytes] | None = None

    def is_ready(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "penstock", *self._arguments], cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env={**os.environ, **self.environment},
            )  # fmt: skip
        wait_until(self.is_ready, self.process, self.log, bound_s=self.start_s)

    def stop(self) -> int:
        """End it in order; its exit code."""
        assert self.process is not None, "it was never started"
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(self.stop_s)

    def kill(self) -> None:
        assert self.process is not None, "it was never started"
        self.process.kill()
        self.process.wait(STOP_S)


class SimulatedModel(Program):
    """``penstock simulate-model``; ``produced`` is its own log."""

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        self.port = port or free_port()
        self.produced_log = folder / "produced.jsonl"
        super().__init__(folder, "simulate-model", "--port", str(self.port), "--log", str(self.produced_log), *options)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def is_ready(self) -> bool:
        return answers_200(f"{self.url}/health")

    def produced(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.produced_log.read_text().splitlines()]


class Announced(Program):
    """``penstock serve`` on free ports: found by what it announces in its data directory."""

    def __init__(self, folder: Path, data: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.data = data
        super().__init__(
            folder, "serve", "--port", "0", "--operations-port", "0", "--log-format", "json", "--data", str(data),
            *arguments, environment=environment,
        )  # fmt: skip

    @property
    def running(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.data / "serve.json").read_text())
        return told

    @property
    def url(self) -> str:
        return str(self.running["url"])

    def is_ready(self) -> bool:
        assert self.process is not None
        try:
            return bool(self.running["pid"] == self.process.pid)
        except (FileNotFoundError, ValueError):
            return False

    @property
    def key(self) -> str:
        """The key made at the first start, as a newcomer finds it on the screen."""
        found = re.search(r"OPENAI_API_KEY=(psk_\S+)", self.log.read_text())
        assert found is not None, self.log.read_text()
        return found[1]


class Service(Announced):
    """``penstock serve`` with a model ``m``, and what else the test says of it."""

    def __init__(
        self,
        folder: Path,
        model_url: str,
        *,
        limits: tuple[str, ...] = (),
        model: str = "context: 4096",
        models: str = "",
        plan: str = "",
        queue: str = "",
        server: str = "",
        tracing: str = "",
        organisations: tuple[str, ...] = ("acme",),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "penstock.yaml").write_text(
            f"models: {{m: {{upstream: '{model_url}', price: {{input: 1, output: 2}}, {model}}}, {models}}}\n"
            f"plans: {{p: {{limits: {json.dumps(limits)}, {plan}}}}}\n"
            f"organisations: {{{', '.join(f'{name}: {{plan: p}}' for name in organisations)}}}\n"
            f"queue: {{{queue}}}\n"
            f"server: {{data_directory: data, {server}}}\n"
            f"tracing: {{{tracing}}}\n"
        )
        super().__init__(folder, folder / "data", environment=environment)

    def command(self, *arguments: str, expect: int = 0) -> str:
        """Run another command on the same configuration and data; what it printed."""
        return self._ended(arguments, expect=expect).stdout

    def refused(self, *arguments: str) -> str:
        """Run a command that must end with 1; what it said on standard error."""
        return self._ended(arguments, expect=1).stderr

    def _ended(self, arguments: tuple[str, ...], *, expect: int) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "penstock", *arguments], cwd=self.folder, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == expect, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def audited(self) -> dict[str, Any]:
        """What the audit says of the one organisation; it must be clean."""
        report = json.loads(self.command("audit", "--json"))
        (organisation,) = report["organisations"]
        assert organisation["differences"] == []
        return dict(organisation)


def answers_200(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
