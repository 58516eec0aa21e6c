"""The restore drill: an old backup leaves a gap, which is named to the reservation; an archived log leaves none."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2 as httpx
import pytest
from sqlalchemy import text

from penstock.adapters.postgresql.preparing import prepare
from penstock.config import load
from penstock.wiring.auditing_cluster import audit_from_outside
from penstock.wiring.clock import SystemClock
from penstock.wiring.doctoring.examining import examine
from penstock.wiring.doctoring.patient import Patient
from penstock.wiring.places import Places
from tests.system.clusters import until
from tests.system.keepers import ACCOUNTS, World, now_ms
from tests.system.programs import Service, SimulatedModel
from tests.system.restoring import Archived

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("restore")]

TOKENS = 15  # of each request


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Services that are prepared, and ten requests in the ledger; each drill leaves it whole."""
    folder = tmp_path_factory.mktemp("world")
    world = World(folder)
    world.postgresql = Archived(folder / "archived")
    try:
        world.start()
        world.keeper()
        until(world.is_ready)
        world.settle(10)
        world.assert_whole()
        yield world
    finally:
        world.stop()


def archived(world: World) -> Archived:
    assert isinstance(world.postgresql, Archived)
    return world.postgresql


def lost(world: World) -> None:
    """PostgreSQL is gone, and so are the connections to it; the keeper waits."""
    archived(world).lose()
    world.engine.dispose()


def found(world: World) -> dict[str, str]:
    """What the doctor finds, by check."""
    places = Places(world.folder / "data")
    patient = Patient(configuration=load([world.file]), places=places, environment={}, clock=SystemClock())
    return {each.check: each.what for each in asyncio.run(examine(patient)).findings}


def differences(world: World) -> dict[str, int]:
    """By how much the audit finds counters above the ledger, by limit."""
    (acme,) = asyncio.run(audit_from_outside(load([world.file]))).organisations
    return {each.limit: each.counter - each.expected for each in acme.differences}


def found_of_quota(world: World) -> dict[str, str]:
    """What the doctor finds, but of the broker, which this world does not have, once a keeper leads again.

    A keeper writes on from before PostgreSQL was lost, by its fence, until it renews its lock and finds it gone.
    """
    until(lambda: "keeper" not in found(world))
    return {check: what for check, what in found(world).items() if check not in {"stores", "secrets"}}


def test_an_archived_log_leaves_no_gap(world: World) -> None:
    before = len(world.events())
    archived(world).back_up_base()
    world.settle(7)
    world.assert_whole()
    archived(world).archive_log()
    lost(world)
    world.settle(3)
    archived(world).restore_base()
    world.assert_whole()
    assert len(world.events()) == before + 10
    assert found_of_quota(world) == {}


def test_an_old_dump_leaves_a_gap_that_is_named_and_nothing_is_billed_twice(world: World) -> None:
    archived(world).dump()
    before = list(world.settled)
    world.settle(7)
    world.assert_whole()  # in the ledger that will be lost, and no longer in the outbox
    gap = sorted(set(world.settled) - set(before))
    lost(world)
    world.settle(3)  # the realtime lane goes on: these wait in the outbox
    archived(world).restore_dump()
    prepare(world.engine, ACCOUNTS, now_ms=now_ms())  # as `penstock setup` does: the dump has no passwords
    world.until_drained()

    assert Counter(event.reservation for event in world.events()) == Counter(set(world.settled) - set(gap))
    told = found(world)
    assert f"acme: Redis has charged {len(gap)} reservations" in told["gap"]
    assert all(each in told["gap"] for each in gap)
    assert "drift" in told
    assert differences(world)["acme/tokens/day"] == TOKENS * len(gap)

    for keeper in world.keepers:
        keeper.kill()
    epoch = world.inspected_epoch()
    with world.engine.begin() as connection:
        connection.execute(text("DELETE FROM epochs"))  # as of a backup from before this epoch
    world.command("rebuild", "--force", "--rebuild-s", "0")
    assert world.inspected_epoch() > epoch
    world.keeper()
    world.settled = [each for each in world.settled if each not in gap]
    world.settle(2)
    world.assert_whole()
    assert found_of_quota(world) == {}


def used(service: Service, count: int) -> set[str]:
    """Send requests; what the service's log calls them, as somebody would find them who lost the ledger."""
    known = charged_in_log(service)
    asked = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    with httpx.Client(base_url=service.url, headers={"authorization": f"Bearer {service.key}"}, timeout=60) as client:
        for _ in range(count):
            assert client.post("/v1/chat/completions", json=asked).status_code == 200
    until(lambda: len(charged_in_log(service) - known) == count)
    return charged_in_log(service) - known


def charged_in_log(service: Service) -> set[str]:
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    return {line["reservation"] for line in lines if line.get("event") == "request" and line.get("cost_nanos", 0) > 0}


def in_ledger(service: Service) -> list[str]:
    """Reservations in the export of these days."""
    today = datetime.now(UTC).date()
    days = ("--from", str(today - timedelta(days=1)), "--to", str(today + timedelta(days=1)))
    return [line.partition(",")[0] for line in service.command("ledger", "export", *days).splitlines()[1:]]


def test_an_old_file_of_the_embedded_default_is_served_and_the_log_names_what_it_lacks(tmp_path: Path) -> None:
    model = SimulatedModel(tmp_path / "model", "--model", "m")
    service = Service(tmp_path / "service", model.url, limits=("1M tokens/day",))
    try:
        model.start()
        service.start()
        key = service.key
        before = used(service, 3)
        with closing(sqlite3.connect(service.data / "penstock.db")) as connection:
            connection.execute("VACUUM INTO ?", (str(tmp_path / "penstock.db"),))
        gap = used(service, 2)
        assert service.stop() == 0
        for file in service.data.glob("penstock.db*"):
            file.unlink()
        (tmp_path / "penstock.db").rename(service.data / "penstock.db")
        service.start()
        after = used(service, 1)
        assert service.key == key
        assert service.audited()["tokens_held"] == 0
        kept = in_ledger(service)
        assert sorted(kept) == sorted(before | after)
        assert charged_in_log(service) - set(kept) == gap
    finally:
        for program in (service, model):
            if program.process is not None and program.process.poll() is None:
                program.stop()
