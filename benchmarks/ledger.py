"""How many rows a second the keeper writes into the ledger, beside a plain COPY of the same rows as the limit.

``make bench`` runs it. The keeper reads events from Redis, writes them once each with their sums by hour and day and
its position, in one fenced transaction, and removes them from Redis; COPY puts rows into the same table, and nothing
else. Both in turns, on one PostgreSQL; CPU time is that of every process.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import statistics
import tempfile
import time
from collections.abc import Awaitable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Engine

from benchmarks.cpu import RESULTS, machine
from benchmarks.processes import cpu_s, running
from benchmarks.queue_systems import START_S, retried
from penstock import __version__
from penstock.adapters.postgresql.database import open_engine
from penstock.adapters.postgresql.keeping import KeeperStore
from penstock.adapters.postgresql.leading import Leadership
from penstock.adapters.postgresql.preparing import prepare
from penstock.adapters.processes import PostgresqlServer, RedisServer
from penstock.adapters.redis.address import Address, read_address
from penstock.adapters.redis.client import RedisClient, pack
from penstock.adapters.redis.outbox import Outbox
from penstock.adapters.redis.translating import outbox_key, partition_of
from penstock.adapters.sql.rows import to_row
from penstock.adapters.sql.tables import ledger
from penstock.lanes.keeping import READ_MAX
from penstock.quota.definitions import Price
from penstock.quota.events import Amount, Charge, Event, EventKind, Usage
from penstock.quota.identity import reservation_id

ORGANISATIONS = tuple(f"organisation-{number}" for number in range(8))
LIMITS = 4
GOAL = 20_000
encode = msgspec.json.Encoder().encode
COLUMNS = ", ".join(f'"{column.name}"' for column in ledger.columns)


@dataclass(frozen=True, slots=True)
class Round:
    """Rows per second of the clock, and CPU microseconds per row by process."""

    rows_per_s: float
    own_us: float
    postgresql_us: float
    redis_us: float

    @property
    def total_us(self) -> float:
        """All of them."""
        return self.own_us + self.postgresql_us + self.redis_us


def now_ms() -> int:
    """The clock."""
    return time.time_ns() // 1_000_000


def events(count: int, first: int) -> list[Event]:
    """Requests that ended, of several organisations in turn, each with several limits."""
    at_ms = now_ms()
    found = []
    for number in range(first, first + count):
        organisation = ORGANISATIONS[number % len(ORGANISATIONS)]
        amounts = tuple(Amount(f"{organisation}/tokens/month/{limit}", 672, 150) for limit in range(LIMITS))
        found.append(
            Event(
                kind=EventKind.POSTED, reservation=reservation_id(at_ms, number), organisation=organisation,
                team="search", key=f"k{number % 5}", model="m", lane="realtime", occurred_at_ms=at_ms,
                usage=Usage(100, 50), charge=Charge(150, 1, 200_000), amounts=amounts,
                price=Price(prompt_picos=1000, completion_picos=2000), tokens_held=400, job_deadline_ms=at_ms + 600_000,
            )
        )  # fmt: skip
    return found


class Ledger:
    """Both writers on one database.

    Args:
        pids: Of PostgreSQL and of Redis.
    """

    def __init__(self, engine: Engine, redis: Address, pids: tuple[int, int]) -> None:
        self._engine = engine
        self._redis = redis
        self._pids = pids
        self._made = 0

    async def keeper(self, rows: int) -> Round:
        """Events in Redis, as the active keeper brings them into the ledger."""
        client = RedisClient(self._redis, name="bench", bound_s=60.0)
        for event in self._events(rows):
            await client.ask(pack("XADD", outbox_key(partition_of(event.organisation)), "*", "e", encode(event)))
        await client.close()
        return await self._measured(self._keep(), rows)

    async def copy(self, rows: int) -> Round:
        """Rows that are made already, into the same table."""
        return await self._measured(self._copy([to_row(event) for event in self._events(rows)]), rows)

    def _events(self, count: int) -> list[Event]:
        self._made += count
        return events(count, self._made)

    async def _measured(self, writing: Awaitable[None], rows: int) -> Round:
        before = [cpu_s(pid) for pid in self._pids]
        own_s, began_s = time.process_time(), time.monotonic()
        await writing
        spent_s, own_s = time.monotonic() - began_s, time.process_time() - own_s
        postgresql_s, redis_s = (cpu_s(pid) - used for pid, used in zip(self._pids, before, strict=True))
        each = 1e6 / rows
        return Round(rows / spent_s, own_s * each, postgresql_s * each, redis_s * each)

    async def _keep(self) -> None:
        leadership = Leadership(self._engine, process="bench", now_ms=now_ms)
        books = KeeperStore(self._engine, leadership, now_ms=now_ms)
        outbox = Outbox(self._redis)
        if not await books.take():
            raise SystemExit("another keeper is active on a database made for this alone")
        while batches := await outbox.read(count_max=READ_MAX):
            await books.drain(batches)
            await outbox.trim({partition: entries[-1].id for partition, entries in batches.items()})
        await books.leave()
        await outbox.close()

    async def _copy(self, rows: list[tuple[Any, ...]]) -> None:
        with self._engine.begin() as connection:
            driver = connection.connection.driver_connection
            assert driver is not None
            with driver.cursor() as cursor, cursor.copy(f"COPY ledger ({COLUMNS}) FROM STDIN") as copying:
                for row in rows:
                    copying.write_row(row)


@contextmanager
def started() -> Iterator[Ledger]:
    """PostgreSQL and Redis of its own, prepared."""
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-", dir="/var/tmp")))
        folder.chmod(0o711)  # the database's own account passes through
        password = secrets.token_hex(16)
        postgresql = PostgresqlServer(folder=folder / "postgresql", password=password)
        redis = RedisServer(folder=folder / "redis", password=password)
        pids = []
        for server in (postgresql, redis):
            (program,) = server.programs()
            own = folder / f"{program.name}-output"
            own.mkdir()
            pids.append(
                parts.enter_context(
                    running(program.command, port=server.port, folder=own, environment={}, ready_s=START_S)
                )
            )
        place = f"127.0.0.1:{postgresql.port}"
        retried(f"postgresql://{postgresql.username}:{password}@{place}/postgres")
        engine = open_engine(f"postgresql://{place}/penstock", username=postgresql.username, password=password)
        parts.callback(engine.dispose)
        prepare(engine, {}, now_ms=now_ms())
        address = read_address(f"redis://127.0.0.1:{redis.port}", username=redis.username, password=password)
        yield Ledger(engine, address, (pids[0], pids[1]))


def table(rounds: dict[str, list[Round]]) -> list[str]:
    """Medians as Markdown, and their ratio."""
    lines = ["| writer | rows/s | rows per CPU second, all | its own CPU us a row | PostgreSQL | Redis |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    medians = {}
    for name, each in rounds.items():
        rate, total, *parts = (
            statistics.median(getattr(one, what) for one in each)
            for what in ("rows_per_s", "total_us", "own_us", "postgresql_us", "redis_us")
        )
        medians[name] = total
        cells = " | ".join(f"{part:.1f}" for part in parts)
        lines.append(f"| {name} | {rate:,.0f} | {1e6 / total:,.0f} | {cells} |")
    keeper, copy = medians["keeper"], medians["COPY alone"]
    return [
        *lines,
        "",
        f"The keeper's way takes {keeper / copy:.1f} times the CPU time of COPY; the goal is {GOAL:,}/s.",
    ]


def main() -> None:
    """Measure, print, and write results/ledger.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--rows", type=int, default=40_000, help="rows in a turn (default: 40000)")
    parser.add_argument("--output", type=Path, default=RESULTS / "ledger.md", help="file to write")
    options = parser.parse_args()
    rounds: dict[str, list[Round]] = {"keeper": [], "COPY alone": []}
    with started() as ledger:
        for number in range(options.rounds):
            turns = [("keeper", ledger.keeper), ("COPY alone", ledger.copy)]
            for name, turn in turns if number % 2 else reversed(turns):
                rounds[name].append(each := asyncio.run(turn(options.rows)))
                print(f"round {number + 1}/{options.rounds} {name}: {each.rows_per_s:,.0f} rows/s", flush=True)
    lines = ["# Rows into the ledger", "", f"Measured by `make bench`, {machine()}; medians of"]
    lines += [f"{options.rounds} rounds of {options.rows} rows, each of {LIMITS} limits and one of"]
    lines += [f"{len(ORGANISATIONS)} organisations. Penstock {__version__}.", "", *table(rounds)]
    options.output.write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
