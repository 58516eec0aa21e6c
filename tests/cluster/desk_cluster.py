"""The cluster of ``KUBECONFIG``, at somebody's desk: the chart with a slow simulated model, and jobs for it.

Images of the project must be known to its nodes, and KEDA must run in it; where it is otherwise, ``why_not`` says what
to do.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.request import Request, urlopen

from tests.chart.rendering import CHART, tool
from tests.system.services import wait_until

NAMESPACE: Final = "penstock-scaling-test"
VALUES: Final = Path(__file__).with_name("scaling.yaml")
WORKER: Final = "penstock-worker-slow"
SERVER: Final = "penstock-model-slow"
BOUND_S: Final = 600.0
WHAT_TO_DO: Final = (
    "`make test-cluster` needs a cluster with KEDA in KUBECONFIG, such as one of kind: `kind create cluster`; "
    "`helm install keda kedacore/keda --namespace keda --create-namespace`; build the images as manifests/images says, "
    "and `kind load docker-image penstock:0.1.0 penstock-bento:0.1.0`"
)


def kubectl(*arguments: str, bound_s: float = 120) -> subprocess.CompletedProcess[str]:
    """One command; the caller looks at its end."""
    return subprocess.run(
        [tool("control-plane"), "kubectl", *arguments], capture_output=True, text=True, check=False, timeout=bound_s
    )


def why_not() -> str:
    """Why nothing can be tested here, and what to do; empty: it can."""
    if not os.environ.get("KUBECONFIG"):
        return f"KUBECONFIG names no cluster. {WHAT_TO_DO}"
    if (asked := kubectl("get", "--raw", "/readyz", "--request-timeout=20s")).returncode:
        return f"the cluster of KUBECONFIG does not answer ({asked.stderr.strip()[-200:]}). {WHAT_TO_DO}"
    label = "app.kubernetes.io/name=keda-operator"
    operators = kubectl("get", "deployment", "--all-namespaces", "-l", label, "-o", "json")
    if operators.returncode or not any(
        each["status"].get("availableReplicas") for each in json.loads(operators.stdout)["items"]
    ):
        return f"no KEDA operator runs in the cluster of KUBECONFIG. {WHAT_TO_DO}"
    return ""


class Desk:
    """The chart in a namespace of its own, reached through a forwarded port."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "forwarding.log"
        self._forwarding: subprocess.Popen[bytes] | None = None
        self.key = ""

    def install(self) -> None:
        """Install, and wait for what serves; workers and model servers may be at 0."""
        self.control("create", "namespace", NAMESPACE)
        self.control("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
        done = subprocess.run(
            [tool("helm"), "install", "penstock", CHART, "-n", NAMESPACE, "-f", VALUES],
            capture_output=True, text=True, check=False, timeout=BOUND_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        for each in ("api", "gateway", "keeper", "collector"):
            self.control("rollout", "status", f"deployment/penstock-{each}", f"--timeout={BOUND_S:.0f}s")
        inside = ("exec", "deployment/penstock-api", "-c", "api", "--", "/opt/penstock/bin/penstock")
        files = ("-c", "/etc/penstock/penstock.yaml", "-c", "/etc/penstock/cluster.yaml")
        made = self.control(*inside, "keys", "create", "acme", *files)
        self.key = made.strip().splitlines()[-1]
        self._forward()

    def remove(self) -> None:
        """Take all of it away."""
        if self._forwarding is not None:
            self._forwarding.terminate()
            self._forwarding.wait(30)
        kubectl("delete", "namespace", NAMESPACE, "--wait=false", "--ignore-not-found")

    def control(self, *arguments: str) -> str:
        """A command of kubectl in the namespace, which must succeed."""
        done = kubectl("--namespace", NAMESPACE, *arguments, bound_s=BOUND_S + 60)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}\n{done.stderr[-3000:]}"
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.control("get", *arguments, "-o", "json"))
        return found

    def replicas(self, deployment: str) -> int:
        """How many are asked for."""
        return int(self.get("deployment", deployment)["spec"]["replicas"])

    def conditions(self) -> dict[str, dict[str, str]]:
        """Of each ScaledObject: its conditions by their types."""
        return {
            each["metadata"]["name"]: {told["type"]: told["status"] for told in each["status"]["conditions"]}
            for each in self.get("scaledobject")["items"]
            if each.get("status", {}).get("conditions")
        }

    def until(self, ready: Callable[[], bool]) -> None:
        """Poll, as long as the forwarding lives."""
        assert self._forwarding is not None
        wait_until(ready, self._forwarding, self._log, bound_s=BOUND_S)

    def submit(self) -> str:
        """A job of a few hundred tokens; where to look for it."""
        body = {"model": "slow", "max_tokens": 200, "messages": [{"role": "user", "content": "count"}]}
        answer = self._ask("/v1/chat/completions", body, Prefer="respond-async")
        assert answer["object"] == "job"
        return f"/v1/jobs/{answer['id']}"

    def look(self, job: str) -> dict[str, Any]:
        return self._ask(job, None)

    def _ask(self, path: str, body: Any, **headers: str) -> dict[str, Any]:
        given = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", **headers}
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(self._url + path, data, given), timeout=30) as answer:
            told: dict[str, Any] = json.load(answer)
        return told

    def _forward(self) -> None:
        with self._log.open("ab") as log:
            self._forwarding = subprocess.Popen(
                [tool("control-plane"), "kubectl", "-n", NAMESPACE, "port-forward", "service/penstock-api", ":80"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.until(lambda: "127.0.0.1:" in self._log.read_text())

    @property
    def _url(self) -> str:
        found = re.search(r"127\.0\.0\.1:\d+", self._log.read_text())
        assert found is not None
        return f"http://{found[0]}"


@contextmanager
def desk(folder: Path) -> Iterator[Desk]:
    """Installed for the block."""
    made = Desk(folder)
    try:
        made.install()
        yield made
    finally:
        made.remove()
