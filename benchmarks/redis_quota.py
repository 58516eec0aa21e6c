"""CPU of a quota call in Redis by the number of limits, beside a bare increment, and what its state takes in memory.

``python -m benchmarks.redis_quota`` writes ``benchmarks/results/redis_quota.md``. Everything is measured in one run, in
rounds that take turns; reported are medians, and ratios to peers in the same run, which a busy machine distorts less
than times: an ``INCRBY``, and a function that reads one counter, compares and increments it, as simple limiters do.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from penstock.adapters.redis import RedisStore, load_library
from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.checking import read_info
from penstock.adapters.redis.client import RedisClient, pack
from penstock.adapters.redis.translating import keys_of, outbox_key, partition_of
from penstock.quota import Call, Kind, Limit, Metric, Reserved, Settled
from tests.adapters.redis.desks import define, ready, reserve, settle
from tests.system.services import Redis

COUNTS = (1, 2, 4, 8, 16, 32)
ROUNDS, CALLS, AT_ONCE = 5, 1_000, 100
RESULT = Path(__file__).parent / "results" / "redis_quota.md"
CHECK = """#!lua name=peer
redis.register_function('check_then_increment', function(keys, arguments)
  local used = tonumber(redis.call('GET', keys[1]) or '0')
  if used + tonumber(arguments[1]) > tonumber(arguments[2]) then return 0 end
  return redis.call('INCRBY', keys[1], arguments[1])
end)
"""


def limits(count: int) -> tuple[Limit, ...]:
    """Windows and rates in turn, of the organisation; caps that are never reached."""
    return tuple(
        Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.RATE, period_ms=60_000 + number, cap=1 << 30)
        if number % 2
        else Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.WINDOW, period_ms=3_600_000 + number, cap=1 << 40)
        for number in range(count)
    )


async def cpu_us(client: RedisClient) -> int:
    """Microseconds that Redis has used so far."""
    told = read_info(await client.ask(pack("INFO", "cpu")))
    return round(1e6 * (float(told["used_cpu_user"]) + float(told["used_cpu_sys"])))


async def memory(client: RedisClient, *keys: bytes) -> int:
    return sum([int(await client.ask(pack("MEMORY", "USAGE", key, "SAMPLES", 0)) or 0) for key in keys])


async def sent(client: RedisClient, commands: Iterable[bytes]) -> None:
    pending = list(commands)
    for first in range(0, len(pending), AT_ONCE):
        await asyncio.gather(*(client.ask(each) for each in pending[first : first + AT_ONCE]))


async def applied(store: RedisStore, calls: list[Call[Any]], kind: type) -> None:
    for first in range(0, len(calls), AT_ONCE):
        answers = await asyncio.gather(*(store.apply(each) for each in calls[first : first + AT_ONCE]))
        assert {type(answer) for answer in answers} == {kind}


class Measured:
    """CPU of one call of each sort, by round, and bytes."""

    def __init__(self) -> None:
        self.cpu: dict[str, list[float]] = {}
        self.bytes: dict[str, float] = {}

    def add(self, what: str, used_us: float) -> None:
        self.cpu.setdefault(what, []).append(used_us / CALLS)

    def median(self, what: str) -> float:
        return statistics.median(self.cpu[what])


async def measure_calls(url: str, count: int, measured: Measured, start: int) -> None:
    """A thousand reserves and their settles under so many limits, on an organisation that is empty."""
    client = RedisClient(read_address(url), bound_s=30)
    await client.ask(pack("FLUSHALL"))
    store = RedisStore(read_address(url), bound_s=30, tells_again=False)
    await store.start()
    definition = define()
    await store.apply(replace(definition, definitions=replace(definition.definitions, limits=limits(count))))
    await store.apply(ready())
    counters, reservations, deadlines, *_ = keys_of("acme")
    outbox = outbox_key(partition_of("acme"))
    empty = await memory(client, counters)
    numbers = range(start, start + CALLS)
    sorts: tuple[tuple[str, Callable[[int], Call[Any]], type], ...] = (
        ("reserve", reserve, Reserved),
        ("settle", settle, Settled),
    )
    for what, make, kind in sorts:
        before = await cpu_us(client)
        await applied(store, list(map(make, numbers)), kind)
        measured.add(f"{what} {count}", await cpu_us(client) - before)
        if what == "reserve":
            measured.bytes[f"hold {count}"] = await memory(client, reservations, deadlines) / CALLS
    measured.bytes[f"counters {count}"] = empty
    measured.bytes[f"event {count}"] = await memory(client, outbox) / CALLS
    await store.close()
    await client.close()


async def measure_peers(url: str, measured: Measured) -> None:
    client = RedisClient(read_address(url), bound_s=30)
    for what, command in (
        ("increment", pack("INCRBY", "peer", 300)),
        ("check", pack("FCALL", "check_then_increment", 1, "peer2", 300, 1 << 50)),
    ):
        before = await cpu_us(client)
        await sent(client, [command] * CALLS)
        measured.add(what, await cpu_us(client) - before)
    await client.close()


async def measure(url: str, rounds: int) -> Measured:
    client = RedisClient(read_address(url), bound_s=30)
    await load_library(client)
    await client.ask(pack("FUNCTION", "LOAD", CHECK))
    await client.close()
    measured = Measured()
    for turn in range(rounds):
        await measure_peers(url, measured)
        for count in COUNTS:
            await measure_calls(url, count, measured, turn * CALLS)
    return measured


def report(measured: Measured, *, load: float) -> str:
    check, increment = measured.median("check"), measured.median("increment")
    per_limit = (measured.bytes["counters 32"] - measured.bytes["counters 16"]) / 16
    lines = [
        "# A quota call in Redis",
        "",
        f"Measured by `python -m benchmarks.redis_quota`, {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores, "
        f"Linux, Python {platform.python_version()}, load {load:.0f}; medians of {len(measured.cpu['check'])} rounds "
        f"of {CALLS} calls, {AT_ONCE} at once. CPU is that of Redis, outside the kernel and in it.",
        "",
        f"In the same run: `INCRBY` {increment:.1f} us, check-then-increment of one counter {check:.1f} us.",
        "",
        "| limits | reserve us | settle us | both, times check-then-increment | calls a second on one core "
        "| bytes a hold | bytes an event |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for count in COUNTS:
        one, other = measured.median(f"reserve {count}"), measured.median(f"settle {count}")
        lines.append(
            f"| {count} | {one:.1f} | {other:.1f} | {(one + other) / check:.1f} | {2e6 / (one + other):,.0f} "
            f"| {measured.bytes[f'hold {count}']:.0f} | {measured.bytes[f'event {count}']:.0f} |"
        )
    return "\n".join([*lines, "", f"A limit takes {per_limit:.0f} bytes.", ""])


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each number of limits (default {ROUNDS})")
    rounds = parser.parse_args().rounds
    with TemporaryDirectory() as folder:
        service = Redis(Path(folder))
        service.start()
        try:
            measured = asyncio.run(measure(service.url, rounds))
        finally:
            service.stop()
    RESULT.write_text(report(measured, load=os.getloadavg()[0]), encoding="utf-8")


if __name__ == "__main__":
    main()
