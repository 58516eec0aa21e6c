"""The chart's own files say what the code says; `make manifests` writes them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import yaml

from penstock.config import examine_text
from penstock.config.charting import chart_values

ROOT = Path(__file__).parents[2]


def generator() -> ModuleType:
    path = ROOT / "manifests" / "generate.py"
    specification = importlib.util.spec_from_file_location("generate", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_charts_files_are_what_the_code_says() -> None:
    written = {name: (ROOT / "manifests" / "chart" / name).read_text() for name, _ in generator().generated()}
    assert written == dict(generator().generated()), "run `make manifests`"


def test_the_charts_values_are_a_sound_configuration_once_there_is_a_model() -> None:
    text = chart_values() + "models: {m: {upstream: http://m, context: 100, max_tokens: 50}}\n"
    assert examine_text(text.replace("# prometheus:", "prometheus: http://prometheus:9090")).problems == ()


def test_every_default_is_explained() -> None:
    lines = chart_values().splitlines()
    for number, line in enumerate(lines):
        if line and not line.lstrip().startswith("#"):
            assert lines[number - 1].lstrip().startswith("# "), line
    assert yaml.safe_load(chart_values())["kubernetes"]["api"]["replicas"] == {"min": 2, "max": 10}
