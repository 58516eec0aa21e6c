"""Instructions that a request costs, counted by callgrind, as a ratio to a baseline counted in the same run.

Instructions do not depend on how busy a machine is, and dividing by a baseline takes out most of what depends on how
Python was built. ``tests/benchmarks`` fails when a ratio is more than 10 % above the one committed in
``results/instructions.json``. After a change that is meant to cost more, or that costs less, run

    python -m benchmarks.instructions --write
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMITTED = Path(__file__).parent / "results" / "instructions.json"
COUNT = 100


def counted() -> dict[str, int]:
    """Instructions by kind of work; see ``scenario.py``.

    Raises:
        SystemExit: valgrind is missing, or the scenario failed; what it said is shown.
    """
    with tempfile.TemporaryDirectory() as folder:
        scenario = [sys.executable, "-m", "benchmarks.scenario", str(COUNT)]
        command = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={folder}/%p", *scenario]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise SystemExit("valgrind is needed: requirements/debian.sh valgrind") from None
        if done.returncode:
            raise SystemExit(f"the scenario failed:\n{done.stdout}\n{done.stderr}")
        children = dict(line.split() for line in done.stdout.splitlines())
        totals = {}
        for kind, process in children.items():
            found = re.search(r"^totals: (\d+)", (Path(folder) / process).read_text(), re.MULTILINE)
            assert found is not None, f"callgrind wrote no total for {kind}"
            totals[kind] = int(found.group(1))
        return totals


def ratios() -> dict[str, float]:
    """Instructions of one request, and of one stream of 20 chunks, each divided by one turn of the baseline."""
    totals = counted()
    baseline = totals["baseline"] - totals["nothing"]
    return {name: round((totals[name] - totals["nothing"]) / baseline, 3) for name in ("request", "stream")}


def main() -> None:
    """Count and print; with ``--write``, commit the figures to the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {COMMITTED.relative_to(ROOT)}")
    options = parser.parse_args()
    found = ratios()
    print(json.dumps(found, indent=2))
    if options.write:
        COMMITTED.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
