"""A change of keys is noticed at the next look, once."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import Engine, text

from penstock.adapters.sql.database import writing
from penstock.adapters.sql.keys import Keys
from penstock.adapters.sql.watching import EVERY_S, watch
from penstock.quota import Key


def _watched(engine: Engine, *before_looks: str) -> list[int]:
    """The versions noticed, when each of these happens before a look: a key's id is created, ``!`` breaks the table."""
    keys = Keys(engine)
    noticed: list[int] = []
    happenings = iter(before_looks)

    async def changed(version: int) -> None:
        noticed.append(version)

    async def pause(seconds: float) -> None:
        assert seconds == EVERY_S == 0.5
        happening = next(happenings, None)
        if happening is None:
            raise asyncio.CancelledError
        if happening in ("!", "?"):
            old, new = ("versions", "elsewhere") if happening == "!" else ("elsewhere", "versions")
            with writing(engine) as connection:
                connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))
        elif happening:
            keys.create("acme", Key(id=happening), name="", now_ms=0, actor="ops")

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            await watch(keys.version, changed, known=0, pause=pause)

    asyncio.run(main())
    return noticed


def test_each_change_is_noticed_at_the_next_look_and_once(engine: Engine) -> None:
    assert _watched(engine, "", "k1", "", "k2", "") == [1, 2]


def test_a_database_that_cannot_be_read_is_asked_again(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    assert _watched(engine, "k1", "!", "?", "k2") == [1, 2]
    assert "changes of keys and definitions wait" in caplog.text
