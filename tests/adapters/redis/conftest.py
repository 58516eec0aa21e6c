"""A Redis for one test, and what tests ask of it beside the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.services import Redis


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Redis]:
    """A Redis as Penstock requires it, without the library."""
    redis = Redis(tmp_path)
    redis.start()
    yield redis
    redis.stop()
