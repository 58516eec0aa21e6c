"""The realtime lane in a simulated system: the API process with its spool, its clients, and what they were told.

The lane, the leases and the spool are the real ones; only the disk under the spool is of memory.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from penstock.adapters.spooling import FileSpool
from penstock.errors import PenstockError
from penstock.lanes.models import ServedModel
from penstock.lanes.posting import Posting
from penstock.lanes.realtime import RealtimeLane
from penstock.lanes.requests import StreamReply
from penstock.ports import RequestRecord, UpstreamClient
from penstock.wiring.readiness import readiness
from tests.lanes.stage import Health, request
from tests.simulation.scheduling import Clock, Life
from tests.simulation.store import QuotaPort

PROBE_EVERY_S = 5.0


@dataclass(slots=True)
class Machine:
    """The disk of the API's machine, which outlives every process on it. ``kept``: lines that were ever synced."""

    lines: bytearray = field(default_factory=bytearray)
    kept: int = 0
    delivered_after_restart: int = 0


class MemoryDisk:
    """``penstock.adapters.spooling.disk.Disk`` of one process."""

    def __init__(self, machine: Machine, life: Life) -> None:
        self._machine = machine
        self._life = life

    async def open(self) -> bytes:
        await self._life.wait(0.001)
        found = bytes(self._machine.lines)
        if found and not found.endswith(b"\n"):
            self._machine.lines += b"\n"
        self._machine.delivered_after_restart += len(found.splitlines())
        return found

    async def append(self, lines: bytes) -> None:
        await self._life.wait(0.002)
        torn = self._life.faults.random.randrange(len(lines))
        self._machine.lines += lines[:torn]
        self._life.point("spool half written")
        self._machine.lines += lines[torn:]
        await self._life.wait(0.005)
        self._machine.kept += 1
        self._life.point("spool synced")

    def empty(self) -> None:
        self._life.check()
        self._machine.lines.clear()

    def close(self) -> None:
        return


@dataclass(slots=True, eq=False)
class Asked:
    """One request of a client.

    Args:
        tokens: What the whole answer said that it used; None if no whole answer came.
        left: The client went away by itself.
    """

    record: RequestRecord
    life: Life
    tokens: int | None = None
    left: bool = False


class Door:
    """Where clients reach the API process, while there is one."""

    def __init__(self, clock: Clock, random: Random) -> None:
        self.clock = clock
        self.random = random
        self.machine = Machine()
        self.asked: list[Asked] = []
        self.lane: RealtimeLane | None = None
        self.life: Life | None = None
        self.spool: FileSpool | None = None

    async def serve(
        self, life: Life, store: QuotaPort, posting: Posting, models: dict[str, ServedModel], client: UpstreamClient
    ) -> None:
        """The API process."""
        spool = FileSpool(MemoryDisk(self.machine, life), store, post=posting.post, reached=life.point)
        await spool.start()
        life.point("started")
        health: Any = Health()
        lane = RealtimeLane(
            store, client, self.clock, models, observer=health, spool=spool, random_bits=self.random.getrandbits
        )
        await lane.start()
        self.lane, self.life, self.spool = lane, life, spool
        while True:  # as a process is asked that has nothing else to do: so it learns of a loss
            await life.wait(PROBE_EVERY_S)
            await readiness(store, ("acme",), self.clock)

    def send(self, number: int) -> None:
        """A client sends a request, and may leave before it is answered."""
        lane, life = self.lane, self.life
        if lane is None or life is None or life.is_over:
            return
        record = RequestRecord(request_id=f"r{number}", received_at_s=self.clock.monotonic_s())
        asked = Asked(record, life)
        self.asked.append(asked)
        asking = life.run(self._ask(lane, asked))
        if self.random.random() < 0.25:
            asyncio.get_running_loop().call_later(self.random.uniform(0, 15), self._leave, asked, asking)

    def _leave(self, asked: Asked, asking: asyncio.Task[Any]) -> None:
        if not asking.done():
            asked.left = True
            asking.cancel()

    async def _ask(self, lane: RealtimeLane, asked: Asked) -> None:
        stream = self.random.random() < 0.7
        sent = request(stream=stream, record=asked.record, body_bytes=60, max_tokens=50, include_usage=True)
        try:
            reply = await lane.answer(sent)
        except PenstockError:
            return
        if not isinstance(reply, StreamReply):
            asked.tokens = _told(reply.body)
        else:
            asked.tokens = await self._read(reply)

    async def _read(self, reply: StreamReply) -> int | None:
        """Read to the end, partly by pouring; what its usage says, if it ends as it should."""
        shown = bytearray()

        def write(piece: bytes) -> bool:
            shown.extend(piece)
            return self.random.random() < 0.9

        if self.random.random() < 0.5 and reply.pour is not None:
            await reply.pour(write)
        await _gathered(reply.events, shown.extend)
        if not shown.endswith(b"data: [DONE]\n\n"):
            return None
        return _told(bytes(shown).split(b"\n\n")[-3].removeprefix(b"data: "))


def _told(text: bytes) -> int:
    usage = json.loads(text)["usage"]
    return int(usage["prompt_tokens"]) + int(usage["completion_tokens"])


async def _gathered(events: AsyncGenerator[bytes, None], take: Callable[[bytes], None]) -> None:
    try:
        async for piece in events:
            take(piece)
    finally:
        await events.aclose()
