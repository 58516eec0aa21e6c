"""What the file owns and what it seeds, prices that come into force, retention, and what an erasure leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select

from penstock.adapters.sql.administering import SqlRecords
from penstock.adapters.sql.audit_log import entries
from penstock.adapters.sql.database import scrub, writing
from penstock.adapters.sql.definition_rows import read_governed, teams_by_organisation
from penstock.adapters.sql.definitions import Written, read_definitions, record_definitions
from penstock.adapters.sql.erasing import erase, erase_again, owner_of
from penstock.adapters.sql.forgetting import forget_jobs
from penstock.adapters.sql.job_tables import jobs, queued_jobs, results
from penstock.adapters.sql.keys import Keys, raise_version
from penstock.adapters.sql.prices import put_in_force
from penstock.errors import Conflict, InvalidRequest, NotFound
from penstock.lanes.administering import By, LimitRecord, OrganisationRecord, PriceRecord
from penstock.ports import Kept
from penstock.quota.definitions import Definitions, Kind, Limit, Metric, Model, Overrun, Price, ReservePolicy

NOW_MS = 1_741_000_000_000
DAY = Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.WINDOW, period_ms=86_400_000, cap=100)
MODEL = Model(name="m", context=8192, price=Price(prompt_picos=3))
IN_FILE = {"acme": Definitions(limits=(DAY,), models={"m": MODEL}), "other": Definitions(models={"m": MODEL})}
SEEDED = Written(seeded=["acme"], seeded_prices=["m"], teams={"acme": ["search"], "other": ["bare"]})
BY = By(actor="key:acme/root", now_ms=NOW_MS)
CANARY = "kestrel-canary-5b1c"


def _record(engine: Engine, definitions: dict[str, Definitions], written: Written = SEEDED) -> bool:
    return record_definitions(engine, definitions, shards=4, now_ms=NOW_MS, actor="file", written=written)


@pytest.fixture
def seeded(engine: Engine) -> Engine:
    """A database into which the file has been carried once."""
    _record(engine, IN_FILE)
    return engine


def _change(engine: Engine, name: str, *arguments: Any) -> Any:
    with writing(engine) as connection:
        raise_version(connection)
        return getattr(SqlRecords(connection, shards=4), name)(*arguments)


def test_what_the_file_only_seeds_stays_as_administrators_left_it(seeded: Engine) -> None:
    _change(seeded, "change_cap", "acme", "acme/tokens/day", 7, BY)
    _change(seeded, "create_team", "acme", "ops", BY)
    assert not _record(seeded, IN_FILE)
    assert read_definitions(seeded)["acme"].limits == (replace(DAY, cap=7),)
    assert teams_by_organisation(seeded) == {"acme": {"search", "ops"}, "other": {"bare"}}


def test_what_the_file_takes_back_is_as_it_says(seeded: Engine) -> None:
    _change(seeded, "change_cap", "acme", "acme/tokens/day", 7, BY)
    assert _record(seeded, IN_FILE, Written())
    assert read_definitions(seeded)["acme"].limits == (DAY,)
    with pytest.raises(Conflict, match="the configuration file owns"):
        _change(seeded, "change_cap", "acme", "acme/tokens/day", 9, BY)


def test_an_organisation_of_administrators_outlives_the_file(seeded: Engine) -> None:
    record = OrganisationRecord(
        name="new", managed_by="api", reserve=ReservePolicy.STRICT, overrun=Overrun.STOP, created_at_ms=0
    )
    _change(seeded, "create_organisation", record, [replace(DAY, owner="new")], BY)
    _record(seeded, {})
    found = read_definitions(seeded)
    assert (found["new"].limits, found["acme"].limits) == ((replace(DAY, owner="new"),), (DAY,))
    assert found["other"].models == {}  # which the file owned, and names no more


def test_a_limit_that_the_quota_could_not_work_with_is_refused_whole(seeded: Engine) -> None:
    def add(number: int) -> None:
        limit = replace(DAY, period_ms=1_000 * (100 + number))
        _change(seeded, "create_limit", LimitRecord(organisation="acme", limit=limit), BY)

    for number in range(31):
        add(number)
    version = Keys(seeded).version()
    with pytest.raises(InvalidRequest, match="at most 32 are possible"):
        add(31)
    assert (len(read_definitions(seeded)["acme"].limits), Keys(seeded).version()) == (32, version)


def test_a_price_is_in_force_from_its_moment_and_everywhere_with_one_version(seeded: Engine) -> None:
    price = Price(prompt_picos=9)
    record = PriceRecord(model="m", since_ms=NOW_MS + 10, price=price, in_force=False)
    assert not _change(seeded, "create_price", record, BY).in_force
    first = read_governed(seeded)
    assert first.organisations["acme"].models["m"].price == MODEL.price
    assert put_in_force(seeded, now_ms=NOW_MS + 9, actor="a") == 0
    assert put_in_force(seeded, now_ms=NOW_MS + 10, actor="a") == 1
    assert put_in_force(seeded, now_ms=NOW_MS + 11, actor="b") == 0
    second = read_governed(seeded)
    assert second.organisations["acme"].models["m"].price == price
    assert second.version == first.version + 1
    (entry,) = entries(seeded, rows_max=1)
    assert (entry.action, entry.before["prompt_picos"], entry.after["prompt_picos"]) == ("prices.in_force", 3, 9)
    with pytest.raises(Conflict, match="history is not rewritten"):
        _change(seeded, "create_price", record, BY)


def _job(engine: Engine, job: str, organisation: str, *, ended_ms: int, settled: bool = True) -> None:
    with writing(engine) as connection:
        connection.execute(
            insert(jobs).values(
                id=job, organisation=organisation, key="k", model="m", state="succeeded" if ended_ms else "queued",
                created_at_ms=NOW_MS - 9, started_at_ms=0, finished_at_ms=ended_ms, deadline_ms=0, reason="",
            )
        )  # fmt: skip
        if ended_ms:
            connection.execute(insert(results).values(_result(job, organisation, ended_ms, settled=settled)))
        elif engine.dialect.name == "sqlite":
            connection.execute(
                insert(queued_jobs).values(job=job, organisation=organisation, model="m", message=f"{CANARY} prompt")
            )


def _result(job: str, organisation: str, ended_ms: int, *, settled: bool) -> dict[str, Any]:
    return {
        "job": job, "organisation": organisation, "model": "m", "route": "chat.completions", "status": "succeeded",
        "http_status": 200, "body": f'"{CANARY}"', "reason": "", "prompt_tokens": 1, "cached_tokens": 0,
        "completion_tokens": 1, "usage_source": "upstream", "attempts": 1, "started_at_ms": 0,
        "finished_at_ms": ended_ms, "arguments": {}, "settled": settled,
    }  # fmt: skip


def _left(engine: Engine) -> list[tuple[str, str | None]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(select(results.c.job, results.c.body).order_by(results.c.job))]


def test_results_are_kept_as_long_as_their_organisation_wants(seeded: Engine) -> None:
    _change(seeded, "change_organisation", "acme", {"results_ms": 50}, BY)
    for organisation in ("acme", "other"):
        _job(seeded, f"{organisation}-1", organisation, ended_ms=NOW_MS - 100)
    with writing(seeded) as connection:
        assert forget_jobs(connection, now_ms=NOW_MS, kept=Kept(1000, 1000)) == 1
    assert [job for job, _ in _left(seeded)] == ["other-1"]


def test_an_erasure_removes_texts_of_its_organisation_only_and_what_arrives_later(seeded: Engine) -> None:
    _job(seeded, "a1", "acme", ended_ms=NOW_MS - 5)
    _job(seeded, "a2", "acme", ended_ms=NOW_MS - 5, settled=False)
    _job(seeded, "a3", "acme", ended_ms=0)
    _job(seeded, "o1", "other", ended_ms=NOW_MS - 5)
    with writing(seeded) as connection:
        removed = erase(connection, "acme", None, BY)
    assert (removed.results, removed.unfinished) == (2, ("a3",))
    assert removed.prompts == (1 if seeded.dialect.name == "sqlite" else 0)
    assert _left(seeded) == [("a2", None), ("o1", f'"{CANARY}"')]  # a charge is on its way still
    with writing(seeded) as connection:
        connection.execute(insert(results).values(_result("a3", "acme", NOW_MS + 1, settled=True)))
        assert erase_again(connection) == 1
        assert erase_again(connection) == 0
    assert [job for job, _ in _left(seeded)] == ["a2", "o1"]


def test_one_job_is_erased_by_its_owner_only(seeded: Engine) -> None:
    _job(seeded, "a1", "acme", ended_ms=NOW_MS - 5)
    _job(seeded, "a2", "acme", ended_ms=NOW_MS - 5)
    with writing(seeded) as connection:
        assert owner_of(connection, "a1") == ("acme", "a1")
        assert owner_of(connection, "acme") == ("acme", None)
        with pytest.raises(NotFound):
            erase(connection, "other", "a1", BY)
        with pytest.raises(NotFound, match="neither an organisation nor a job"):
            owner_of(connection, "a9")
        assert erase(connection, "acme", "a1", BY).results == 1
    assert [job for job, _ in _left(seeded)] == ["a2"]


def test_erased_texts_are_in_none_of_the_databases_files(sqlite: Engine, path: Path) -> None:
    _record(sqlite, IN_FILE)
    for number in range(200):
        _job(sqlite, f"a{number}", "acme", ended_ms=NOW_MS - 5 if number % 2 else 0)
    assert any(CANARY.encode() in file.read_bytes() for file in path.parent.glob("penstock.db*"))
    with writing(sqlite) as connection:
        erase(connection, "acme", None, BY)
    scrub(sqlite)
    assert [file.name for file in path.parent.glob("penstock.db*") if CANARY.encode() in file.read_bytes()] == []
