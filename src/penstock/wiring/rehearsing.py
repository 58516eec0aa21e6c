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
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import msgspec
import yaml

from penstock.adapters.processes import free_port
from penstock.adapters.simulated_model import Production
from penstock.adapters.sql.keys import Keys
from penstock.adapters.sql.ledger import LedgerReads
from penstock.config import Configuration, load
from penstock.errors import StoreUnavailable
from penstock.lanes.audit_report import AuditReport
from penstock.lanes.credentials import mac, mint
from penstock.quota.definitions import Key
from penstock.quota.events import Event
from penstock.wiring.database import opened_database
from penstock.wiring.own_stores import OVERLAY
from penstock.wiring.places import Places
from penstock.wiring.running import Running, ask
from penstock.wiring.secrets import read_peppers

START_S = 60.0
STOP_S = 40.0
POLL_S = 0.05
WRITTEN_S = 60.0
NO_PORTS: Mapping[str, int] = {}
LOOPBACK = "127.0.0.1"

DATA = resources.files("penstock") / "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """A service that runs for this alone.

    Args:
        url: Of the API, without ``/v1``.
        keys: A key for each organisation, by name in the configuration's order.
        models: Names that may be asked for, in the configuration's order.
        configuration: As the service has it.
    """

    url: str
    keys: Mapping[str, str]
    models: tuple[str, ...]
    configuration: Configuration
    places: Places


async def until_written(places: Places) -> None:
    """Wait until the service holds nothing, and the ledger has every event.

    Raises:
        StoreUnavailable: No service runs here, or it did not come to that in time.
    """
    try:
        async with asyncio.timeout(WRITTEN_S):
            while True:
                answer = await asyncio.to_thread(ask, places, "/audit")
                if answer is None:
                    raise StoreUnavailable(f"no service runs on {places.data}; name its data directory with --data")
                found = AuditReport.decode(answer).organisations
                if not any(each.holds or each.unwritten for each in found):
                    return
                await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise StoreUnavailable(f"after {WRITTEN_S:g} s something is still held, or not in the ledger") from error


def shipped(name: str) -> str:
    """A shipped data file's text."""
    return (DATA / name).read_text(encoding="utf-8")


def make_keys(configuration: Configuration, places: Places) -> dict[str, str]:
    """Give each organisation of the configuration a key that may do everything."""
    pepper = read_peppers(configuration, places, os.environ)[0]
    now_ms = time.time_ns() // 1_000_000
    with opened_database(configuration, places) as engine:
        stored, tokens = Keys(engine), {}
        for organisation in configuration.organisations:
            key = Key(id=secrets.token_hex(5))
            tokens[organisation] = mint(organisation, key.id, secret=secrets.token_bytes(32))
            key = replace(key, macs=((mac(tokens[organisation], pepper), 0),))
            stored.create(organisation, key, name="rehearsal", now_ms=now_ms, actor="rehearsal")
        return tokens


def models_of(files: Sequence[Path]) -> tuple[str, ...]:
    """The names of a configuration's models, in its order.

    Raises:
        ConfigurationError: The configuration has problems.
    """
    return tuple(load(files).models)


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


def read_ledger(configuration: Configuration, places: Places) -> Iterator[Event]:
    """Every row.

    Raises:
        StoreUnavailable: There is no database in the directory, or PostgreSQL does not answer.
    """
    if configuration.stores is None and not places.database.exists():
        raise StoreUnavailable(f"no ledger at {places.database}; name the service's data directory with --data")
    with opened_database(configuration, places) as engine, engine.connect() as connection:
        yield from LedgerReads(connection).events()


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
    together = [*files, _addresses(folder, upstreams)]
    configuration = load(together)
    keys = make_keys(configuration, places)
    command = ["serve", "--port=0", "--operations-port=0", f"--data={places.data}"]
    command += [f"--config={file}" for file in together]
    log = folder / "serve.log"
    async with _running(command, log) as process:
        url = await _until_announced(process, places, log)
        yield Rehearsal(url=url, keys=keys, models=tuple(upstreams), configuration=configuration, places=places)


@contextlib.asynccontextmanager
async def cluster(files: Sequence[Path], upstreams: Mapping[str, str], folder: Path) -> AsyncIterator[Rehearsal]:
    """The same with ``penstock up``: real services, and every process of a cluster. Raises like ``service``."""
    await asyncio.to_thread(folder.chmod, 0o711)  # the database's own account passes through
    places = Places(folder / "cluster")
    ports = {"port": free_port(), "operations_port": free_port()}
    together = [*files, _addresses(folder, upstreams, ports)]
    command = ["up", f"--data={places.data}", *(f"--config={file}" for file in together)]
    log = folder / "up.log"
    async with _running(command, log) as process:
        url = await _until_announced(process, places, log)
        configuration = load([*together, places.data / OVERLAY])
        keys = await asyncio.to_thread(make_keys, configuration, places)
        async with _bounded(log):
            for key in keys.values():
                while not await asyncio.to_thread(_is_known, url, key):
                    await _poll(process, log)
        yield Rehearsal(url=url, keys=keys, models=tuple(upstreams), configuration=configuration, places=places)


def _addresses(folder: Path, upstreams: Mapping[str, str], ports: Mapping[str, int] = NO_PORTS) -> Path:
    """Write the part of a configuration that says where everything is."""
    overlay = folder / "addresses.yaml"
    changed = {
        "server": {"host": LOOPBACK, "operations_host": LOOPBACK, **ports},
        "models": {model: {"upstream": url} for model, url in upstreams.items()},
    }
    overlay.write_text(yaml.safe_dump(changed))
    return overlay


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


def _is_known(url: str, key: str) -> bool:
    """Whether the service has read the key by now."""
    request = urllib.request.Request(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=START_S):
            return True
    except urllib.error.HTTPError as error:
        with error:
            return False


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-5:]) or f"{log} is empty"
