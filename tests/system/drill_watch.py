"""A real Prometheus that watches a cluster by the project's own rules, in which time passes faster."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import yaml

from tests.system.clusters import Cluster
from tests.system.drill_clock import hastened
from tests.system.programs import answers_200
from tests.system.services import Service, found_program

RULES: Final = Path(__file__).parents[2] / "config/prometheus/rules"
OURS: Final = {"api": "penstock-api", "keeper": "penstock-keeper", "executor": "penstock-executor"}


@dataclass(frozen=True, slots=True, order=True)
class Alert:
    """One that is pending or firing."""

    name: str
    labels: tuple[tuple[str, str], ...]
    is_firing: bool


class Prometheus(Service):
    """Prometheus on a free port, with scrapes and evaluations each second.

    Args:
        targets: Addresses by job.
        factor: How much faster time passes.
    """

    name = "prometheus"

    def __init__(self, folder: Path, targets: Mapping[str, Iterable[str]], *, factor: float) -> None:
        super().__init__(folder)
        for file in RULES.glob("*.yaml"):
            rules = hastened(yaml.safe_load(file.read_text()), factor=factor)
            (self.folder / f"rules-{file.name}").write_text(yaml.safe_dump(rules))
        described = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules-*.yaml"],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
                for job, addresses in targets.items()
            ],
        }
        (self.folder / "prometheus.yaml").write_text(yaml.safe_dump(described))

    def command(self) -> list[str]:
        return [
            found_program("prometheus"), f"--config.file={self.folder / 'prometheus.yaml'}", "--log.level=warn",
            f"--storage.tsdb.path={self.folder / 'data'}", f"--web.listen-address=127.0.0.1:{self.port}",
        ]  # fmt: skip

    def is_ready(self) -> bool:
        return answers_200(f"http://127.0.0.1:{self.port}/-/ready")

    def ask(self, path: str) -> Any:
        with urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}", timeout=30) as answer:
            return json.load(answer)["data"]

    def alerts(self) -> list[Alert]:
        """Those that are pending or firing."""
        return sorted(
            Alert(
                each["labels"].pop("alertname"),
                tuple(sorted((k, v) for k, v in each["labels"].items() if k not in ("severity", "team"))),
                each["state"] == "firing",
            )
            for each in self.ask("alerts")["alerts"]
        )

    def missing(self) -> list[str]:
        """Targets that do not answer."""
        return [
            f"{each['labels']['job']}: {each['lastError']}"
            for each in self.ask("targets")["activeTargets"]
            if each["health"] != "up"
        ]


def targets(cluster: Cluster) -> dict[str, list[str]]:
    """Where each process and the broker of a cluster tell their metrics: by job."""
    found: dict[str, list[str]] = {}
    for name, pid in cluster.pids.items():
        arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        environment = dict(
            line.partition("=")[::2] for line in Path(f"/proc/{pid}/environ").read_text().split("\0") if line
        )
        if name == "api":
            found["penstock-api"] = [f"127.0.0.1:{cluster.ports['operations_port']}"]
        elif name in OURS:
            found[OURS[name]] = [f"127.0.0.1:{arguments[arguments.index('--operations-port') + 1]}"]
        elif address := environment.get("PENSTOCK_OPERATIONS_ADDRESS"):
            component = "worker" if name.startswith("worker-") else name
            found.setdefault(f"penstock-{component}", []).append(address)
        elif name == "rabbitmq":
            settings = (cluster.data / "rabbitmq/rabbitmq.conf").read_text().splitlines()
            (port,) = (line.rpartition("= ")[2] for line in settings if line.startswith("prometheus.tcp.port"))
            found["rabbitmq"] = [f"127.0.0.1:{port}"]
    return found
