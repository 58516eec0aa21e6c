"""``penstock invoice`` and ``penstock ledger export``: every form, from one ledger."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from penstock.adapters.exporting.formats import OPTIONAL, TEXTS
from penstock.adapters.sql.billing import EXPORTED
from penstock.lanes.billing import Month, Status
from penstock.quota.definitions import Price
from penstock.quota.events import Charge, EventKind
from tests.cli.conftest import Run
from tests.cli.test_usage import DAY_MS, NOVEMBER_1_MS, Charged, charged

__all__ = ["charged"]

NOVEMBER = ("--month", "2025-11")
NEW = Price(prompt_picos=150_000, cached_picos=75_000, completion_picos=600_000)


@pytest.fixture
def filled(charged: Charged) -> None:
    charged()
    charged(at_ms=NOVEMBER_1_MS + DAY_MS, price=NEW, charge=Charge(tokens=120, requests=1, cost_nanos=5_003_498_500))
    charged(at_ms=NOVEMBER_1_MS + 30 * DAY_MS - 1, team=None, key="k2")
    charged(at_ms=NOVEMBER_1_MS + 30 * DAY_MS)
    charged(organisation="globex", kind=EventKind.VOIDED, charge=Charge())


def test_a_month_s_invoice_has_a_line_for_each_price_and_payer_and_one_rounding(run: Run, filled: None) -> None:
    outcome = run("invoice", "acme", "2025-11", "--json")
    found = json.loads(outcome.out)
    lines = [(line["payer"], line["prompt_picos"], line["cost_nanos"]) for line in found["lines"]]
    assert lines == [(None, 0, 1_500), ("search", 0, 1_500), ("search", 150_000, 5_003_498_500)]
    assert (found["total_nanos"], found["total_usd"]) == (5_003_501_500, "5.00")
    assert (found["status"], found["ledger_rows"]) == ("final", 3)


def test_the_table_states_total_rounding_and_status(run: Run, filled: None) -> None:
    told = run("invoice", "acme", "2025-11", "--by", "key").out
    assert "$5.0035015" in told
    assert "To pay: $5.00 (the exact total, rounded once to cents, half a cent upwards)." in told
    assert "Final" in told
    assert "k2" in told


def test_the_invoice_as_csv_adds_up(run: Run, filled: None) -> None:
    rows = list(csv.DictReader(StringIO(run("invoice", "acme", "2025-11", "--csv").out)))
    assert sum(int(row["cost_nanos"]) for row in rows) == 5_003_501_500


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("acme", "2025-13"), "no month"),
        (("acme", "november"), "no month"),
        (("acmee", "2025-11"), "did you mean `acme`"),
        (("acme", "2025-11", "--by", "model"), "no payer"),
        (("acme", "2025-11", "--json", "--csv"), "give one of them"),
    ],
)
def test_a_wrong_question_says_the_fix(run: Run, filled: None, arguments: tuple[str, ...], told: str) -> None:
    outcome = run("invoice", *arguments)
    assert outcome.code == 1
    assert told in outcome.err


def test_an_invoice_is_final_an_hour_after_the_end_of_its_month() -> None:
    month = Month.read("2025-12")
    states = [month.status(now_ms=month.end_ms + step) for step in (-1, 0, 3_599_999, 3_600_000)]
    assert states == [Status.OPEN, Status.CLOSING, Status.CLOSING, Status.FINAL]


def test_without_a_ledger_nothing_is_made(run: Run, data: Path) -> None:
    for arguments in (("invoice", "acme", "2025-11"), ("ledger", "export", *NOVEMBER)):
        outcome = run(*arguments)
        assert (outcome.code, "there is no ledger" in outcome.err) == (1, True)
    assert not data.exists()


def read(form: str, content: bytes) -> list[dict[str, Any]]:
    if form == "parquet":
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(BytesIO(content)).to_pylist()
        return rows
    if form == "cloudevents":
        events = [json.loads(line) for line in content.splitlines()]
        assert all(event["specversion"] == "1.0" for event in events)
        assert len({(event["source"], event["id"]) for event in events}) == len(events)
        return [event["data"] for event in events]
    rows = list(csv.DictReader(StringIO(content.decode())))
    return [{name: value or None if name in OPTIONAL else value if name in TEXTS else int(value)
             for name, value in row.items()} for row in rows]  # fmt: skip


@pytest.mark.parametrize(("form", "suffix"), [("csv", "csv"), ("parquet", "parquet"), ("cloudevents", "jsonl")])
def test_every_form_has_the_same_rows_and_the_same_total(
    run: Run, filled: None, tmp_path: Path, form: str, suffix: str
) -> None:
    folder = tmp_path / "exported"
    outcome = run("ledger", "export", *NOVEMBER, "--format", form, "--into", str(folder))
    assert outcome.code == 0, outcome.err
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"ledger-2025-11-{day:02}.{suffix}" for day in range(1, 31)]
    rows = [row for file in files for row in read(form, file.read_bytes())]
    assert [row["organisation"] for row in rows] == ["acme", "globex", "acme", "acme"]
    assert sum(row["cost_nanos"] for row in rows) == 5_003_501_500
    assert [row["team"] for row in rows] == ["search", "search", "search", None]
    assert all(tuple(row) == EXPORTED for row in rows)


def test_one_organisation_goes_to_standard_output(run: Run, filled: None) -> None:
    outcome = run("ledger", "export", "acme", "--from", "2025-11-02", "--to", "2025-11-03", "--format", "cloudevents")
    (event,) = [json.loads(line) for line in outcome.out.splitlines()]
    assert event["source"] == "/penstock/organisations/acme"
    assert (event["type"], event["time"]) == ("penstock.ledger.posted", "2025-11-02T00:00:00.000Z")


def test_an_export_that_was_interrupted_goes_on_and_keeps_what_is_whole(run: Run, filled: None, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    whole, half = folder / "ledger-2025-11-01.csv", folder / ".ledger-2025-11-02.csv.draft"
    whole.write_text("made before")
    half.write_text("half of i")
    outcome = run("ledger", "export", *NOVEMBER, "--into", str(folder))
    assert whole.read_text() == "made before"
    assert not half.exists()
    assert "ledger-2025-11-01.csv: there already" in outcome.err
    assert "ledger-2025-11-02.csv: 1 rows" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--from", "2025-11-01"),
        ("--month", "2025-11", "--from", "2025-11-01"),
        ("--from", "2025-11-02", "--to", "2025-11-01"),
        ("--from", "2025-11-01T01:00", "--to", "2025-11-02"),
        ("--month", "2025-11", "--format", "xml"),
    ],
)
def test_a_range_or_a_form_that_is_none_is_refused(run: Run, filled: None, arguments: tuple[str, ...]) -> None:
    assert run("ledger", "export", *arguments).code == 1


CORRECT = ("ledger", "correct", "acme", "--reference", "T-1", "--reason", "answered twice")


def charged_id(run: Run) -> str:
    rows = csv.DictReader(StringIO(run("ledger", "export", "acme", *NOVEMBER).out))
    return next(row["reservation"] for row in rows if row["prompt_picos"] == "150000")


def this_month() -> str:
    return datetime.now(UTC).strftime("%Y-%m")


def test_a_correction_is_a_line_of_the_invoice_of_the_month_in_which_it_is_written(run: Run, filled: None) -> None:
    month = this_month()
    wrong = charged_id(run)
    outcome = run(*CORRECT, "--reservation", wrong, "--completion=-20")
    assert (outcome.code, outcome.out) == (0, f"T-1: written; {wrong}: -20 tokens, -$0.000012\n"), outcome.err
    assert "nothing is written" in run(*CORRECT, "--reservation", wrong, "--completion=-20").out
    found = json.loads(run("invoice", "acme", month, "--json").out)
    (line,) = found["corrections"]
    assert (line["corrects"], line["key"], line["reason"], line["cost_nanos"]) == (
        wrong,
        "k1",
        "answered twice",
        -12_000,
    )
    assert found["total_nanos"] == -12_000
    assert json.loads(run("invoice", "acme", "2025-11", "--json").out)["total_nanos"] == 5_003_501_500
    assert "chat-small (correction T-1)" in run("invoice", "acme", month).out
    (row,) = csv.DictReader(StringIO(run("invoice", "acme", month, "--csv").out))
    assert (row["correction"], row["cost_nanos"], row["corrects"]) == ("T-1", "-12000", wrong)
    assert run("usage", "acme", "--json", "--from", "2025-11-01").code == 0
    assert json.loads(run("audit", "--json").out)["organisations"][0]["differences"] == []


@pytest.mark.parametrize("form", ["csv", "parquet", "cloudevents"])
def test_a_correction_is_exported_with_the_ledger(run: Run, filled: None, tmp_path: Path, form: str) -> None:
    month = this_month()
    line = ("--month", "2025-11", "--model", "chat-small", "--team", "search")
    assert run(*CORRECT, *line, "--usd=-1.25").code == 0
    run("ledger", "export", "acme", "--month", month, "--format", form, "--into", str(tmp_path / "out"))
    rows = [row for file in sorted((tmp_path / "out").iterdir()) for row in read(form, file.read_bytes())]
    (row,) = rows
    assert (row["reservation"], row["kind"], row["cost_nanos"]) == ("correction-T-1", "correction", -1_250_000_000)
    assert (row["corrects"], row["team"], row["reason"]) == ("2025-11 chat-small search", "search", "answered twice")
    assert row["author"].startswith("cli:")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--reservation", "018bcfe56800000000000000000000ff", "--usd=-1"), "was never charged for"),
        ((), "say what is wrong"),
        (("--month", "2025-11", "--model", "chat-small", "--team", "search"), "so say by how much"),
        (("--month", "2025-10", "--model", "chat-small", "--usd=-1"), "no such line on the invoice of 2025-10"),
        (("--month", "2025-11", "--model", "chat-small", "--usd", "0"), "nothing is put right"),
        (("--month", "2025-11", "--model", "chat-small", "--usd=-0.0000000001"), "more than 9 decimals"),
        (("--month", "2025-11", "--model", "chat-small", "--usd=-9999999"), "at most 4,503,599,627,370,496"),
    ],
)
def test_a_correction_of_nothing_that_is_there_is_refused(
    run: Run, filled: None, arguments: tuple[str, ...], told: str
) -> None:
    outcome = run(*CORRECT, *arguments)
    assert outcome.code == 1
    assert told in outcome.err
    assert "written" not in outcome.out


@pytest.mark.parametrize(("option", "value"), [("--reference", "a b"), ("--reference", "x" * 65), ("--reason", "a\nb")])
def test_a_reference_or_a_reason_that_is_none_is_refused(run: Run, filled: None, option: str, value: str) -> None:
    assert f"{option}: wanted" in run(*CORRECT, option, value, "--usd=-1").err
