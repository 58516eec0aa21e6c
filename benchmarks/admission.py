"""How many tokens pass a limit of 100 tokens a minute when 50 requests come at once.

``make bench`` runs it. Each request uses about 25 tokens and takes 2 seconds, and nobody sends a refused one again.
Counted is what the model server produced and reported as usage, over all answers with status 200, not what the gateway
says. Penstock has one limit of 100 tokens a minute. LiteLLM has its documented limits of a model on, enforced: tokens
a minute as they are, with as many requests in flight as come, and input and output tokens apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks import peers
from benchmarks.cpu import PATH, RESULTS, machine, versions
from benchmarks.load import Answer, Target, send
from benchmarks.peers import Gateway

LIMIT_TOKENS = 100
AT_ONCE = 50
OUTPUT_TOKENS = 20
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": OUTPUT_TOKENS}


def used_tokens(answers: list[Answer]) -> int:
    """Tokens that the model server used for the requests that were let through."""
    return sum(json.loads(answer.body)["usage"]["total_tokens"] for answer in answers if answer.status == 200)


def start_of_minute() -> None:
    """Wait for a new minute of the clock if this one is nearly over: some limits count by calendar minutes."""
    second = time.time() % 60
    if second > 40:
        print("waiting for a new minute", flush=True)
        time.sleep(61 - second)


def admitted(gateway: Gateway, folder: Path) -> tuple[int, int, dict[int, int]]:
    """Requests let through, tokens they used, and answers by status."""
    with gateway.started(folder):
        start_of_minute()
        target = Target(gateway.port, PATH, gateway.headers, BODY)
        answers = asyncio.run(send(target, AT_ONCE, connections=AT_ONCE))
    statuses = Counter(answer.status for answer in answers)
    return statuses[200], used_tokens(answers), dict(statuses)


def main() -> None:
    """Measure, print, and write results/admission.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "admission.md", help="file to write")
    options = parser.parse_args()
    lines = [f"# What passes a limit of {LIMIT_TOKENS} tokens a minute", ""]
    lines += [f"Measured by `make bench`, {machine()}: {AT_ONCE} requests at once, {OUTPUT_TOKENS} tokens of output"]
    lines += ["and a short prompt each; tokens as the model server counted them.", versions() + ".", ""]
    lines += ["| gateway | requests let through | tokens used | times the limit |", "|---|--:|--:|--:|"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with peers.model_server(tokens=OUTPUT_TOKENS, decode=10).started(folder):
            contenders = [
                ("Penstock, 100 tokens a minute", peers.penstock(folder, "penstock-100.yaml", team=None)),
                ("LiteLLM, tpm: 100", peers.litellm("litellm-tpm.yaml")),
                ("LiteLLM, tpm: 100, max_parallel_requests: 50", peers.litellm("litellm-tpm-parallel.yaml")),
                ("LiteLLM, itpm: 100 and otpm: 100", peers.litellm("litellm-iotpm.yaml")),
            ]
            for title, gateway in contenders:
                requests, tokens, statuses = admitted(gateway, folder)
                print(f"{title}: answers by status {statuses}", flush=True)
                lines.append(f"| {title} | {requests} | {tokens:,} | {tokens / LIMIT_TOKENS:.2f} |")
    options.output.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
