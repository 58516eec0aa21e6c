"""Texts that must be found nowhere: what each secret is, and everything that a deployment tells or keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import yaml
from sqlalchemy import Engine, inspect, text

from penstock.adapters.simulated_model.counting import text_of_tokens
from penstock.adapters.sql.database import open_engine
from penstock.config import load
from penstock.wiring.database import cluster_engine
from penstock.wiring.places import Places
from penstock.wiring.secrets import read_peppers
from tests.system.clusters import Cluster
from tests.system.deployments import Embedded
from tests.system.drill_watch import targets
from tests.system.traces import Receiver

ANSWER = text_of_tokens(8)
"""What every answer of the simulated model begins with, if it has so many tokens."""


def secrets_of(deployment: Any) -> dict[str, bytes]:
    """Those that a deployment was given, by what they are."""
    if isinstance(deployment, Cluster):
        configuration, places = deployment.configuration, Places(deployment.data)
    else:
        configuration = load([deployment.service.folder / "penstock.yaml"])
        places = Places(deployment.service.data)
    peppers = read_peppers(configuration, places, {})
    return {"key": deployment.key().rpartition("_")[2][:48].encode(), "pepper": peppers[0]}


def told_everywhere(deployment: Any, receiver: Receiver) -> dict[str, bytes]:
    """Every log, span, metric, row and file that Redis writes, by where it is; not where prompts wait to be run."""
    found = {str(file): file.read_bytes() for file in _files(deployment)}
    found["spans"] = receiver.raw
    for address in _metrics(deployment):
        found[f"metrics {address}"] = httpx.get(f"http://{address}/metrics", trust_env=False).content
    engine = _engine(deployment)
    for name in inspect(engine).get_table_names():
        with engine.connect() as connection:
            for row in connection.execute(text(f'SELECT * FROM "{name}"')).mappings():
                found[f"{name} {len(found)}"] = repr(dict(row)).encode()
    engine.dispose()
    return found


def log_lines(deployment: Any) -> Iterator[dict[str, Any]]:
    """Each line of JSON that a process of ours has logged."""
    for file in _files(deployment):
        for line in file.read_bytes().splitlines():
            if line.startswith(b'{"') and file.suffix != ".aof":
                yield json.loads(line)


def publish(cluster: Cluster, exchange: str, key: str, payload: str) -> None:
    """Put a message into the broker, past everybody who would look at it."""
    store = yaml.safe_load((cluster.data / "cluster.yaml").read_text())["stores"]["rabbitmq"]
    password = Path(store["password"]["file"]).read_text().strip()
    message = {"properties": {}, "routing_key": key, "payload": payload, "payload_encoding": "string"}
    url = f"{store['management']}/api/exchanges/penstock/{exchange}/publish"
    answer = httpx.post(url, json=message, auth=(store["username"], password), timeout=30, trust_env=False)
    assert answer.json()["routed"], answer.text


def _files(deployment: Any) -> list[Path]:
    if isinstance(deployment, Cluster):
        folder, data = deployment.folder, deployment.data
    else:
        folder, data = deployment.service.folder, deployment.service.data
    places = (*folder.glob("*.log"), *folder.glob("log"), *data.glob("*.log"), *(data / "logs").rglob("*"))
    return sorted({file for file in (*places, *data.rglob("*.aof")) if file.is_file()})


def _metrics(deployment: Any) -> Iterator[str]:
    if isinstance(deployment, Embedded):
        yield deployment.service.running["operations_url"].removeprefix("http://")
    else:
        for addresses in targets(deployment).values():
            yield from addresses


def _engine(deployment: Any) -> Engine:
    if isinstance(deployment, Cluster):
        return cluster_engine(deployment.configuration, None)
    return open_engine(deployment.service.data / "penstock.db")
