"""What people read of a key."""

from __future__ import annotations

from io import StringIO

import pytest

from penstock.console.keys import KeyRow, key_state, keys_table
from penstock.console.screen import screen
from penstock.quota.definitions import Key

NOW_MS = 1_700_000_000_000


@pytest.mark.parametrize(
    ("key", "state"),
    [
        (Key(id="k", macs=(("a", 0),)), "active"),
        (Key(id="k", macs=(("a", 0),), revoked=True), "revoked"),
        (Key(id="k", macs=(("a", 0),), expires_at_ms=NOW_MS), "expired"),
        (Key(id="k", macs=(("a", 0),), expires_at_ms=NOW_MS + 1), "active"),
        (Key(id="k", macs=(("a", 0), ("b", NOW_MS))), "active"),
        (Key(id="k", macs=(("a", 0), ("b", NOW_MS + 1))), "rotating until 2023-11-14 22:13"),
        (Key(id="k", macs=(("a", NOW_MS),)), "expired"),
    ],
)
def test_the_state_says_whether_a_key_works_now(key: Key, state: str) -> None:
    assert key_state(key, now_ms=NOW_MS) == state


def test_the_table_shows_scope_and_times_and_no_hash() -> None:
    key = Key(id="k1", team="search", macs=(("feedbeef", 0),), models=frozenset({"b", "a"}), cost_nanos_max=10**9)
    out = StringIO()
    row = KeyRow(organisation="acme", name="ci", created_at_ms=NOW_MS, key=key)
    screen(out).print(keys_table([row], now_ms=NOW_MS))
    line = out.getvalue().splitlines()[1]
    for shown in ("acme", "k1", "search", "ci", "a, b, at most $1.00 a request", "2023-11-14", "never", "active"):
        assert shown in line
    assert "feedbeef" not in out.getvalue()
