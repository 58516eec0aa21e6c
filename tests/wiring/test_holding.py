"""What is held, from the store that holds it to the command that asks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from penstock.adapters.embedded.restarting import open_store
from penstock.errors import StoreUnavailable
from penstock.wiring.holding import Held, ask_held, held_now
from penstock.wiring.places import Places
from tests.wiring.conftest import DEFINITIONS, Served, While, announced, now_ms


def test_open_reservations_are_counted_and_ended_ones_are_not(while_serving: While) -> None:
    async def check(served: Served) -> None:
        held = await held_now(served.store, ["acme"], now_ms=now_ms())
        assert held == {"acme": Held(requests=1, tokens=held["acme"].tokens)}
        assert held["acme"].tokens >= 100
        with announced(served.places) as operations:
            operations.path, operations.body = "/holds", msgspec.json.encode(held)
            assert await asyncio.to_thread(ask_held, served.places) == held

    while_serving(check)


def test_where_no_service_runs_nothing_is_known(tmp_path: Path) -> None:
    assert ask_held(Places(tmp_path)) is None


def test_an_organisation_whose_state_is_not_ready_is_an_error_and_not_zero(places: Places) -> None:
    async def test() -> None:
        async with open_store(places.database, {"acme": DEFINITIONS}, version=1, now_ms=now_ms) as store:
            with pytest.raises(StoreUnavailable, match="globex: its quota state is not ready"):
                await held_now(store, ["globex"], now_ms=now_ms())

    asyncio.run(test())
