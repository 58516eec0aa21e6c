"""Each process follows what changes; keys move to the newest pepper when they are used, in either database."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import Engine

from penstock.adapters.sql.definitions import record_definitions
from penstock.adapters.sql.keys import Keys
from penstock.errors import StoreUnavailable
from penstock.lanes.credentials import Credentials, mint, pepper_name
from penstock.quota.definitions import Definitions, Key, Model
from penstock.quota.model import Organisation
from penstock.quota.operations import Call, Define, Inspect, Inspected
from penstock.wiring.clock import SystemClock
from penstock.wiring.governing import Governing

OLD, NEW = b"a pepper of at least 32 bytes, old", b"a pepper of at least 32 bytes, new"
TOKEN = mint("acme", "k1", secret=bytes(32))
MODELS = {"m": Model(name="m", context=8192)}


class Quota:
    """The quota model, of organisations as they are defined; away when told to."""

    def __init__(self) -> None:
        self.is_away = False
        self.organisations: dict[str, Organisation] = {}
        self.defined: list[str] = []

    async def apply(self, call: Call[Any]) -> Any:
        if self.is_away:
            raise StoreUnavailable("the quota store does not answer")
        if isinstance(call, Define):
            self.defined.append(call.organisation)
        organisation = self.organisations.setdefault(call.organisation, Organisation(call.organisation))
        return organisation.apply(call, time_ms=call.caller_now_ms)


def _prepared(engine: Engine) -> Keys:
    definitions = {name: Definitions(models=MODELS) for name in ("acme", "other")}
    record_definitions(engine, definitions, shards=4, now_ms=1, actor="file")
    keys = Keys(engine)
    hashed = Credentials((OLD,)).hashed(TOKEN)
    key = Key(id="k1", macs=((hashed.mac, 0),))
    keys.create("acme", key, name="", now_ms=1, actor="ops", pepper=hashed.pepper)
    return keys


def test_a_key_survives_the_rotation_of_the_pepper_and_moves_when_it_is_used(engine: Engine) -> None:
    keys = _prepared(engine)
    both, newest = Credentials((NEW, OLD)).read(TOKEN.encode()), Credentials((NEW,)).read(TOKEN.encode())
    assert both is not None
    assert newest is not None

    async def main() -> None:
        governing = Governing(engine, SystemClock(), newest_pepper=pepper_name(NEW))
        assert await governing.check(newest) is None
        for _ in range(3):  # uses at once move it once
            assert await governing.check(both) is not None
        for _ in range(1000):
            if keys.get("acme", "k1").peppers == (pepper_name(NEW),):
                break
            await asyncio.sleep(0)
            await asyncio.to_thread(keys.version)
        await governing.look()
        assert await governing.check(newest) is not None
        assert await governing.check(both) is not None

    version = keys.version()
    asyncio.run(main())
    assert keys.version() == version + 1


def test_only_what_changed_is_defined_and_a_new_organisation_is_declared_ready(engine: Engine) -> None:
    keys, quota = _prepared(engine), Quota()

    async def main() -> None:
        governing = Governing(engine, SystemClock(), is_alone=True)
        current = governing.current
        keys.revoke("acme", "k1", now_ms=2, actor="ops")
        await governing.refresh(quota)
        assert quota.defined == ["acme"]
        assert current["acme"].keys["k1"].revoked  # in place: others hold on to it
        standing = await quota.apply(Inspect(organisation="acme", caller_now_ms=3))
        assert isinstance(standing, Inspected)
        await governing.refresh(quota)
        assert quota.defined == ["acme"]

    asyncio.run(main())


def test_a_change_while_the_quota_is_away_is_defined_when_it_is_back(engine: Engine) -> None:
    keys, quota = _prepared(engine), Quota()

    async def main() -> None:
        governing = Governing(engine, SystemClock(), is_alone=True)
        quota.is_away = True
        keys.revoke("acme", "k1", now_ms=2, actor="ops")
        with pytest.raises(StoreUnavailable):
            await governing.refresh(quota)
        quota.is_away = False
        await governing.refresh(quota)
        assert quota.defined == ["acme"]

    asyncio.run(main())
