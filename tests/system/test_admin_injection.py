"""Every string of the corpora in every place of ``/admin/v1``: refused, or kept and read again without harm."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from urllib.request import urlopen

import pytest
from sqlalchemy import Engine

from penstock.api.application import application
from penstock.config.walking import NAME_PATTERN
from tests.adapters.databases import Databases
from tests.api.admin_places import VICTIMS, Place, Prey, places
from tests.api.corpora import STRINGS
from tests.api.desk import PLATFORM, Desk
from tests.api.door import listening
from tests.counts import count
from tests.system.deployments import Embedded, until
from tests.system.services import PostgreSQL

pytestmark = [pytest.mark.slow, pytest.mark.torture]

MOVE_EVERY = 250
KEYS = "/admin/v1/organisations/{organisation}/keys"
SERIES = re.compile(r'[a-z_]+(_bucket|_sum|_count)?(\{([a-z_]+="[^"\\\x00-\x1f\x7f-\x9f]*",?)*\})? [-+0-9.eInfNa]+')


def drawn(model: str, seed: int) -> list[tuple[Place, str]]:
    """All in full, else a part of them; some become names of keys in any case, which are free text."""
    every = [(place, text) for place in places(model) for text in STRINGS]
    (free,) = (place for place in places(model) if str(place) == f"POST {KEYS}, body name")
    kept = [(free, text) for text in STRINGS[::20]]
    return kept + Random(seed).sample(every, count(len(every), short=100))


def attack(prey: Prey, seed: int) -> None:
    prey.move_on()
    prey.try_bodies()
    statuses = set()
    for number, (place, text) in enumerate(drawn(prey.model, seed), 1):
        if number % MOVE_EVERY == 0:
            prey.move_on()
        try:
            statuses.add(prey.attack(place, text))
        except (AssertionError, TimeoutError) as error:
            error.add_note(f"{place}: {text!r}")
            raise
    assert {200, 201, 400, 404} <= statuses


def check_lists(prey: Prey) -> None:
    prey.raise_again()
    for path in ("/organisations", f"/organisations/{prey.victim}/keys", "/prices", "/audit-log"):
        assert prey.listed(path)
    assert all(prey.told(prey.victim))


def is_harmless(text: str) -> bool:
    """For a terminal and for whoever reads line by line."""
    return all(character.isprintable() or character == "\n" for character in text)


def test_whatever_administrators_send_is_refused_or_read_again_by_commands_metrics_and_logs(
    tmp_path: Path, seed: int
) -> None:
    deployed = Embedded(tmp_path)
    deployed.start()
    try:
        platform = deployed.command("keys", "create", "acme", "--admin", "platform").strip()
        prey = Prey(int(deployed.url.rpartition(":")[2]), platform, "m")
        until(prey.is_known)  # a new key is in force within two seconds
        before = prey.told("acme"), prey.told("other")
        attack(prey, seed)
        check_lists(prey)
        assert (prey.told("acme"), prey.told("other")) == before
        for arguments in (["keys", "list"], ["usage", "--by", "key,team"]):
            assert is_harmless(deployed.command(*arguments)), arguments
        answered = urlopen(f"{deployed.service.running['operations_url']}/metrics", timeout=60).read().decode()
        for line in answered.splitlines():
            assert line.startswith("# ") or SERIES.fullmatch(line), line
        for line in deployed.service.log.read_text().splitlines():
            assert is_harmless(line), line
    finally:
        deployed.stop()


@contextmanager
def prepared(folder: Path) -> Iterator[Engine]:
    server = PostgreSQL(folder, "fsync=off")
    server.start()
    databases = Databases(server)
    try:
        with databases.fresh() as engine:
            yield engine
    finally:
        databases.close()
        server.stop()


def test_what_sqlite_takes_and_postgresql_does_not_is_refused_in_words_too(tmp_path: Path, seed: int) -> None:
    with prepared(tmp_path) as engine:
        desk = Desk(tmp_path, engine)
        desk.hold("another", *VICTIMS, *(text for text in STRINGS if re.fullmatch(NAME_PATTERN, text)))
        with listening(application(desk.services())) as (port, _):
            prey = Prey(port, PLATFORM, "chat-small")
            before = prey.told("acme"), prey.told("globex")
            attack(prey, seed)
            check_lists(prey)
            assert (prey.told("acme"), prey.told("globex")) == before
