"""Every container starts with exactly the command, environment and mounts of its manifest, and ends when it is told.

Real processes against real services; see ``local_pods`` for what stands for a kubelet, and ``local_images`` for what
stands for the images.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.local_pods import LocalPod, local_pods
from tests.chart.rendering import ROOT, VALUES, Object, of_kind, render, template
from tests.system.services import wait_until

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(1800)]
READY_S = 600.0


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    if os.getuid() != 0 or tried.returncode != 0:
        pytest.skip("pods are processes in namespaces of their own here, which only root may make")


def run_a_job(pods: dict[str, LocalPod]) -> None:
    """Through all of them: API service, gateway, broker, worker, executor, model server, collector, keeper."""
    api = pods["penstock-api"]
    (container,) = api.main
    files = ("-c", "/etc/penstock/penstock.yaml", "-c", "/etc/penstock/cluster.yaml")
    key = container.run("/opt/penstock/bin/penstock", "keys", "create", "acme", *files).strip()
    body = {"model": "smollm2-135m", "max_tokens": 8, "messages": [{"role": "user", "content": "hello"}]}
    url = f"http://{api.address}:8080/v1"
    asked = ("-H", f"authorization: Bearer {key}", "-H", "content-type: application/json")
    job: dict[str, Any] = {}

    def is_accepted() -> bool:  # a key is in force everywhere two seconds after it was made
        job.update(
            api.node.ask(f"{url}/chat/completions", *asked, "-H", "prefer: respond-async", "-d", json.dumps(body))
        )
        return "id" in job

    wait_until(is_accepted, api.network, container.log, bound_s=READY_S)
    wait_until(
        lambda: bool(api.node.ask(f"{url}/jobs/{job['id']}", *asked).get("finished_at")), api.network, container.log,
        bound_s=READY_S,
    )  # fmt: skip
    ended = api.node.ask(f"{url}/jobs/{job['id']}", *asked)
    assert (ended["status"], ended["usage"]["source"]) == ("succeeded", "upstream"), ended


def with_bundled_stores() -> list[Object]:
    """As somebody tries the chart: with one account for everything."""
    return render("bundled")


def with_accounts() -> list[Object]:
    """With stores that are there, and an account with the least rights for each role."""
    stores = [each for each in render("bundled") if is_of_a_store(each)]
    done = template((ROOT / "penstock.yaml", VALUES / "accounts.yaml"))
    assert done.returncode == 0, done.stderr
    return stores + [each for each in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if each]


def is_of_a_store(each: Object) -> bool:
    component = each["metadata"].get("labels", {}).get("app.kubernetes.io/component")
    return component in ("redis", "postgresql", "rabbitmq", "bundled")


def secrets(objects: list[Object]) -> dict[str, dict[str, str]]:
    """What somebody made beside the chart."""
    (made,) = of_kind(objects, "Secret")
    roles = ("api", "keeper", "gateway", "worker", "collector", "monitor")
    return {
        "stores": {key: base64.b64decode(value).decode() for key, value in made["data"].items()},
        "accounts": {role: f"of-the-{role}-only" for role in roles},
        "penstock-auth": {"pepper": "0123456789abcdef" * 4},
    }


@pytest.mark.parametrize("made", [with_bundled_stores, with_accounts])
def test_every_pod_waits_for_the_setup_becomes_ready_and_ends_within_its_grace_period(
    made: Callable[[], list[Object]], tmp_path: Path
) -> None:
    objects = made()
    with ThreadPoolExecutor(16) as kubelet, local_pods(objects, tmp_path, secrets(objects)) as pods:
        stores = [pods.pop(f"penstock-{name}") for name in ("redis", "postgresql", "rabbitmq")]
        (setup,) = (pods.pop(name) for name in list(pods) if "-setup-" in name)
        list(kubelet.map(lambda pod: pod.start(READY_S), stores))
        started = [kubelet.submit(pod.start, READY_S) for pod in pods.values()]
        for pod in pods.values():
            for container in pod.first:
                container.await_line("waiting for `penstock setup", READY_S)
        assert not any(container.process for pod in pods.values() if pod.first for container in pod.main)
        setup.complete(READY_S)
        for each in started:
            each.result()
        run_a_job(pods)
        ended = dict(zip(pods, kubelet.map(LocalPod.stop, pods.values()), strict=True))
        assert {(name, code) for codes in ended.values() for name, code in codes.items() if code} == set()
        assert list(kubelet.map(LocalPod.stop, stores)) == [{"redis": 0}, {"postgresql": 0}, {"rabbitmq": 0}]
