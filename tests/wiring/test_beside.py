"""What works beside a listener never dies alone: a process that looks alive and does nothing is the worst of both."""

from __future__ import annotations

import asyncio

import pytest

from penstock.wiring.listening import beside


async def fail() -> None:
    raise RuntimeError("a bug")


async def last() -> None:
    await asyncio.Event().wait()


async def end() -> None:
    return


def test_a_fault_in_the_work_ends_the_serving() -> None:
    async def main() -> None:
        await asyncio.wait_for(beside(fail(), last()), 5)

    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(main())
    assert [str(each) for each in raised.value.exceptions] == ["a bug"]


def test_the_work_ends_with_the_serving() -> None:
    async def main() -> None:
        await asyncio.wait_for(beside(last(), end()), 5)

    asyncio.run(main())
