"""What KEDA makes of the chart, on a cluster of one's own: up from nothing, down again, and never over running work.

``make test-cluster``; everywhere else a test here looks at how it says that it cannot run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chart.rendering import ROOT
from tests.cluster.desk_cluster import SERVER, WORKER, Desk, desk, why_not
from tests.cluster.simulated_cluster import SimulatedCluster

JOBS = 24


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    if reason := why_not():
        pytest.skip(reason)
    with desk(tmp_path_factory.mktemp("desk")) as running:
        yield running


@pytest.mark.cluster
@pytest.mark.timeout(3_600)
class TestOnACluster:
    """One after another, on one installation."""

    def test_every_scaled_object_is_ready(self, installed: Desk) -> None:
        installed.until(lambda: all(each.get("Ready") == "True" for each in installed.conditions().values()))
        assert {
            WORKER,
            SERVER,
            "penstock-api",
            "penstock-gateway",
            "penstock-collector",
        } <= installed.conditions().keys()

    def test_from_nothing_to_several_and_back_and_no_job_is_lost(self, installed: Desk) -> None:
        """Workers by the queue, model servers by the tokens; each job is run to its end, whatever is scaled in."""
        installed.until(lambda: installed.replicas(WORKER) == installed.replicas(SERVER) == 0)
        jobs = [installed.submit() for _ in range(JOBS)]
        installed.until(lambda: installed.replicas(WORKER) > 1 and installed.replicas(SERVER) > 1)
        installed.until(lambda: all(installed.look(job)["finished_at"] for job in jobs))
        ended = [installed.look(job) for job in jobs]
        assert {job["status"] for job in ended} == {"succeeded"}
        assert {job["usage"]["source"] for job in ended} == {"upstream"}
        installed.until(lambda: installed.replicas(WORKER) == installed.replicas(SERVER) == 0)

    def test_a_lost_figure_never_means_nothing(self, installed: Desk) -> None:
        """The keeper gives the token figure, and RabbitMQ the length: without them there is what the fallback says."""
        installed.control("scale", "deployment/penstock-keeper", "--replicas=0")
        installed.control("scale", "statefulset/penstock-rabbitmq", "--replicas=0")
        installed.until(lambda: installed.conditions()[WORKER].get("Fallback") == "True")
        installed.until(lambda: installed.conditions()[SERVER].get("Fallback") == "True")
        installed.until(lambda: installed.replicas(WORKER) >= 1 and installed.replicas(SERVER) >= 1)


@pytest.mark.kubernetes
def test_without_a_cluster_it_says_what_to_do_and_skips() -> None:
    said = run_here(KUBECONFIG="")
    assert "KUBECONFIG names no cluster" in said
    assert "kind create cluster" in said


@pytest.mark.kubernetes
@pytest.mark.timeout(1200)
def test_a_cluster_without_keda_is_left_alone(cluster: SimulatedCluster) -> None:
    said = run_here(KUBECONFIG=str(cluster.kubeconfig))
    assert "no KEDA operator runs" in said
    assert "penstock-scaling-test" not in cluster.kubectl("get", "namespace")


def run_here(**environment: str) -> str:
    """What ``make test-cluster`` runs; it must skip, and end with 0."""
    there = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-rs", "-m", "cluster", str(Path(__file__))], cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=900, env={**there, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 skipped" in done.stdout, done.stdout
    return done.stdout
