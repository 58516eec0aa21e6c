"""The child process: llama.cpp's own server, until standard input ends or a signal comes.

Standard input is the tie to the parent: when that is gone, however it went, reading ends and so does this process.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import signal
import sys
from typing import Any

from penstock.adapters.local_model.locating import ENGINE

PR_SET_PDEATHSIG = 1
LOG_WARNINGS = 2  # llama.cpp's verbosity: errors and warnings; more of it would show prompts
HTTP_THREADS = (
    128  # each kept connection occupies one, even while it waits; too few, and requests wait behind idle ones
)


def parameters(engine: Any, options: argparse.Namespace) -> Any:
    """Fill in llama.cpp's parameters. One instance answers chats and embeds, by the mean over tokens."""
    chosen = engine.CommonParams()
    chosen.model.path = options.weights
    chosen.model_alias = {options.name}
    chosen.hostnames = [options.host]
    chosen.port = options.port
    chosen.n_parallel = options.parallel
    chosen.n_ctx = options.context * options.parallel
    chosen.cpuparams.n_threads = options.threads
    chosen.cpuparams_batch.n_threads = options.threads
    chosen.n_threads_http = HTTP_THREADS
    chosen.embedding = True
    chosen.pooling_type = engine.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    chosen.endpoint_metrics = True
    chosen.warmup = False
    chosen.ui = False
    chosen.endpoint_slots = False
    chosen.cache_ram_mib = 0
    chosen.verbosity = LOG_WARNINGS
    return chosen


def main() -> None:
    """Serve; one line of JSON on standard output says where, once requests are answered."""
    reader = argparse.ArgumentParser(prog="python -m penstock.adapters.local_model", description=__doc__)
    reader.add_argument("--weights", required=True, help="GGUF file")
    reader.add_argument("--name", default="local", help="the model's name in answers")
    reader.add_argument("--host", default="127.0.0.1", help="address to listen on")
    reader.add_argument("--port", type=int, default=0, help="0: a free one")
    reader.add_argument("--context", type=int, default=2048, help="tokens for each request")
    reader.add_argument("--parallel", type=int, default=4, help="requests at a time")
    reader.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    options = reader.parse_args()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    engine = importlib.import_module(ENGINE)
    server = engine.Server(parameters(engine, options))
    sys.stdout.write(json.dumps({"url": server.listening_address}) + "\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()
    os._exit(0)  # the engine's own way out would first finish what it is generating
