"""Grafana's dashboards are what the generator writes, and name only what is measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from manifests.dashboards.__main__ import generated
from penstock.adapters.observing import catalogue, catalogue_keeper, catalogue_process

FOLDER = Path(__file__).parents[2] / "config" / "grafana"
FILES = sorted(path.name for path in FOLDER.glob("*.json"))
MEASURED = {
    metric.name
    for module in (catalogue, catalogue_keeper, catalogue_process)
    for metric in vars(module).values()
    if isinstance(metric, catalogue.Metric)
}


def panels(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / name).read_text())["panels"]
    return found


def queries(name: str) -> list[str]:
    return [target["expr"] for panel in panels(name) for target in panel.get("targets", ())]


def test_the_dashboards_are_what_the_generator_writes() -> None:
    assert {path.name: path.read_text() for path in FOLDER.glob("*.json")} == dict(generated()), "run `make dashboards`"


@pytest.mark.parametrize("name", FILES)
def test_every_metric_of_a_dashboard_is_measured(name: str) -> None:
    named = {found for query in queries(name) for found in re.findall(r"\bpenstock_\w+", query)}
    assert named
    assert {re.sub(r"_(bucket|count|sum)$", "", metric) for metric in named} - MEASURED == set()


@pytest.mark.parametrize("name", FILES)
def test_no_panel_lies_on_another_or_has_its_number(name: str) -> None:
    found = panels(name)
    cells = [
        (place["x"] + x, place["y"] + y)
        for place in (panel["gridPos"] for panel in found)
        for x in range(place["w"])
        for y in range(place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in found}) == len(found)


@pytest.mark.parametrize("name", FILES)
def test_every_panel_says_what_it_shows(name: str) -> None:
    assert [panel["title"] for panel in panels(name) if panel["type"] != "row" and not panel.get("description")] == []
