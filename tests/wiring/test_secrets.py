"""Peppers: found where the configuration says, or made once and guarded."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from penstock.adapters.sql.database import migrate, open_engine
from penstock.adapters.sql.keys import Keys
from penstock.config import Configuration
from penstock.config.identity_settings import Auth
from penstock.config.values import Secret
from penstock.errors import ConfigurationError
from penstock.quota.definitions import Key
from penstock.wiring.places import Places
from penstock.wiring.secrets import read_peppers

LONG = "p" * 32


def configured(**auth: Any) -> Configuration:
    return Configuration(models={}, auth=Auth(**auth))


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "state")


def test_the_embedded_default_makes_a_pepper_once_for_its_owner_only(places: Places) -> None:
    first = read_peppers(configured(), places, {})
    assert read_peppers(configured(), places, {}) == first
    assert len(first[0]) == 64
    assert stat.S_IMODE(places.pepper.stat().st_mode) == 0o600
    assert stat.S_IMODE(places.data.stat().st_mode) == 0o700
    assert [path.name for path in places.data.iterdir()] == ["pepper"]


def test_a_pepper_that_others_may_read_is_refused(places: Places) -> None:
    read_peppers(configured(), places, {})
    places.pepper.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        read_peppers(configured(), places, {})


def test_a_lost_pepper_is_not_replaced_while_keys_were_made_with_it(places: Places) -> None:
    read_peppers(configured(), places, {})
    engine = open_engine(places.database)
    migrate(engine)
    Keys(engine).create("acme", Key(id="k1", macs=(("ab", 0),)), name="", now_ms=1, actor="test")
    engine.dispose()
    places.pepper.unlink()
    with pytest.raises(ConfigurationError, match="1 keys that were made with it; restore"):
        read_peppers(configured(), places, {})
    assert not places.pepper.exists()


def test_a_configured_pepper_is_used_and_none_is_made(places: Places, tmp_path: Path) -> None:
    file = tmp_path / "previous"
    file.write_text("q" * 40 + "\n")
    auth = configured(pepper=Secret(env="PEPPER"), pepper_previous=Secret(file=str(file)))
    assert read_peppers(auth, places, {"PEPPER": LONG}) == (LONG.encode(), b"q" * 40)
    assert not places.data.exists()


def test_a_short_pepper_is_refused_without_repeating_it(places: Places) -> None:
    with pytest.raises(ConfigurationError, match=r"auth\.pepper: 31 bytes, at least 32") as refused:
        read_peppers(configured(pepper=Secret(env="PEPPER")), places, {"PEPPER": "canary!" + "x" * 24})
    assert "canary" not in str(refused.value)


def test_the_option_comes_before_the_configuration_and_that_before_the_default() -> None:
    environment = {"HOME": "/h"}
    assert Places.choose(Path("/o"), "/c", environment).data == Path("/o")
    assert Places.choose(None, "/c", environment).data == Path("/c")
    assert Places.choose(None, None, environment).data == Path("/h/.local/state/penstock")
    assert Places.choose(None, None, {**environment, "XDG_STATE_HOME": "/s"}).data == Path("/s/penstock")
