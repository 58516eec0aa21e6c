"""CPU time of a request, and of a streamed chunk, in Penstock, nginx, LiteLLM and Portkey.

``make bench`` runs it. Each gateway stands before the same simulated model server. In each round every gateway gets
its share of requests, in an order that rotates; what is reported is the median of the rounds, of CPU microseconds of
the gateway's own processes (user and system, children included, and until they have come to rest), and its ratio to
nginx. Penstock has a key, eight limits, metrics, the request log and the ledger on; its store lives in the same
process, so its cost is in Penstock's own figure. The others run with their defaults.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import peers
from benchmarks.load import Target, checked, send
from benchmarks.peers import Gateway
from benchmarks.processes import settled_cpu_s
from penstock import __version__

RESULTS = Path(__file__).parent / "results"
PATH = "/v1/chat/completions"
PROMPT = "Write one sentence about the gate and pipe that meter the flow of water to a turbine."
CHUNKS = 100
STORE = "in its own figure: SQLite in its process"


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is sent.

    Args:
        shares: Requests in one round, by gateway: enough for a second or more of CPU time.
        connections: At once, so many that gateways are busy: one that mostly waits pays for empty caches above all.
        decode: Tokens a second of one answer; slow enough that chunks arrive one by one, as those of a model do.
        events: Events that each answer must have at least.
    """

    name: str
    shares: dict[str, int]
    connections: int
    tokens: int
    decode: int
    stream: bool
    events: int


REQUESTS = Scenario(
    "request", {"nginx": 20_000, "penstock": 8_000, "portkey": 1_500, "litellm": 200}, 128, 16, 0, False, 0
)
STREAMS = Scenario(
    "stream", {"nginx": 512, "penstock": 512, "portkey": 256, "litellm": 32}, 128, CHUNKS, 50, True, CHUNKS
)


def target(gateway: Gateway, scenario: Scenario) -> Target:
    """What is sent to a gateway."""
    body: dict[str, object] = {"model": peers.MODEL, "messages": [{"role": "user", "content": PROMPT}]}
    body |= {"max_tokens": scenario.tokens, "stream": scenario.stream}
    return Target(gateway.port, PATH, gateway.headers, body)


@contextmanager
def all_started(scenario: Scenario, names: list[str]) -> Iterator[list[tuple[Gateway, int]]]:
    """Every gateway, running before one model server, warmed up; with its process id."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(peers.model_server(tokens=scenario.tokens, decode=scenario.decode).started(folder))
        made = {"nginx": peers.nginx, "litellm": peers.litellm, "portkey": peers.portkey}
        gateways = [peers.penstock(folder) if name == "penstock" else made[name]() for name in names]
        started = [(gateway, stack.enter_context(gateway.started(folder))) for gateway in gateways]
        for gateway, _ in started:
            answers = asyncio.run(send(target(gateway, scenario), 50, connections=scenario.connections))
            checked(answers, events=scenario.events)
        yield started


def measure(scenario: Scenario, names: list[str], *, rounds: int, share: float) -> dict[str, list[float]]:
    """CPU microseconds for each request, by gateway, one figure for each round."""
    figures: dict[str, list[float]] = {name: [] for name in names}
    with all_started(scenario, names) as started:
        for turn in range(rounds):
            for index in range(len(started)):
                gateway, pid = started[(turn + index) % len(started)]
                requests = max(1, int(scenario.shares[gateway.name] * share))
                before = settled_cpu_s(pid)
                answers = asyncio.run(send(target(gateway, scenario), requests, connections=scenario.connections))
                used_s = settled_cpu_s(pid) - before
                checked(answers, events=scenario.events)
                figures[gateway.name].append(used_s / requests * 1e6)
                print(f"{scenario.name} round {turn + 1}/{rounds} {gateway.name}: {figures[gateway.name][-1]:,.0f} us",
                      flush=True)  # fmt: skip
    return figures


def table(title: str, figures: dict[str, list[float]], *, floor: str, store: str, each: int = 1) -> list[str]:
    """The medians as a Markdown table; ``each`` divides them, for chunks."""
    medians = {name: statistics.median(values) / each for name, values in figures.items()}
    lines = [f"## {title}", "", "| gateway | CPU us, median | lowest to highest | times nginx | store's CPU |"]
    lines += ["|---|--:|--:|--:|---|"]
    for name in sorted(medians, key=lambda one: medians[one]):
        low, high = min(figures[name]) / each, max(figures[name]) / each
        ratio = f"{medians[name] / medians[floor]:.1f}" if floor in medians else ""
        own = store if name == "penstock" else "none"
        lines.append(f"| {name} | {medians[name]:,.1f} | {low:,.1f} to {high:,.1f} | {ratio} | {own} |")
    return [*lines, ""]


def machine() -> str:
    """When, and what of the machine matters for ratios; nothing that names it."""
    today = datetime.now(tz=UTC).date().isoformat()
    return f"{today} on {os.cpu_count()} cores, {platform.system()}, Python {sys.version}"


def versions() -> str:
    """Who was measured."""
    nginx = subprocess.run([peers.nginx().command[0], "-v"], capture_output=True, text=True, check=True).stderr
    litellm = re.search(r"^litellm==(\S+)", (peers.FOLDER / "litellm.txt").read_text(), re.MULTILINE)
    portkey = json.loads((peers.FOLDER / "package.json").read_text())["dependencies"]["@portkey-ai/gateway"]
    assert litellm is not None
    return f"Penstock {__version__}, nginx {nginx.strip().rpartition('/')[2]}, LiteLLM {litellm[1]}, Portkey {portkey}"


def main() -> None:
    """Measure, print, and write results/cpu.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take the median of (default: 5)")
    parser.add_argument("--share", type=float, default=1.0, help="part of the requests to send, to try it quickly")
    parser.add_argument("--gateways", default="nginx,penstock,portkey,litellm", help="names, with commas between")
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu.md", help="file to write")
    options = parser.parse_args()
    names = options.gateways.split(",")
    requests = measure(REQUESTS, names, rounds=options.rounds, share=options.share)
    streams = measure(STREAMS, names, rounds=options.rounds, share=options.share)
    lines = ["# CPU time of a request and of a chunk", "", f"Measured by `make bench`, {machine()}; medians of "]
    lines[-1] += f"{options.rounds} rounds, all gateways in one run before the same model server."
    lines += ["", versions() + ".", ""]
    lines += table("A request, answered whole", requests, floor="nginx", store=STORE)
    title = f"A chunk, of a stream of {CHUNKS} (a request's cost included)"
    lines += table(title, streams, floor="nginx", store=STORE, each=CHUNKS)
    options.output.write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
