"""Calls go out as the library takes them, whatever the names and sizes in them; examples in docstrings are true."""

from __future__ import annotations

import doctest

import pytest

from penstock.adapters.redis import address, checking, client, outbox, translating


@pytest.mark.parametrize("module", [address, checking, client, outbox, translating], ids=lambda each: each.__name__)
def test_the_examples_run(module: object) -> None:
    found = doctest.testmod(module)  # type: ignore[arg-type]
    assert found.attempted > 0
    assert found.failed == 0


def test_partitions_are_counted_as_redis_cluster_counts_slots() -> None:
    assert translating.partition_of("123456789") == 0x31C3 % 64  # the check value of CRC-16/XMODEM
