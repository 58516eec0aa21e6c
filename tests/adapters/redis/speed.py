"""What a reserve and a settle cost through the store in Redis, with many requests at once.

Run it with ``python -m tests.adapters.redis.speed``. It prints CPU microseconds for one reserve and one settle
together, under eight limits: of this process and of Redis, the least of five rounds.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from penstock.adapters.redis import RedisStore, load_library
from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.checking import read_info
from penstock.adapters.redis.client import RedisClient, pack
from penstock.quota import Define, Definitions, Key, Limit, Model, Price, Reserved, Settled, parse_limit_id
from tests.adapters.redis.desks import ready, reserve, settle
from tests.quota.speed import LIMITS
from tests.system.services import Redis

ROUNDS, REQUESTS, AT_ONCE = 5, 10_000, 100


def eight_limits() -> Define:
    """Those that the model's own speed is measured under, never reached."""
    limits = []
    for text in LIMITS:
        limit = parse_limit_id(text)
        limits.append(Limit(owner=limit.owner, metric=limit.metric, kind=limit.kind, period_ms=limit.period_ms,
                            anchor_ms=limit.anchor_ms, cap=1 << 36))  # fmt: skip
    definitions = Definitions(
        limits=tuple(limits), keys={"k1": Key(id="k1", team="search", macs=(("ab12", 0),))},
        models={"m": Model(name="m", context=8_192, price=Price(prompt_picos=150_000, completion_picos=600_000))},
    )  # fmt: skip
    return Define(organisation="acme", caller_now_ms=0, version=1, definitions=definitions)


async def request(store: RedisStore, number: int) -> None:
    """One after the other, as a request does."""
    granted = await store.apply(reserve(number))
    ended = await store.apply(settle(number))
    assert (type(granted), type(ended)) == (Reserved, Settled)


async def redis_us(client: RedisClient) -> int:
    """CPU microseconds that Redis has used, outside the kernel and in it."""
    told = read_info(await client.ask(pack("INFO", "cpu")))
    return round(1e6 * (float(told["used_cpu_user"]) + float(told["used_cpu_sys"])))


async def measure(url: str) -> tuple[float, float, float]:
    """Microseconds for each request: of this process, of Redis, and of the clock on the wall."""
    client = RedisClient(read_address(url))
    await load_library(client)
    rounds = []
    store = RedisStore(read_address(url), bound_s=5)  # on a busy machine a repetition would be measured too
    try:
        await store.start()
        await store.apply(eight_limits())
        await store.apply(ready())
        for start in range(0, ROUNDS * REQUESTS, REQUESTS):
            before_us, began_ns, began_s = await redis_us(client), time.process_time_ns(), time.perf_counter()
            for first in range(start, start + REQUESTS, AT_ONCE):
                await asyncio.gather(*(request(store, number) for number in range(first, first + AT_ONCE)))
            own_us, wall_us = (time.process_time_ns() - began_ns) / 1000, 1e6 * (time.perf_counter() - began_s)
            rounds.append([each / REQUESTS for each in (own_us, await redis_us(client) - before_us, wall_us)])
    finally:
        await store.close()
    await client.close()
    own, there, wall = (min(column) for column in zip(*rounds, strict=True))
    return own, there, wall


def main() -> None:
    """Measure, and print."""
    with TemporaryDirectory() as folder:
        service = Redis(Path(folder))
        service.start()
        try:
            own, there, wall = asyncio.run(measure(service.url))
        finally:
            service.stop()
    sys.stdout.write(
        f"reserve + settle in Redis under {len(LIMITS)} limits, {AT_ONCE} requests at once: "
        f"{own:.1f} us of CPU here, {there:.1f} us in Redis, {wall:.1f} us on the wall\n"
    )


if __name__ == "__main__":
    main()
