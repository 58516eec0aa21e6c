"""``penstock rebuild`` from a ledger of a million rows, with jobs that are open.

What it took is printed and not asserted, since that is the machine's: seconds on the wall, and of a processor for the
command, Redis and PostgreSQL (``PENSTOCK_TORTURE=1 pytest tests/system/test_rebuild.py -n0 -s``).
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from benchmarks.processes import cpu_s
from penstock.adapters.sql.rows import month_of
from penstock.quota.identity import reservation_id
from tests.counts import count
from tests.system.clusters import until
from tests.system.keepers import World, now_ms

pytestmark = [pytest.mark.slow, pytest.mark.torture, pytest.mark.timeout(1_800)]

ROWS = count(1_000_000, short=20_000)
RECENT = ROWS // 50  # of the last quarter of an hour: ids that are remembered
JOBS = ROWS // 100
_ROWS = text("""
INSERT INTO ledger SELECT :month, lpad(to_hex(:at - i), 12, '0') || lpad(to_hex(i), 20, '0'), :kind, 'acme', NULL, 'k1',
'm', :lane, :at - i * :apart, 100, 0, i % 50, 'upstream', 100 + i % 50, 1, 1000 + i,
CASE WHEN :kind = 'posted' THEN json_build_array(
    json_build_array('acme/tokens/day', (:at - i * :apart) / 86400000, 100 + i % 50),
    json_build_array('acme/cost/month', CAST(:window AS bigint), 1000 + i)) ELSE '[]'::json END,
300, 1, 1, 1, 0, :at + :deadline, '' FROM generate_series(CAST(:first AS bigint), :last) AS i
""")


def add_rows(world: World, at_ms: int, window: int) -> None:
    """Most of them hours old, some of them recent, and jobs that were accepted and have not ended."""
    month = month_of(reservation_id(at_ms, 0))
    common = {"month": month, "at": at_ms, "window": window, "kind": "posted", "lane": "realtime"}
    portions = (
        {"first": 1, "last": RECENT, "apart": 1, "deadline": -1},
        {"first": max(RECENT, 900_001) + 1, "last": max(RECENT, 900_001) + ROWS - RECENT, "apart": 2, "deadline": -1},
        {"first": 10**7, "last": 10**7 + JOBS - 1, "apart": 0, "deadline": 3_600_000, "kind": "reserved",
         "lane": "queue"},
    )  # fmt: skip
    with world.engine.begin() as connection:
        for portion in portions:
            connection.execute(_ROWS, common | portion)
    with world.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE ledger"))


def test_a_ledger_of_any_size_and_its_open_jobs_are_rebuilt(tmp_path: Path) -> None:
    world = World(tmp_path)
    try:
        world.start()
        keeper = world.keeper()
        until(world.is_ready)
        before = world.inspected()
        assert before is not None
        assert keeper.stop() == 0
        windows = {limit.limit: limit.window for limit in before.limits}
        at_ms = now_ms() - 1_000
        add_rows(world, at_ms, windows["acme/cost/month"])
        world.asks("FLUSHALL")
        before_s = processors_s(world)
        told = world.command("rebuild", "--rebuild-s", "0")
        took_s = [round(now - then, 1) for now, then in zip(processors_s(world), before_s, strict=True)]
        after = world.inspected()
        assert after is not None
        assert len(after.holds) == JOBS
        used = {limit.limit: (limit.used, limit.held) for limit in after.limits}
        assert used["acme/cost/month"][0] == total_of(world, "acme/cost/month", windows["acme/cost/month"])
        assert used["acme/tokens/day"][1] == 300 * JOBS
        found = re.search(r"rebuilt in ([0-9.]+) s", told)
        assert found is not None, told
        sys.stdout.write(f"{ROWS} rows, {JOBS} jobs: rebuilt in {found[1]} s; processor: the command {took_s[0]} s, "
                         f"Redis {took_s[1]} s, PostgreSQL {took_s[2]} s\n")  # fmt: skip
    finally:
        world.stop()


def processors_s(world: World) -> tuple[float, ...]:
    """CPU seconds so far: of commands that ended, of Redis, of PostgreSQL."""
    assert world.redis.process is not None
    assert world.postgresql.process is not None
    ended = os.times()
    return (
        ended.children_user + ended.children_system,
        cpu_s(world.redis.process.pid),
        cpu_s(world.postgresql.process.pid),
    )


def total_of(world: World, limit: str, window: int) -> int:
    """By the database alone."""
    statement = text(
        "SELECT coalesce(sum((amount->>2)::bigint), 0) FROM ledger, json_array_elements(amounts) AS amount "
        "WHERE amount->>0 = :limit AND (amount->>1)::bigint = :window"
    )
    with world.engine.connect() as connection:
        return int(connection.execute(statement, {"limit": limit, "window": window}).scalar_one())
