"""The drill itself: its clock shortens what it should and nothing else, its verdict notices what it is there for."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.system.drill import Outcome, drill, is_expected, table, unexpected
from tests.system.drill_clock import hastened, seconds_of
from tests.system.drill_faults import FAULTS, Fault
from tests.system.drill_watch import RULES, Alert

ALERTS: Final = frozenset(
    rule["alert"]
    for file in RULES.glob("*.yaml")
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
)


@pytest.mark.torture
@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.xdist_group("cluster")
def test_every_fault_raises_its_alert_and_no_other_and_ends(tmp_path: Path) -> None:
    outcomes = drill(tmp_path / "drill", FAULTS)
    assert [wrong for outcome in outcomes for wrong in outcome.wrong] == [], "\n".join(table(outcomes))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("rate(a_total[1h]) > 0", "rate(a_total[6000ms]) > 0"),
        ("rate(a_total[5m]) > 5", "rate(a_total[5000ms]) > 5"),
        ("rate(a_total[1d12h]) > 5", "rate(a_total[216000ms]) > 5"),
        ("a:ratio_rate1h > 14.4 * 0.001", "a:ratio_rate1h > 14.4 * 0.001"),
        ("a_seconds > 7200 # s", "a_seconds > 12 # s"),
        ("a_seconds > 60 # s\nand b > 60", "a_seconds > 5 # s\nand b > 60"),
    ],
)
def test_windows_and_thresholds_in_seconds_shrink_and_nothing_else(before: str, after: str) -> None:
    (group,) = hastened({"groups": [{"name": "g", "rules": [{"alert": "A", "expr": before}]}]}, factor=600)["groups"]
    assert group["rules"] == [{"alert": "A", "expr": after}]


@pytest.mark.parametrize(("before", "after"), [("2m", "2000ms"), ("1h", "6000ms")])
def test_a_wait_shrinks_to_no_less_than_two_seconds(before: str, after: str) -> None:
    rules = {"groups": [{"name": "g", "rules": [{"alert": "A", "expr": "a", "for": before}]}]}
    assert hastened(rules, factor=600)["groups"][0]["rules"][0]["for"] == after


def test_what_is_no_duration_is_refused() -> None:
    with pytest.raises(ValueError, match="no duration"):
        seconds_of("5 minutes")


def test_at_least_twelve_faults_each_raise_an_alert_that_exists() -> None:
    assert len(FAULTS) >= 12
    assert {fault.fires for fault in FAULTS} - ALERTS == set()
    assert frozenset().union(*(fault.implies for fault in FAULTS)) - ALERTS == set()


def test_only_the_alert_with_the_declared_labels_is_the_expected_one() -> None:
    fault = Fault(what="f", how=FAULTS[0].how, fires="A", labels={"job": "j"}, implies=frozenset({"B"}))
    assert is_expected(Alert("A", (("job", "j"), ("x", "y")), is_firing=True), fault)
    assert not is_expected(Alert("A", (("job", "j"),), is_firing=False), fault)
    assert not is_expected(Alert("A", (("job", "other"),), is_firing=True), fault)
    assert not is_expected(Alert("B", (("job", "j"),), is_firing=True), fault)
    assert unexpected(["A", "B", "C"], fault) == ["C"]


def test_the_table_tells_what_went_wrong() -> None:
    outcome = Outcome(FAULTS[0], fired_after_s=3.2, others={"PenstockX"}, wrong=["PenstockX fired, and is not implied"])
    told = "\n".join(table([outcome]))
    assert "WRONG: PenstockX fired" in told
    assert FAULTS[0].what in told
