"""Definitions are carried over into the database as they are, changes are audited, prices keep their history."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Engine, select

from penstock.adapters.sql.audit_log import entries
from penstock.adapters.sql.definition_tables import prices, teams
from penstock.adapters.sql.definitions import read_definitions, record_definitions
from penstock.adapters.sql.keys import Keys
from penstock.quota.definitions import Definitions, Kind, Limit, Metric, Model, Overrun, Price, ReservePolicy

NOW_MS = 1_741_000_000_000
MODEL = Model(name="m", context=8192, template_tokens=64, tokens_per_byte_max=2, price=Price(prompt_picos=3))
DAY = Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.WINDOW, period_ms=86_400_000, cap=2**52)
TEAM = Limit(owner="acme:team:search", metric=Metric.TOKENS, kind=Kind.RATE, period_ms=60_000, cap=9, model="m")
ACME = Definitions(limits=(TEAM, DAY), models={"m": MODEL}, reserve=ReservePolicy.LEARNED, overrun=Overrun.DEBT)


def _record(engine: Engine, definitions: dict[str, Definitions], now_ms: int = NOW_MS, shards: int = 1) -> bool:
    return record_definitions(engine, definitions, shards=shards, now_ms=now_ms, actor="penstock setup")


def _prices(engine: Engine) -> list[tuple[int, int]]:
    with engine.connect() as connection:
        order = select(prices.c.since_ms - NOW_MS, prices.c.prompt_picos).order_by(prices.c.since_ms)
        return [(since, picos) for since, picos in connection.execute(order)]


def test_definitions_read_back_equal_those_recorded(engine: Engine) -> None:
    other = Definitions(models={"m": MODEL})
    assert _record(engine, {"acme": ACME, "other": other})
    found = read_definitions(engine)
    assert found["other"] == other
    assert set(found["acme"].limits) == {TEAM, DAY}
    assert replace(found["acme"], limits=ACME.limits) == ACME
    with engine.connect() as connection:
        assert connection.execute(select(teams.c.organisation, teams.c.name)).all() == [("acme", "search")]


def test_recording_the_same_again_changes_nothing(engine: Engine) -> None:
    _record(engine, {"acme": ACME})
    version, audited = Keys(engine).version(), len(entries(engine))
    assert not _record(engine, {"acme": ACME}, NOW_MS + 1)
    assert (Keys(engine).version(), len(entries(engine))) == (version, audited)
    assert len(_prices(engine)) == 1


def test_a_changed_cap_raises_the_version_and_is_audited(engine: Engine) -> None:
    _record(engine, {"acme": ACME})
    version = Keys(engine).version()
    assert _record(engine, {"acme": replace(ACME, limits=(TEAM, replace(DAY, cap=5)))})
    assert Keys(engine).version() == version + 1
    (entry,) = entries(engine, rows_max=1)
    assert (entry.subject, entry.before, entry.after) == ("limit acme/tokens/day", {"cap": 2**52}, {"cap": 5})


def test_a_limit_that_left_is_not_read(engine: Engine) -> None:
    _record(engine, {"acme": ACME})
    assert _record(engine, {"acme": replace(ACME, limits=(DAY,))})
    assert read_definitions(engine)["acme"].limits == (DAY,)
    with engine.connect() as connection:
        assert connection.execute(select(teams)).all() == []


def test_prices_keep_their_history(engine: Engine) -> None:
    for after_ms, picos in ((0, 3), (0, 4), (9, 4), (10, 3)):
        model = replace(MODEL, price=Price(prompt_picos=picos))
        _record(engine, {"acme": replace(ACME, models={"m": model})}, NOW_MS + after_ms)
    assert _prices(engine) == [(0, 3), (1, 4), (10, 3)]
    assert read_definitions(engine)["acme"].models["m"].price == Price(prompt_picos=3)


def test_an_organisation_that_left_has_nothing_to_use_until_it_returns(engine: Engine) -> None:
    _record(engine, {"acme": ACME, "other": ACME})
    assert _record(engine, {"other": ACME})
    assert read_definitions(engine)["acme"] == Definitions(reserve=ACME.reserve, overrun=ACME.overrun)
    assert not _record(engine, {"other": ACME})
    assert _record(engine, {"acme": ACME, "other": ACME})
    assert set(read_definitions(engine)["acme"].limits) == set(ACME.limits)


def test_an_organisation_keeps_its_shard_and_a_new_one_gets_the_emptiest(engine: Engine) -> None:
    def shards(*names: str, count: int = 3) -> list[int]:
        _record(engine, dict.fromkeys(names, ACME), shards=count)
        found = read_definitions(engine)
        return [found[name].shard for name in names]

    assert shards("b", "c") == [0, 1]
    assert shards("a", "b", "c") == [2, 0, 1]
    assert shards("a", "b", "c", "d") == [2, 0, 1, 0]
    assert shards("a", "c", "d") == [2, 1, 0]
    assert shards("a", "c", "d", count=2) == [0, 1, 0]
    assert (entries(engine)[0].subject, entries(engine)[0].after) == ("organisation a", {"shard": 0})
