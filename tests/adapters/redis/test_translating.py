"""Calls go out as the library takes them, whatever the names and sizes in them."""

from __future__ import annotations

from penstock.adapters.redis import translating


def test_partitions_are_counted_as_redis_cluster_counts_slots() -> None:
    assert translating.partition_of("123456789") == 0x31C3 % 64  # the check value of CRC-16/XMODEM
