"""Writes the dashboards into config/grafana: ``python -m manifests.dashboards [FOLDER]``, or ``make dashboards``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from manifests.dashboards import lanes, running


def generated() -> Iterator[tuple[str, str]]:
    """Each file, and its text."""
    for boards in (lanes.boards(), running.boards()):
        for name, board in boards:
            built = board.build()
            for number, panel in enumerate(built.panels or (), 1):
                panel.id_val = number
            yield f"{name}.json", json.dumps(built, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "config" / "grafana"
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in generated():
        (folder / file).write_text(text, encoding="utf-8")
