"""Databases of the cluster only: what is tested here is not in SQLite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.adapters.databases import Databases


@pytest.fixture
def engine(postgresql: Databases) -> Iterator[Engine]:
    """An engine on a prepared database, as its administrator."""
    with postgresql.fresh() as engine:
        yield engine
