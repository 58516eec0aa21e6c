"""Every container starts with exactly the command, environment and mounts of its manifest, and ends when it is told.

Real processes against real services; see ``local_pods`` for what stands for a kubelet, and ``local_images`` for what
stands for the images.
"""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chart.local_pods import LocalPod, local_pods
from tests.chart.rendering import render

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900)]
READY_S = 300.0


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    if os.getuid() != 0 or tried.returncode != 0:
        pytest.skip("pods are processes in namespaces of their own here, which only root may make")


def test_every_pod_waits_for_the_setup_becomes_ready_and_ends_within_its_grace_period(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as kubelet, local_pods(render("bundled"), tmp_path, {}) as pods:
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
        ended = dict(zip(pods, kubelet.map(LocalPod.stop, pods.values()), strict=True))
        assert {(name, code) for codes in ended.values() for name, code in codes.items() if code} == set()
        assert list(kubelet.map(LocalPod.stop, stores)) == [{"redis": 0}, {"postgresql": 0}, {"rabbitmq": 0}]
