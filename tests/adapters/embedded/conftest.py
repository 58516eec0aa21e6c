"""A store on an empty database."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapters.embedded.counter import Counter


@pytest.fixture
def counter(path: Path) -> Counter:
    """A counter whose database does not exist yet."""
    return Counter(path)
