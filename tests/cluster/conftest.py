"""One control plane for all tests of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.simulated_cluster import SimulatedCluster, simulated_cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedCluster]:
    with simulated_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running
