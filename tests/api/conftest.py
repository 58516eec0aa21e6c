"""One API for each module of tests that does not need its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api.door import Door, open_door


@pytest.fixture
def door() -> Iterator[Door]:
    """The API with a fresh quota, listening."""
    with open_door() as door:
        yield door
