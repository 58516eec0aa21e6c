"""One screen of 80 columns, without colours where they are not wanted, whatever the names and numbers."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from penstock.console.top import top_screen
from penstock.lanes.activity import Activity, Rates
from penstock.lanes.waiting import Waiting

LONG = "meta-llama/Llama-3.1-405B-Instruct-with-a-long-name"


def rates(name: str, **figures: float) -> Rates:
    known = {"requests": 1234.5, "refused": 0.2, "failed": 0.0, "tokens": 9_876_543.0, "usd": 3.3} | figures
    return Rates(name=name, first_s=(0.25, 61.0), **known)


def drawn(rows: int | None = None, models: int = 1, tenants: int = 1, unseen: tuple[str, ...] = ()) -> list[str]:
    names = [LONG, *(f"model-{number}" for number in range(1, models))]
    activity = Activity(
        seconds=1.0,
        lanes=(rates("realtime"), rates("queue")),
        models=tuple(map(rates, names)),
        tenants=tuple(rates(f"organisation-{number}") for number in range(tenants)),
        queues={LONG: Waiting(waiting_jobs=1_234_567, running_jobs=99_999, oldest_age_ms=123_456_000)},
        held={"organisation-0": (123_456, 2**45)},
        healthy={LONG: (1, 12)},
        in_flight=123_456,
        unseen=unseen,
    )
    console = Console(file=StringIO(), width=80, no_color=True, force_terminal=False)
    console.print(top_screen(activity, clock="12:00:00", rows_max=rows))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_no_line_is_wider_than_a_terminal_and_no_figure_is_cut() -> None:
    lines = drawn(unseen=("http://somewhere-far-away.test:8081/metrics does not answer: a reason that is long" * 2,))
    assert max(map(len, lines)) <= 80
    (model,) = (line for line in lines if line.startswith("meta-llama"))
    for figure in ("1.2k", "9.9M", "250ms", "1/12", "1.2M", "100.0k", "34h17m"):
        assert figure in model
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(("models", "tenants"), [(1, 1), (40, 3), (3, 40), (40, 40)])
@pytest.mark.parametrize("rows", [14, 24, 50])
def test_a_screen_has_no_more_lines_than_the_terminal_and_counts_the_rest(rows: int, models: int, tenants: int) -> None:
    lines = drawn(rows, models, tenants)
    assert len(lines) <= rows
    shown = sum(line.startswith(("meta-llama", "model-")) for line in lines)
    assert shown == models or f"and {models - shown} more" in [line.strip() for line in lines]
    assert any(line.startswith("organisation-0") for line in lines)
