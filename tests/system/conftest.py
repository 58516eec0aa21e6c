"""One whole cluster for every test that only needs some: a start takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.queue_faults import FaultyCluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyCluster]:
    """What ``penstock up`` runs. Its tests are of one ``xdist_group``, and leave it as they found it."""
    found = FaultyCluster(tmp_path_factory.mktemp("up"), "--decode", "200")
    try:
        found.start()
        yield found
    finally:
        assert found.stop() == 0
