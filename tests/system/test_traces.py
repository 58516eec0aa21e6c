"""Traces that are off cost nothing; those that are on go through OpenTelemetry's own collector. See test_jobs too."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.clusters import Cluster
from tests.system.traces import Receiver, collector
from tests.system.whole_traces import whole_in_each_lane

pytestmark = pytest.mark.slow


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # ms between two batches of each process
    receiver = Receiver()
    yield receiver
    receiver.close()


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported() -> None:
    wanted = "import sys, penstock.cli, penstock.wiring.serving, penstock.wiring.keeping, penstock.wiring.executing\n"
    subprocess.run([sys.executable, "-c", wanted + "sys.exit('opentelemetry' in sys.modules)"], check=True)


@pytest.mark.kubernetes
def test_the_opentelemetry_collector_takes_a_clusters_traces_and_hands_on_those_alone_that_clients_want(
    tmp_path: Path, receiver: Receiver
) -> None:
    with collector(tmp_path / "collector", receiver.url) as endpoint:
        cluster = Cluster(tmp_path, "--traces", endpoint, tracing={"endpoint": endpoint, "ratio": 0})
        cluster.start()
        try:
            whole_in_each_lane(cluster, receiver)
        finally:
            cluster.stop()
    batches = {span.trace for span in receiver.spans if span.name in ("drain", "process results batch")}
    assert len({span.trace for span in receiver.spans} - batches) == 2
