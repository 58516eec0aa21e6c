"""The chart on a real control plane: it installs, changes, goes back, and is refused where its values are mistaken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chart.rendering import CHART, EARLIER, MATRIX
from tests.cluster.simulated_cluster import SimulatedCluster

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(1800)]
READY_S = 480
EXAMPLE = MATRIX["bundled"]
"""The project's example, and the services of one pod each that it needs beside it."""


class Release:
    """The chart in a namespace of its own."""

    def __init__(self, cluster: SimulatedCluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        cluster.make_namespace(namespace)

    def helm(self, command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self.cluster.helm(command, "penstock", *arguments, "--namespace", self.namespace)

    def change(self, command: str, *files: Path, chart: Path = CHART) -> None:
        """Install or upgrade, and wait for all of it."""
        given = [argument for file in files for argument in ("-f", file)]
        done = self.helm(command, chart, *given, "--wait", "--wait-for-jobs", "--timeout", f"{READY_S}s")
        assert done.returncode == 0, f"{done.stderr}\n{self.events()}"

    def get(self, *arguments: str) -> list[dict[str, Any]]:
        return self.cluster.get("--namespace", self.namespace, *arguments)

    def events(self) -> str:
        return self.cluster.kubectl("get", "events", "--namespace", self.namespace)[-4000:]

    def settle(self) -> list[dict[str, Any]]:
        """Every Deployment and StatefulSet is as it should be; the pods that serve."""
        for kind in ("deployment", "statefulset"):
            for each in self.get(kind):
                name = f"{kind}/{each['metadata']['name']}"
                self.cluster.kubectl(
                    "rollout", "status", name, "--namespace", self.namespace, f"--timeout={READY_S}s"
                )  # fmt: skip
        return [pod for pod in self.get("pod") if pod["status"]["phase"] != "Succeeded"]

    def generations(self) -> dict[str, str]:
        """What of a Deployment makes new pods: the digest of its template, by name."""
        found = {}
        for each in self.get("replicaset"):
            if each["spec"]["replicas"]:
                (owner,) = each["metadata"]["ownerReferences"]
                found[owner["name"].removeprefix("penstock-")] = each["metadata"]["labels"]["pod-template-hash"]
        return found


@pytest.fixture
def release(cluster: SimulatedCluster, request: pytest.FixtureRequest) -> Iterator[Release]:
    namespace = request.node.originalname.replace("_", "-")[5:60].strip("-")
    yield Release(cluster, namespace)
    cluster.helm("uninstall", "penstock", "--namespace", namespace, "--ignore-not-found")


def is_ready(pod: dict[str, Any]) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", []))


def test_the_example_installs_into_a_restricted_namespace(release: Release) -> None:
    release.change("install", *EXAMPLE)
    pods = release.settle()
    components = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods}
    assert components == {"api", "gateway", "keeper", "collector", "worker", "model", "redis", "postgresql", "rabbitmq"}
    assert all(is_ready(pod) for pod in pods)
    assert not any("serviceAccountToken" in str(pod["spec"]["volumes"]) for pod in pods)
    (job,) = release.get("job")
    assert job["status"]["succeeded"] == 1
    version = job["metadata"]["name"].removeprefix("penstock-setup-")
    told = [each["data"]["version"] for each in release.get("configmap") if "version" in each["data"]]
    assert len(told) >= 6
    assert set(told) == {version}
    assert {each["metadata"]["name"]: each["status"]["currentHealthy"] for each in release.get("pdb")}["penstock-api"]


def test_its_service_account_may_do_nothing(release: Release) -> None:
    release.change("install", *EXAMPLE)
    account = f"--as=system:serviceaccount:{release.namespace}:penstock"
    for verb, what in (("get", "secrets"), ("list", "pods"), ("create", "pods"), ("get", "configmaps")):
        may = release.cluster.try_kubectl("auth", "can-i", verb, what, account, "--namespace", release.namespace)
        assert may.stdout.strip() == "no", (verb, what)


def test_a_change_rolls_what_it_touches_and_a_rollback_takes_it_back(release: Release, tmp_path: Path) -> None:
    release.change("install", *EXAMPLE)
    release.settle()
    before = release.generations()
    (job_before,) = release.get("job")
    (tmp_path / "change.yaml").write_text("models: {smollm2-135m: {max_tokens: 400}}")
    release.change("upgrade", *EXAMPLE, tmp_path / "change.yaml")
    assert all(is_ready(pod) for pod in release.settle())
    after = release.generations()
    rolled = {name for name in before if before[name] != after[name]}
    assert rolled == {"api", "gateway", "keeper", "worker-smollm2-135m"}
    done = release.helm("rollback", "1", "--wait", "--timeout", f"{READY_S}s")
    assert done.returncode == 0, done.stderr
    assert all(is_ready(pod) for pod in release.settle())
    back = release.generations()
    version = job_before["metadata"]["name"].removeprefix("penstock-setup-")
    assert back == before
    assert [each["metadata"]["name"] for each in release.get("job")] == [f"penstock-setup-{version}"]


def test_an_upgrade_from_the_version_before_keeps_services_and_data(release: Release) -> None:
    release.change("install", *EXAMPLE, chart=EARLIER)
    release.settle()
    claims = {each["metadata"]["name"]: each["metadata"]["uid"] for each in release.get("pvc")}
    stores = {each["metadata"]["name"]: each["metadata"]["uid"] for each in release.get("statefulset")}
    (secret,) = release.get("secret", "penstock-bundled")
    assert len(claims) == len(stores) == 3
    release.change("upgrade", *EXAMPLE)
    assert all(is_ready(pod) for pod in release.settle())
    assert {each["metadata"]["name"]: each["metadata"]["uid"] for each in release.get("pvc")} == claims
    assert {each["metadata"]["name"]: each["metadata"]["uid"] for each in release.get("statefulset")} == stores
    assert release.get("secret", "penstock-bundled")[0]["data"] == secret["data"]
    charts = {each["metadata"]["labels"]["helm.sh/chart"] for each in release.get("deployment")}
    assert charts == {"penstock-0.2.0"}
    done = release.helm("rollback", "1", "--wait", "--timeout", f"{READY_S}s")
    assert done.returncode == 0, done.stderr
    assert all(is_ready(pod) for pod in release.settle())


def test_passwords_made_by_the_first_install_stay(release: Release) -> None:
    release.change("install", *EXAMPLE)
    (before,) = release.get("secret", "penstock-bundled")
    release.change("upgrade", *EXAMPLE)
    (after,) = release.get("secret", "penstock-bundled")
    assert before["data"] == after["data"]


MISTAKES = {
    "an unknown key": (
        "models: {smollm2-135m: {contxt: 1}}",
        ("models.smollm2-135m", "'contxt' not allowed"), ("models.smollm2-135m.contxt", "context"),
    ),
    "a model without an upstream": (
        "models: {chat: {context: 8192}}",
        ("models.chat", "missing property 'upstream'"), ("models.chat.upstream", "write"),
    ),
    "an objective that no replica count can meet": (
        "models: {smollm2-135m: {objective: {drain: 1s}}}",
        ("models.smollm2-135m.objective.drain", "raise it"), ("models.smollm2-135m.objective.drain", "raise it"),
    ),
}  # fmt: skip
"""Each with what helm says, and what `penstock check` says."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_values_are_refused_with_the_path_and_the_fix(release: Release, mistake: str, tmp_path: Path) -> None:
    extra, said_by_helm, said_by_check = MISTAKES[mistake]
    (tmp_path / "extra.yaml").write_text(extra)
    files = [argument for file in (*EXAMPLE, tmp_path / "extra.yaml") for argument in ("-f", str(file))]
    refused = release.helm("install", CHART, *files)
    assert refused.returncode != 0
    assert all(word in refused.stderr.replace("/", ".") for word in said_by_helm), refused.stderr
    assert release.get("deployment") == []
    files = [str(file) for file in (*EXAMPLE, tmp_path / "extra.yaml")]
    checked = subprocess.run(
        [sys.executable, "-m", "penstock", "check", *files], capture_output=True, text=True, check=False, timeout=60
    )
    assert checked.returncode == 1
    assert all(word in checked.stdout + checked.stderr for word in said_by_check), checked.stdout + checked.stderr
