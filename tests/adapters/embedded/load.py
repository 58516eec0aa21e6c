"""A process that serves a database under load until it is killed, and tells its parent what was acknowledged.

Run as ``python -m tests.adapters.embedded.load DATABASE START_MS SEED``. Each acknowledgement is one line, written
with one system call after the store's answer: a line that arrives was acknowledged before the kill.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from pathlib import Path

from penstock.adapters.embedded import CRASH_POINTS
from penstock.quota import Lane, Reserved, Settled, Usage, reservation_id
from penstock.wiring.crash import VARIABLE, crash_from
from tests.adapters.embedded.counter import Counter

WORKERS = 12
REQUESTS_MAX = 400  # for each worker; the kill comes long before


def acknowledged(*words: object) -> None:
    """Tell the parent."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Worker:
    """One client: reserves, touches, then settles, voids or leaves, as drawn."""

    def __init__(self, counter: Counter, draw: random.Random) -> None:
        self._counter = counter
        self._draw = draw

    async def run(self) -> None:
        """Send requests one after the other."""
        for _ in range(REQUESTS_MAX):
            await self._request()

    async def _request(self) -> None:
        counter, draw = self._counter, self._draw
        reservation = reservation_id(counter.now_ms, draw.getrandbits(80))
        lane = draw.choice((Lane.REALTIME, Lane.REALTIME, Lane.QUEUE))
        answer = await counter.reserve(reservation, lane=lane)
        if not isinstance(answer, Reserved):
            raise AssertionError(f"the load does not fit its limits: {answer}")
        if lane is Lane.QUEUE:
            acknowledged("queued", reservation)
        if draw.random() < 0.3:
            await counter.touch(reservation, 100, draw.randrange(200))
        end = draw.random()
        if end < 0.75:
            usage = Usage(draw.randrange(1, 300), draw.randrange(200))
            answer = await counter.settle(reservation, usage)
            if isinstance(answer, Settled):
                acknowledged("posted", reservation, usage.prompt + usage.completion)
        elif end < 0.9:
            await counter.void(reservation)
            acknowledged("voided", reservation)


async def main(path: Path, start_ms: int, seed: int) -> None:
    """Serve, under load."""
    begun_s = time.monotonic()
    counter = Counter(path, lambda: start_ms + int((time.monotonic() - begun_s) * 1_000))
    reached = crash_from(os.environ.get(VARIABLE), CRASH_POINTS)
    assert reached is not None
    async with counter.opened(reached=reached):
        workers = (Worker(counter, random.Random(f"{seed}-{number}")) for number in range(WORKERS))
        await asyncio.gather(*(worker.run() for worker in workers))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
