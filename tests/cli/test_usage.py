"""``penstock usage``: what the ledger says, whichever way it is asked for."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from penstock.adapters.sql.database import migrate, open_engine, writing
from penstock.adapters.sql.definition_tables import organisations
from penstock.adapters.sql.rows import INSERT_EVENT, to_row
from penstock.quota.definitions import Price
from penstock.quota.events import Charge, Event, EventKind, Usage
from penstock.quota.identity import reservation_id
from penstock.wiring.places import Places
from tests.cli.conftest import Run
from tests.wiring.conftest import announced

NOVEMBER_1_MS = 1_761_955_200_000  # 2025-11-01
DAY_MS = 86_400_000
RANGE = ("--from", "2025-11-01", "--to", "2025-12-01")

Charged = Callable[..., None]


@pytest.fixture
def charged(data: Path) -> Charged:
    """Writes one posted event of 100 + 20 tokens into the ledger; any field may be given."""
    data.mkdir()
    engine = open_engine(data / "penstock.db")
    migrate(engine)
    count = 0

    def write(at_ms: int = NOVEMBER_1_MS, **fields: Any) -> None:
        nonlocal count
        count += 1
        event: dict[str, Any] = {
            "kind": EventKind.POSTED,
            "reservation": reservation_id(at_ms, count),
            "organisation": "acme",
            "team": "search",
            "key": "k1",
            "model": "chat-small",
            "lane": "realtime",
            "occurred_at_ms": at_ms,
            "usage": Usage(prompt=100, completion=20, cached=7),
            "charge": Charge(tokens=120, requests=1, cost_nanos=1_500),
            "amounts": (),
            "price": Price(),
            "tokens_held": 200,
            "job_deadline_ms": at_ms,
        }
        with writing(engine) as connection:
            connection.exec_driver_sql(INSERT_EVENT, [to_row(Event(**{**event, **fields}))])

    return write


def said(run: Run, *arguments: str) -> dict[str, Any]:
    outcome = run("usage", "--json", *arguments)
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def test_usage_adds_up_every_organisation_of_the_range(run: Run, charged: Charged) -> None:
    charged()
    charged(at_ms=NOVEMBER_1_MS + 30 * DAY_MS - 1)
    charged(at_ms=NOVEMBER_1_MS + 30 * DAY_MS)
    charged(at_ms=NOVEMBER_1_MS - 1)
    charged(organisation="globex")
    found = said(run, *RANGE)
    assert [each["organisation"] for each in found["organisations"]] == ["acme", "globex"]
    assert found["organisations"][0]["totals"] == {
        "requests": 2,
        "prompt_tokens": 200,
        "cached_tokens": 14,
        "completion_tokens": 40,
        "cost_nanos": 3_000,
    }
    assert found["organisations"][0]["held"] is None


def test_usage_of_one_organisation_shows_no_other(run: Run, charged: Charged) -> None:
    charged()
    charged(organisation="globex")
    assert "globex" not in run("usage", "acme", *RANGE).out


def test_usage_groups_by_what_is_asked(run: Run, charged: Charged) -> None:
    charged()
    charged(at_ms=NOVEMBER_1_MS + DAY_MS, model="embed-small", team=None)
    found = said(run, "--by", "day,team,model,key", *RANGE)
    rows = [(row["day"], row["team"], row["model"], row["key"]) for row in found["organisations"][0]["data"]]
    assert rows == [("2025-11-01", "search", "chat-small", "k1"), ("2025-11-02", None, "embed-small", "k1")]


def test_the_table_shows_tokens_and_cost(run: Run, charged: Charged) -> None:
    charged()
    charged(model="embed-small")
    outcome = run("usage", "acme", "--by", "model", *RANGE)
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["acme", "chat-small", "1", "100", "7", "20", "120", "$0.0000015"] in lines
    assert ["total", "2", "200", "14", "40", "240", "$0.000003"] in lines
    assert "Held now: not known" in outcome.out


def test_csv_has_a_line_for_each_row_and_plain_numbers(run: Run, charged: Charged) -> None:
    charged(charge=Charge(tokens=120, requests=1, cost_nanos=2**52))
    rows = list(csv.DictReader(StringIO(run("usage", "--csv", "--by", "day", *RANGE).out)))
    assert rows == [
        {
            "organisation": "acme",
            "day": "2025-11-01",
            "requests": "1",
            "prompt_tokens": "100",
            "cached_tokens": "7",
            "completion_tokens": "20",
            "cost_nanos": "4503599627370496",
        }
    ]


def test_an_organisation_that_left_the_configuration_still_shows(run: Run, charged: Charged) -> None:
    charged(organisation="initech")
    assert said(run, "initech", *RANGE)["organisations"][0]["totals"]["requests"] == 1


def test_an_organisation_that_used_nothing_shows_zeros(run: Run, charged: Charged) -> None:
    charged()
    assert said(run, "globex", *RANGE)["organisations"][0]["totals"]["requests"] == 0
    assert "globex" in run("usage", *RANGE).out


def test_an_organisation_that_administrators_made_shows_zeros_too(run: Run, charged: Charged, data: Path) -> None:
    charged()
    made = insert(organisations).values(
        name="umbrella", reserve="strict", overrun="debt", created_at_ms=0, removed_at_ms=0, managed_by="api"
    )
    with writing(open_engine(data / "penstock.db")) as connection:
        connection.execute(made)
    assert said(run, "umbrella", *RANGE)["organisations"][0]["totals"]["requests"] == 0


def test_wrong_questions_are_refused_with_the_fix(run: Run, charged: Charged) -> None:
    charged()
    for arguments, answer in (
        (["acne"], "'acne' is neither configured nor defined, nor in the ledger; did you mean `acme`?"),
        (["--by", "modle"], "--by: 'modle' is no group; did you mean `model`?"),
        (["--by", "day,day"], "--by: names a group twice"),
        (["--from", "yesterday"], "--from: must be an ISO date (2025-11-01), an ISO time, or Unix seconds"),
        (["--from", "2025-11-02", "--to", "2025-11-02"], "--to: must be after --from"),
        (["--json", "--csv"], "--json and --csv: give one of them"),
    ):
        refused = run("usage", *arguments)
        assert (refused.code, refused.out) == (1, "")
        assert answer in refused.err


def test_without_a_ledger_it_says_where_it_looked(run: Run, data: Path) -> None:
    refused = run("usage")
    assert refused.code == 1
    assert f"there is no ledger in {data}" in refused.err
    assert not data.exists()


def test_what_the_running_service_holds_is_shown_apart(run: Run, data: Path, charged: Charged) -> None:
    charged()
    with announced(Places(data)) as operations:
        operations.path, operations.body = "/holds", b'{"acme": {"requests": 2, "tokens": 1234}}'
        acme, globex = said(run, *RANGE)["organisations"]
        assert acme["totals"]["requests"] == 1
        assert (acme["held"], globex["held"]) == ({"requests": 2, "tokens": 1234}, {"requests": 0, "tokens": 0})
        assert "Held now, not charged: acme 1,234 tokens in 2 requests." in run("usage").out


def test_a_service_of_another_version_is_told_apart_from_one_that_holds_nothing(
    run: Run, data: Path, charged: Charged
) -> None:
    charged()
    with announced(Places(data)) as operations:
        operations.path, operations.body = "/holds", b'["acme"]'
        refused = run("usage")
        assert refused.code == 1
        assert "is it of the same version?" in refused.err
