"""What ``penstock await`` does: wait for ``penstock setup``, then write the environment of a stream."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from penstock.adapters.redis import preparations
from penstock.adapters.redis.address import Address
from penstock.adapters.redis.client import RedisClient
from penstock.adapters.redis.cluster import find_primaries
from penstock.adapters.redis.wire import Refusal
from penstock.config import Configuration
from penstock.errors import StoreUnavailable
from penstock.wiring.bento import execute_timeout_s, stream_environment
from penstock.wiring.quota import redis_address
from penstock.wiring.stores import Role

EVERY_S: Final = 1.0
GATEWAY_PORT: Final = 4195
OPERATIONS_PORTS: Final = {"gateway": 4196, "worker": 4197, "collector": 4198, "dead-letters": 4199}
"""Of the streams in their pods, as the chart names them."""


async def await_setup(
    configuration: Configuration, version: str, role: Role, *, timeout_s: float, tell: Callable[[str], None]
) -> None:
    """Return once the services are prepared for a version.

    Args:
        role: As whom Redis is asked.
        tell: Given a line whenever the reason for waiting changes.

    Raises:
        ConfigurationError: A reference leads nowhere.
        StoreUnavailable: It did not come to that in time.
    """
    at = redis_address(configuration, role)
    said = ""
    try:
        async with asyncio.timeout(timeout_s):
            while reason := await _reason(at, version, name=f"penstock-{role}-await"):
                if reason != said:
                    tell(f"waiting for `penstock setup --version {version}`: {reason}")
                said = reason
                await asyncio.sleep(EVERY_S)
    except TimeoutError:
        raise StoreUnavailable(
            f"`penstock setup --version {version}` was not done within {timeout_s:.0f} s ({said}); look at its log"
        ) from None


async def _reason(at: Address, version: str, *, name: str) -> str:
    """Why it is not time yet; empty: it is."""
    try:
        for primary in await find_primaries(at):
            client = RedisClient(primary, name=name)
            try:
                await client.start()
                known = await preparations.prepared(client)
            finally:
                await client.close()
            if version not in known:
                return f"prepared for {known[-1]} so far" if known else "nothing is prepared yet"
    except (StoreUnavailable, Refusal) as error:  # a user that setup has yet to make is refused too
        return str(error)
    return ""


def write_environment(configuration: Configuration, name: str, path: Path, environment: Mapping[str, str]) -> None:
    """Write what a stream of Bento needs in a pod into a file for its ``--env-file``; owner and group may read it.

    Args:
        name: One of ``bento.stream_names``.

    Raises:
        ConfigurationError: There is no such stream, or a reference leads nowhere.
    """
    found = stream_environment(configuration, name, environment)
    file = name.partition(":")[0]
    found["PENSTOCK_OPERATIONS_ADDRESS"] = f"0.0.0.0:{OPERATIONS_PORTS[file]}"
    if file == "gateway":
        found["PENSTOCK_GATEWAY_ADDRESS"] = f"0.0.0.0:{GATEWAY_PORT}"
    if file == "worker":  # what runs may end: longer than the executor may take, shorter than the pod is given
        found["PENSTOCK_SHUTDOWN_TIMEOUT"] = f"{execute_timeout_s(configuration) + 30}s"
    text = "".join(f"{variable}={json.dumps(value, ensure_ascii=False)}\n" for variable, value in sorted(found.items()))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(text)
