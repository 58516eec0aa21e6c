"""Every alert says what to do, is tested before and after, and asks for figures that somebody gives."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from penstock.adapters import observing
from penstock.adapters.observing import catalogue, histograms
from tests.docs_rules import anchors
from tests.system.services import found_program

ROOT: Final = Path(__file__).parents[2]
CONFIG: Final = ROOT / "config/prometheus"
RUNBOOKS: Final = "docs/04-operations/alerting.md"
SEVERITIES: Final = frozenset({"critical", "warning", "info"})
TEAMS: Final = frozenset({"platform", "inference", "billing", "security", "tenants"})
PARTS: Final = ("**Means.**", "**Impact.**", "**Check.**", "**Fix.**")

# Metrics of others that rules use, and who gives them.
FOREIGN: Final = {
    "up": "Prometheus itself",
    "process_start_time_seconds": "the client libraries of Python and Go",
    "amqp_publish_connected": "src/bento/amqp_publish.go",
    "amqp_publish_outcomes_total": "src/bento/amqp_publish.go",
    "collector_poison_total": "config/bento/collector.yaml",
    "dead_letters_unreadable_total": "config/bento/dead_letters.yaml",
    "gateway_unvoided_total": "config/bento/resources/reserve.yaml",
    "quota_untold_total": "config/bento/resources/endings.yaml",
    "worker_unanswered_total": "config/bento/worker.yaml",
    "input_received": "Bento",
    "rabbitmq_alarms_free_disk_space_watermark": "RabbitMQ's plugin rabbitmq_prometheus",
    "rabbitmq_alarms_memory_used_watermark": "RabbitMQ's plugin rabbitmq_prometheus",
    "kubelet_volume_stats_available_bytes": "the kubelet",
    "kubelet_volume_stats_capacity_bytes": "the kubelet",
    "keda_scaler_errors_total": "KEDA's operator",
    "kube_horizontalpodautoscaler_spec_max_replicas": "kube-state-metrics",
    "kube_horizontalpodautoscaler_status_desired_replicas": "kube-state-metrics",
}

_STRING = re.compile(r'"[^"]*"')
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_NOT_METRICS = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)|\{[^}]*\}|\[[^\]]*\]|#.*")
_LANGUAGE = frozenset(
    [
        "and",
        "or",
        "unless",
        "by",
        "on",
        "sum",
        "max",
        "min",
        "count",
        "avg",
        "abs",
        "absent",
        "rate",
        "increase",
        "changes",
        "histogram_quantile",
        "predict_linear",
        "time",
        "count_over_time",
        "max_over_time",
        "min_over_time",
        "bool",
    ]
)


@cache
def rules() -> tuple[dict[str, Any], ...]:
    files = sorted((CONFIG / "rules").glob("*.yaml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    return tuple(rule for group in groups for rule in group["rules"])


ALERTS: Final = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def metrics_of(expression: str) -> frozenset[str]:
    """The names of metrics in an expression."""
    bare = _NOT_METRICS.sub(" ", _STRING.sub("", expression))
    return frozenset(name for name in _NAME.findall(bare) if name not in _LANGUAGE and not name.isdigit())


@cache
def given() -> frozenset[str]:
    """Every name that our own registries expose, with those that Prometheus makes of histograms."""
    found = set()
    for module in (module.name for module in pkgutil.iter_modules(observing.__path__)):
        if not module.startswith("catalogue"):
            continue
        for metric in vars(importlib.import_module(f"{observing.__name__}.{module}")).values():
            if not isinstance(metric, catalogue.Metric):
                continue
            found.add(metric.name)
            if metric.kind == "histogram":
                found |= {f"{metric.name}_{suffix}" for suffix in ("bucket", "count", "sum")}
    return frozenset(found | {rule["record"] for rule in rules() if "record" in rule})


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_who_is_woken_and_why_with_its_figure_and_what_to_do(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in SEVERITIES
    assert alert["labels"]["team"] in TEAMS
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert "{{ $value" in alert["annotations"]["description"]
    assert alert["annotations"]["runbook_url"] == f"{RUNBOOKS}#{name.lower()}"


@pytest.mark.parametrize("name", ALERTS)
def test_a_runbook_says_what_it_means_what_suffers_what_to_look_at_and_how_to_mend_it(name: str) -> None:
    page = (ROOT / RUNBOOKS).read_text()
    assert name.lower() in anchors(page)
    section = page.partition(f"### {name}\n")[2].partition("\n## ")[0].partition("\n### ")[0]
    assert [part for part in PARTS if section.count(part) != 1] == []


def test_no_runbook_is_left_of_an_alert_that_is_gone() -> None:
    assert set(re.findall(r"^### (\w+)$", (ROOT / RUNBOOKS).read_text(), re.MULTILINE)) == set(ALERTS)


def checked() -> Iterator[tuple[str, bool]]:
    """Of each check in promtool's tests: the alert, and whether it should fire."""
    for file in sorted((CONFIG / "tests").glob("*.yaml")):
        for test in yaml.safe_load(file.read_text())["tests"]:
            for check in test["alert_rule_test"]:
                yield check["alertname"], bool(check["exp_alerts"])


@pytest.mark.parametrize("fires", [False, True])
def test_every_alert_is_tested_silent_and_firing(fires: bool) -> None:
    assert {name for name, fired in checked() if fired is fires} == set(ALERTS)


@pytest.mark.slow
def test_every_alert_is_silent_before_and_fires_after() -> None:
    promtool = found_program("promtool")
    done = subprocess.run(
        [promtool, "test", "rules", *sorted((CONFIG / "tests").glob("*.yaml"))],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule.get("alert") or rule["record"]))
def test_every_metric_of_a_rule_is_given_by_somebody(rule: dict[str, Any]) -> None:
    assert metrics_of(rule["expr"]) - given() - FOREIGN.keys() == set()


# Bounds of the histograms of which a rule takes one bucket.
BOUNDS_S: Final = {
    "penstock_first_token_duration_seconds": histograms.FIRST_TOKEN_BOUNDS_S,
    "penstock_queue_wait_seconds": histograms.QUEUE_WAIT_BOUNDS_S,
}


def test_every_bucket_that_a_rule_takes_is_one_that_the_histogram_has() -> None:
    taken = [found for rule in rules() for found in re.findall(r'(\w+)_bucket\{[^}]*le="([^"]+)"', rule["expr"])]
    assert taken
    assert [found for found in taken if found[1] not in map(str, BOUNDS_S[found[0]])] == []


def test_no_metric_of_others_is_listed_that_no_rule_uses() -> None:
    used = frozenset[str]().union(*(metrics_of(rule["expr"]) for rule in rules()))
    assert FOREIGN.keys() - used == set()


def test_the_metrics_of_bento_are_named_where_the_list_says() -> None:
    for metric, giver in FOREIGN.items():
        if (ROOT / giver).is_file():
            assert metric in (ROOT / giver).read_text(), f"{metric} is not in {giver}"


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ('sum by (lane) (rate(a_total{lane="x", le="2.5"}[1h])) > 4 # s', {"a_total"}),
        ("max(a) and on (model) (b:ratio_rate5m == 0)", {"a", "b:ratio_rate5m"}),
        ("predict_linear(a[6h], 4 * 86400) < 0", {"a"}),
    ],
)
def test_metrics_are_found_in_expressions(expression: str, found: set[str]) -> None:
    assert metrics_of(expression) == found


def routed(**labels: str) -> str:
    """Who is told of an alert with these labels."""
    given = [f"{name}={value}" for name, value in labels.items()]
    done = subprocess.run(
        [found_program("amtool"), "config", "routes", "test", "--config.file", CONFIG / "alertmanager.yaml", *given],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("severity", "team", "receiver"),
    [
        ("critical", "platform", "pager"),
        ("critical", "inference", "inference-pager"),
        ("critical", "billing", "billing-pager"),
        ("critical", "security", "security-pager"),
        ("warning", "platform", "tickets"),
        ("warning", "billing", "tickets"),
        ("warning", "security", "security"),
        ("info", "tenants", "tenants"),
    ],
)
def test_an_alert_goes_to_those_of_its_severity_and_team(severity: str, team: str, receiver: str) -> None:
    assert routed(alertname="PenstockAny", severity=severity, team=team) == receiver


def test_every_alert_that_an_inhibition_names_exists() -> None:
    named = set()
    for inhibition in yaml.safe_load((CONFIG / "alertmanager.yaml").read_text())["inhibit_rules"]:
        for matcher in inhibition["source_matchers"] + inhibition["target_matchers"]:
            named |= set(re.findall(r"Penstock\w+", matcher))
    assert named - ALERTS.keys() == set()


def test_the_example_of_prometheus_reads_all_rules() -> None:
    done = subprocess.run(
        [found_program("promtool"), "check", "config", CONFIG / "prometheus.yaml"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("rules found") == len(list((CONFIG / "rules").glob("*.yaml")))
