"""A request and a stream cost no more instructions than was agreed."""

from __future__ import annotations

import json
import shutil

import pytest

from benchmarks.instructions import COMMITTED, ratios

GROWTH_MAX = 1.10


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind counts instructions")
def test_a_request_and_a_stream_cost_at_most_a_tenth_more_than_was_committed() -> None:
    agreed = json.loads(COMMITTED.read_text())
    found = ratios()
    assert found.keys() == agreed.keys()
    grown = {
        name: f"{found[name]:.3f}, {agreed[name]:.3f} agreed"
        for name in found
        if found[name] > agreed[name] * GROWTH_MAX
    }
    assert grown == {}, "if it is meant: python -m benchmarks.instructions --write"
