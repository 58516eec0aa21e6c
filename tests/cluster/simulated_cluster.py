"""A Kubernetes control plane on loopback, with nodes that are simulated: what the API does with objects is real.

Real: the API server with its validation, admission and pod security, etcd, every controller, the scheduler. Simulated
by kwok: nodes, and the pods on them, which become ready although nothing runs. Not there: a network, DNS, volumes,
the operators of custom resources. ``make kubernetes-tools`` builds the programs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.chart.rendering import tool
from tests.chart.schemas import CUSTOM, custom_resource_definitions, module
from tests.system.services import free_port, wait_until

KWOK: Final = "sigs.k8s.io/kwok@v0.8.0"
STAGES: Final = ("node/fast/node-*", "node/heartbeat/node-*", "pod/fast/pod-*")
USED: Final = {
    "ScaledObject", "TriggerAuthentication", "ServiceMonitor", "PodMonitor", "PrometheusRule", "HTTPRoute",
    "ExternalSecret",
}  # fmt: skip
"""Kinds of custom resources that the chart may write."""
NODES: Final = {f"node-{zone}{number}": f"zone-{zone}" for zone in "abc" for number in (1, 2)}
TOKEN: Final = "of-this-test-only"
BOUND_S: Final = 300.0


class SimulatedCluster:
    """The processes, and commands to them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._port = free_port()
        self._certificates = folder / "certificates"

    def start(self) -> None:
        """Start everything; after this nodes are ready and the custom resources of the chart are known."""
        self._keys()
        etcd, peers = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self._run(
            "etcd", "--data-dir", str(self.folder / "etcd"), "--listen-client-urls", etcd,
            "--advertise-client-urls", etcd, "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
            "--initial-cluster", f"default={peers}", "--unsafe-no-fsync", "--log-level", "warn",
        )  # fmt: skip
        self._run(
            "apiserver", "--etcd-servers", etcd, "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1",
            "--secure-port", str(self._port), "--cert-dir", str(self._certificates),
            "--token-auth-file", str(self.folder / "tokens.csv"), "--authorization-mode", "RBAC",
            "--service-account-issuer", "https://kubernetes.default.svc",
            "--service-account-key-file", str(self.folder / "accounts.pem"),
            "--service-account-signing-key-file", str(self.folder / "accounts.pem"),
            "--service-cluster-ip-range", "10.96.0.0/16", "--endpoint-reconciler-type", "none",
        )  # fmt: skip
        self._until(lambda: self.try_kubectl("get", "--raw", "/readyz").returncode == 0, "the API server is ready")
        self._run(
            "controller", "--kubeconfig", str(self.kubeconfig), "--leader-elect=false", "--secure-port", "0",
            "--service-account-private-key-file", str(self.folder / "accounts.pem"), "--concurrent-deployment-syncs=20",
        )  # fmt: skip
        self._run("scheduler", "--kubeconfig", str(self.kubeconfig), "--leader-elect=false", "--secure-port", "0")
        stages = [f"--config={path}" for each in STAGES for path in module(KWOK).glob(f"kustomize/stage/{each}.yaml")]
        assert len(stages) == 5, stages
        self._start(
            "kwok", [str(tool("kwok")), "--kubeconfig", str(self.kubeconfig), "--manage-all-nodes=true", *stages]
        )  # fmt: skip
        known = [definition for name in CUSTOM for definition in custom_resource_definitions(name)]
        self.apply(*(each for each in known if each["spec"]["names"]["kind"] in USED))
        self.apply(*map(_node, NODES), *map(_disk, range(60)))
        self.kubectl("wait", "--for=condition=Ready", "node", "--all", f"--timeout={BOUND_S:.0f}s")
        self.kubectl("wait", "--for=condition=Established", "crd", "--all", f"--timeout={BOUND_S:.0f}s")

    def stop(self) -> None:
        """End every process, the last one started first."""
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)

    def try_kubectl(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """One command of kubectl, on a manifest on standard input if there is one; the caller looks at its end."""
        return subprocess.run(
            [tool("control-plane"), "kubectl", "--kubeconfig", str(self.kubeconfig), *arguments], input=text,
            capture_output=True, text=True, check=False, timeout=BOUND_S, env={**os.environ, "HOME": str(self.folder)},
        )  # fmt: skip

    def kubectl(self, *arguments: str, text: str = "") -> str:
        """The same, which must succeed; what it printed."""
        done = self.try_kubectl(*arguments, text=text)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}\n{done.stderr[-3000:]}"
        return done.stdout

    def get(self, *arguments: str) -> list[dict[str, Any]]:
        """The objects that a ``kubectl get`` finds."""
        found = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return list(found["items"]) if found["kind"].endswith("List") else [found]

    def apply(self, *objects: dict[str, Any]) -> None:
        """Make them so."""
        self.kubectl(
            "apply", "--server-side", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        )

    def helm(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """One command of helm; the caller looks at its exit code."""
        home = {f"HELM_{name}_HOME": str(self.folder / "helm") for name in ("CACHE", "CONFIG", "DATA")}
        return subprocess.run(
            [tool("helm"), *arguments], capture_output=True, text=True, check=False, timeout=3 * BOUND_S,
            env={**os.environ, **home, "KUBECONFIG": str(self.kubeconfig)},
        )  # fmt: skip

    def make_namespace(self, name: str) -> None:
        """One whose pods must be restricted: others are refused, and whatever would make others is warned of."""
        levels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": levels}})

    def _keys(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL)
        (self.folder / "accounts.pem").write_bytes(key.private_bytes(*form, serialization.NoEncryption()))
        (self.folder / "tokens.csv").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
        cluster = {
            "server": f"https://127.0.0.1:{self._port}",
            "certificate-authority": str(self._certificates / "apiserver.crt"),
        }
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1", "kind": "Config", "current-context": "it",
                    "clusters": [{"name": "it", "cluster": cluster}],
                    "users": [{"name": "it", "user": {"token": TOKEN}}],
                    "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
                }
            )
        )  # fmt: skip

    def _run(self, program: str, *arguments: str) -> None:
        self._start(program, [str(tool("control-plane")), program, *arguments])

    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder)
            )

    def _until(self, ready: Callable[[], bool], what: str) -> None:
        try:
            wait_until(ready, self._processes[-1], self.folder / "apiserver.log", bound_s=BOUND_S)
        except RuntimeError as error:
            raise AssertionError(f"not so in {BOUND_S:.0f} s: {what}") from error


@contextmanager
def simulated_cluster(folder: Path) -> Iterator[SimulatedCluster]:
    """Running for the block."""
    cluster = SimulatedCluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _node(name: str) -> dict[str, Any]:
    size = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": "8"}
    labels = {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": NODES[name], "kubernetes.io/os": "linux"}
    return {
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
        "status": {"allocatable": size, "capacity": size},
    }  # fmt: skip


def _disk(number: int) -> dict[str, Any]:
    """For claims that name no class."""
    return {
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"disk-{number}"},
        "spec": {
            "capacity": {"storage": "1Ti"}, "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
            "hostPath": {"path": f"/disks/{number}"},
        },
    }  # fmt: skip
