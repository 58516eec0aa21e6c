"""An end that the store did not take is on the disk before anybody is told, and reaches the store once it is back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from penstock.adapters.spooling import DiskFile, FileSpool
from penstock.errors import StoreUnavailable
from penstock.quota.events import Usage
from penstock.quota.operations import Lane, Reserve, Settle, Settled, State, Unknown, Void

BOUND_S = 10.0
RESERVE = Reserve(
    organisation="acme", caller_now_ms=0, reservation="r", nonce="n", fingerprint="f", key="k", key_mac="", route="x",
    model="m", body_bytes=1, outputs_bound=1, lane=Lane.REALTIME, job_deadline_ms=1,
)  # fmt: skip
VOID = Void(organisation="acme", caller_now_ms=0, reservation="v")


def settle(reservation: str) -> Settle:
    return Settle(organisation="acme", caller_now_ms=0, reservation=reservation, usage=Usage(1, 1))


class Away:
    """A store that is away until told otherwise, and remembers what it was given."""

    def __init__(self) -> None:
        self.is_away = True
        self.answer: Any = Settled(state=State.POSTED, cost_nanos=7)
        self.applied: list[Any] = []
        self.asked = asyncio.Event()

    async def apply(self, call: Any) -> Any:
        self.asked.set()
        if self.is_away:
            raise StoreUnavailable("away")
        self.applied.append(call)
        return self.answer

    async def until_asked(self) -> None:
        self.asked.clear()
        await asyncio.wait_for(self.asked.wait(), BOUND_S)


async def later(_reserve: Reserve, _usage: Usage) -> None:
    """Whether a settle of an unknown reservation was charged before cannot be told yet."""


@asynccontextmanager
async def opened(file: Path, store: Away, post: Callable[..., Any] = later) -> AsyncIterator[FileSpool]:
    spool = FileSpool(DiskFile(file), store, post=post)
    await spool.start()
    try:
        yield spool
    finally:
        await spool.close()


def test_an_end_is_on_the_disk_once_it_is_kept(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "spool", Away()) as spool:
            await asyncio.gather(*(spool.keep(settle(f"r{number}"), RESERVE) for number in range(50)))
            lines = (tmp_path / "spool").read_text().splitlines()
            assert len(lines) == 50
            assert all('"source":"upstream"' in line for line in lines)

    asyncio.run(main())


def test_it_reaches_the_store_once_that_is_back_and_the_file_begins_anew(tmp_path: Path) -> None:
    async def main() -> None:
        store = Away()
        async with opened(tmp_path / "spool", store) as spool:
            await spool.keep(settle("r"), RESERVE)
            await store.until_asked()
            store.is_away = False
            while spool.waiting:
                await store.until_asked()
            assert store.applied == [settle("r")]
        assert (tmp_path / "spool").read_bytes() == b""

    asyncio.run(main())


def test_the_next_run_applies_what_the_last_one_left(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "spool", Away()) as spool:
            await spool.keep(settle("r"), RESERVE)
            await spool.keep(VOID, RESERVE)
        with (tmp_path / "spool").open("ab") as file:
            file.write(b'{"reserve": torn')
        store = Away()
        store.is_away = False
        async with opened(tmp_path / "spool", store) as spool:
            while spool.waiting:
                await store.until_asked()
        assert store.applied == [settle("r"), VOID]

    asyncio.run(main())


def test_what_is_kept_after_a_torn_line_is_there_for_the_run_after_the_next(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "spool").write_bytes(b'{"reserve": torn by a loss of power')
        async with opened(tmp_path / "spool", Away()) as spool:
            await spool.keep(settle("r"), RESERVE)
        store = Away()
        store.is_away = False
        async with opened(tmp_path / "spool", store) as spool:
            while spool.waiting:
                await store.until_asked()
        assert store.applied == [settle("r")]

    asyncio.run(main())


def test_a_settle_of_an_unknown_reservation_stays_until_it_can_be_posted_and_a_void_does_not(tmp_path: Path) -> None:
    async def main() -> None:
        store = Away()
        store.is_away, store.answer = False, Unknown()
        async with opened(tmp_path / "spool", store) as spool:
            await spool.keep(VOID, RESERVE)
            await spool.keep(settle("r"), RESERVE)
            for _ in range(3):
                await store.until_asked()
            assert spool.waiting == 1
        assert '"reservation":"r"' in (tmp_path / "spool").read_text()

    asyncio.run(main())


def test_a_settle_of_an_unknown_reservation_is_posted_with_what_was_reserved_and_used(tmp_path: Path) -> None:
    async def main() -> None:
        store, posted = Away(), []
        store.is_away, store.answer = False, Unknown()

        async def post(reserve: Reserve, usage: Usage) -> Any:
            posted.append((reserve, usage))
            return None if len(posted) < 3 else Settled(state=State.POSTED, cost_nanos=7)

        async with opened(tmp_path / "spool", store, post) as spool:
            await spool.keep(settle("r"), RESERVE)
            while spool.waiting:
                await store.until_asked()
        assert posted == [(RESERVE, Usage(1, 1))] * 3
        assert (tmp_path / "spool").read_bytes() == b""

    asyncio.run(main())
