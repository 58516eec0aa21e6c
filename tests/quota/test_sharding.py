"""Organisations are spread over shards evenly, and stay where they are if they can."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from penstock.quota.sharding import assign_shards

KNOWN = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.none() | st.integers(-1, 9), max_size=30)


@given(known=KNOWN, shards=st.integers(1, 8))
def test_no_shard_has_two_organisations_more_than_another(known: dict[str, int | None], shards: int) -> None:
    found = assign_shards(known, shards)
    assert found.keys() == known.keys()
    sizes = Counter(found.values())
    counts = [sizes[shard] for shard in range(shards)]
    assert sum(counts) == len(known)
    assert max(counts) - min(counts) <= 1


@given(known=KNOWN, shards=st.integers(1, 8))
def test_assigning_again_moves_nobody(known: dict[str, int | None], shards: int) -> None:
    found = assign_shards(known, shards)
    assert assign_shards(found, shards) == found


def test_nobody_shares_while_there_are_shards_enough() -> None:
    assert sorted(assign_shards({"a": None, "b": 2, "c": 2, "d": 7}, 4).values()) == [0, 1, 2, 3]


def test_one_that_may_stay_stays() -> None:
    assert assign_shards({"a": None, "b": 2, "c": 0}, 4) == {"a": 1, "b": 2, "c": 0}
