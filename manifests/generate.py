"""Writes what the chart takes from the code and from config/: its values, their schema, defaults, files.

``python manifests/generate.py [FOLDER]``, from the project's root; ``make manifests`` does it. A test compares.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from penstock.config.charting import chart_values, model_defaults
from penstock.config.describing import schema

ROOT: Final = Path(__file__).parents[1]
COPIED: Final = ("redis/redis.conf", "rabbitmq/rabbitmq.conf")
COPIED_FOLDERS: Final = {"prometheus/rules": "prometheus", "grafana": "grafana"}


def generated() -> Iterator[tuple[str, str]]:
    """Each file below the chart, and its text."""
    yield "values.yaml", chart_values()
    yield "values.schema.json", json.dumps(schema(), indent=2) + "\n"
    yield "files/defaults.yaml", model_defaults()
    config = ROOT / "config"
    for name in COPIED:
        yield f"files/{Path(name).name}", (config / name).read_text(encoding="utf-8")
    for folder, copy in COPIED_FOLDERS.items():
        for path in sorted((config / folder).glob("*.*")):
            yield f"files/{copy}/{path.name}", path.read_text(encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write what the chart takes from the code and from config/.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "manifests" / "chart", help="default: the chart")
    chart = parser.parse_args().folder
    for name, text in generated():
        (chart / name).parent.mkdir(parents=True, exist_ok=True)
        (chart / name).write_text(text, encoding="utf-8")
