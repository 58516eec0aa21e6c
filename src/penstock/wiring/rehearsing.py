"""Starts a whole service for a rehearsal, in processes of their own as in earnest, and stops it without a trace.

::

    prepare: a directory, keys  ->  model server  ->  penstock serve  ->  requests  ->  stop  ->  read the ledger
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import msgspec
import yaml

from penstock.adapters.simulated_model import Production
from penstock.adapters.sql.database import migrate, open_engine
from penstock.adapters.sql.keys import Keys
from penstock.adapters.sql.ledger import LedgerReads
from penstock.config import load
from penstock.errors import StoreUnavailable
from penstock.lanes.credentials import mac, mint
from penstock.quota.definitions import Key
from penstock.quota.events import Event
from penstock.wiring.places import Places
from penstock.wiring.running import Running
from penstock.wiring.secrets import read_peppers

START_S = 60.0
STOP_S = 40.0
POLL_S = 0.05
LOOPBACK = "127.0.0.1"

DATA = resources.files("penstock") / "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """A service that runs for this alone.

    Args:
        url: Of the API, without ``/v1``.
        keys: A key for each organisation, by name in the configuration's order.
        models: Names that may be asked for, in the configuration's order.
    """

    url: str
    keys: Mapping[str, str]
    models: tuple[str, ...]
    places: Places


def shipped(name: str) -> str:
    """A shipped data file's text."""
    return (DATA / name).read_text(encoding="utf-8")


def make_keys(files: Sequence[Path], places: Places) -> dict[str, str]:
    """Give each organisation of the configuration a key that may do everything.

    Raises:
        ConfigurationError: The configuration has problems.
    """
    configuration = load(files)
    pepper = read_peppers(configuration, places, os.environ)[0]
    now_ms = time.time_ns() // 1_000_000
    places.create()
    engine = open_engine(places.database)
    try:
        migrate(engine)
        stored, tokens = Keys(engine), {}
        for organisation in configuration.organisations:
            key = Key(id=secrets.token_hex(5))
            tokens[organisation] = mint(organisation, key.id, secret=secrets.token_bytes(32))
            key = replace(key, macs=((mac(tokens[organisation], pepper), 0),))
            stored.create(organisation, key, name="rehearsal", now_ms=now_ms, actor="rehearsal")
        return tokens
    finally:
        engine.dispose()


def models_of(configuration: Path) -> tuple[str, ...]:
    """The names of a configuration's models, in its order.

    Raises:
        ConfigurationError: The configuration has problems.
    """
    return tuple(load([configuration]).models)


def describe_local_model(folder: Path, model: str, *, context: int, concurrency: int) -> Path:
    """Write the part of a configuration that adds the local model under a name."""
    part = folder / "local_model.yaml"
    described = {
        "upstream": "http://127.0.0.1:1",
        "context": context,
        "max_tokens": context // 4,
        "template_tokens": 64,
        "price": {"input": 0.02, "cached_input": 0.01, "output": 0.06},
        "capacity": {"tokens_per_second": 80, "concurrency": concurrency},
        "timeouts": {"first_byte": "10m", "between_chunks": "10m", "total": "20m"},  # however busy the machine is
    }
    part.write_text(yaml.safe_dump({"models": {model: described}}))
    return part


def read_ledger(places: Places, *, start_ms: int = 0) -> Iterator[Event]:
    """Every row that was written at or after ``start_ms``.

    Raises:
        StoreUnavailable: There is no database in the directory.
    """
    if not places.database.exists():
        raise StoreUnavailable(f"no ledger at {places.database}; name the service's data directory with --data")
    engine = open_engine(places.database)
    try:
        with engine.connect() as connection:
            yield from LedgerReads(connection).events(start_ms=start_ms)
    finally:
        engine.dispose()


def read_productions(path: Path) -> list[Production]:
    """The simulated model's own log."""
    decoder = msgspec.json.Decoder(Production)
    with path.open("rb") as file:
        return [decoder.decode(line) for line in file]


@contextlib.asynccontextmanager
async def simulated_model(folder: Path, models: Sequence[str], options: Sequence[str] = ()) -> AsyncIterator[str]:
    """Run ``penstock simulate-model`` until the end of the block; gives its URL, and writes ``produced.jsonl``."""
    command = ["simulate-model", "--port=0", f"--log={folder / 'produced.jsonl'}", *options]
    command += [f"--model={model}" for model in models]
    log = folder / "model.log"
    async with _running(command, log) as process:
        yield await _until_said(process, log)


@contextlib.asynccontextmanager
async def service(files: Sequence[Path], upstreams: Mapping[str, str], folder: Path) -> AsyncIterator[Rehearsal]:
    """Run ``penstock serve`` on a configuration of which only addresses are changed.

    Args:
        upstreams: Model to base URL; other models are not asked for.
        folder: For its data, its configuration and its output.

    Raises:
        ConfigurationError: The configuration has problems.
        StoreUnavailable: It did not start; the message holds its last words.
    """
    places = Places(folder / "data")
    overlay = folder / "addresses.yaml"
    changed = {
        "server": {"host": LOOPBACK, "operations_host": LOOPBACK},
        "models": {model: {"upstream": url} for model, url in upstreams.items()},
    }
    overlay.write_text(yaml.safe_dump(changed))
    together = [*files, overlay]
    keys = make_keys(together, places)
    command = ["serve", "--port=0", "--operations-port=0", f"--data={places.data}"]
    command += [f"--config={file}" for file in together]
    log = folder / "serve.log"
    async with _running(command, log) as process:
        url = await _until_announced(process, places, log)
        yield Rehearsal(url=url, keys=keys, models=tuple(upstreams), places=places)


@contextlib.asynccontextmanager
async def _running(command: Sequence[str], log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command of this program; ask it to stop at the end of the block, and wait for that."""
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "penstock", *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _until_said(process: asyncio.subprocess.Process, log: Path) -> str:
    """Wait for the line that says where it listens."""
    async with _bounded(log):
        while True:
            if url := _address_in(log):
                return url
            await _poll(process, log)


def _address_in(log: Path) -> str:
    found = re.search(r"\bon (http://\S+?),", log.read_text(errors="replace"))
    return found[1] if found else ""


async def _until_announced(process: asyncio.subprocess.Process, places: Places, log: Path) -> str:
    """Wait for the file that a service writes once it answers."""
    async with _bounded(log):
        while not places.running.exists():
            await _poll(process, log)
    return msgspec.json.decode(places.running.read_bytes(), type=Running).url


@contextlib.asynccontextmanager
async def _bounded(log: Path) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(START_S):
            yield
    except TimeoutError as error:
        raise StoreUnavailable(f"not ready after {START_S:g} s: {_last_words(log)}") from error


async def _poll(process: asyncio.subprocess.Process, log: Path) -> None:
    if process.returncode is not None:
        raise StoreUnavailable(f"ended with {process.returncode} before it was ready: {_last_words(log)}")
    await asyncio.sleep(POLL_S)


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-5:]) or f"{log} is empty"
