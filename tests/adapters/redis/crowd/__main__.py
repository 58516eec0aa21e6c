"""Many processes at once on the same limits: is there ever more admitted than there is? Prints what was found as JSON.

python -m tests.adapters.redis.crowd --processes 64 --attempts 1000000
python -m tests.adapters.redis.crowd --processes 16 --attempts 20000 --careless
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from tests.adapters.redis.crowd.reckoning import WRONG_MAX, differences, read_ledger, read_logs
from tests.adapters.redis.crowd.running import Crowd, Plan
from tests.system.services import Redis

_REPLICA_MAY_LAG = ("--client-output-buffer-limit", "replica", "0", "0", "0")


def figures(crowd: Crowd) -> dict[str, Any]:
    """What is to be known of a run that is over."""
    observer, plan = crowd.observer, crowd.plan
    found: dict[str, Any] = {
        "seed": plan.seed, "processes": plan.processes, "kills": plan.kills, "instants observed": observer.instants,
        "over": observer.over, "faults": observer.faults,
    }  # fmt: skip
    if plan.careless:
        return found
    logs = read_logs(plan.folder)
    ends, sums = read_ledger(crowd.ledger)
    standing = crowd.standing()
    wrong = list(islice(differences(logs.told, ends), WRONG_MAX))
    return {
        **found,
        "attempts": sum(count for name, count in logs.answers.items() if name.startswith("Reserve ")),
        "answers": dict(sorted(logs.answers.items())),
        "denied by": dict(sorted(logs.denied_by.items())),
        "fullest, per mille": observer.fullest,
        "held at the end": sum(each.held for each in standing.limits),
        "open at the end": len(standing.holds),
        "events written": observer.events,
        "events drained": crowd.drained,
        "sums differ": len({k: v for k, v in observer.sums.items() if v}.items() ^ sums.items()),
        "windows": len(sums),
        "ledger and clients differ": wrong,
        "reservations in doubt": sum(each.in_doubt for each in logs.told.values()),
    }


def _progress(attempts: int) -> Callable[[int], None]:
    shown_s = began_s = time.monotonic()

    def show(tried: int) -> None:
        nonlocal shown_s
        now_s = time.monotonic()
        if now_s - shown_s > 1:
            shown_s = now_s
            left_s = (now_s - began_s) * max(0, attempts - tried) / max(1, tried)
            sys.stderr.write(f"\r\033[K{tried:,} of {attempts:,} attempts, {left_s:,.0f} s left ")
            sys.stderr.flush()

    return show


def main() -> None:
    """One run, against a Redis of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--processes", type=int, default=16, help="that ask at once (default: 16)")
    parser.add_argument("--attempts", type=int, default=20_000, help="reserves sent, together (default: 20000)")
    parser.add_argument("--kills", type=int, default=8, help="processes killed with SIGKILL on the way (default: 8)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn (default: 1)")
    parser.add_argument("--careless", action="store_true", help="check, then increment, instead of Penstock")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-crowd-") as place:
        service = Redis(Path(place), *_REPLICA_MAY_LAG)
        service.start()
        try:
            plan = Plan(**vars(arguments), folder=Path(place))
            crowd = Crowd(plan, service.port, _progress(plan.attempts))
            crowd.run()
            sys.stdout.write(json.dumps(figures(crowd), indent=1) + "\n")
            crowd.close()
        finally:
            service.stop()


if __name__ == "__main__":
    main()
