"""RabbitMQ's management API and what the broker should hold, as a configuration names them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

from penstock.adapters.http import HttpClient
from penstock.adapters.rabbitmq import topology
from penstock.adapters.rabbitmq.management import ManagementApi
from penstock.config import Configuration
from penstock.wiring.stores import VIRTUAL_HOST, Role, Service, address
from penstock.wiring.templates import templates


@asynccontextmanager
async def open_management(
    configuration: Configuration, role: Role | None, environment: Mapping[str, str]
) -> AsyncIterator[ManagementApi]:
    """The management API, as ``penstock setup`` (None) or as one of the users that it made.

    Raises:
        ConfigurationError: A reference leads nowhere.
    """
    assert configuration.stores is not None, "a caller looks first whether there are stores"
    found = address(configuration, Service.RABBITMQ, role, environment)
    url = configuration.stores.rabbitmq.management
    client = HttpClient(server="the broker", tls={url: found.tls} if url.startswith("https:") else {})
    try:
        yield ManagementApi(client, url, username=found.username or "guest", password=found.password or "guest")
    finally:
        await client.close()


def virtual_host(configuration: Configuration, environment: Mapping[str, str], role: Role | None = None) -> str:
    """The one that the address names, or ours."""
    return address(configuration, Service.RABBITMQ, role, environment).path or VIRTUAL_HOST


def wanted(configuration: Configuration, vhost: str, users: Iterable[str]) -> topology.Definitions:
    """What the broker should hold.

    Args:
        users: Those that have a password.

    Raises:
        ConfigurationError: Two models would share a queue, or the template is not as it was shipped.
    """
    queue = configuration.queue
    return topology.fill(
        (templates() / "rabbitmq" / "definitions.json").read_text(encoding="utf-8"),
        vhost=vhost,
        models=configuration.models,
        shards=queue.shards,
        bounds=topology.Bounds(ready_bytes_max=queue.ready_bytes_max, deliveries=queue.deliveries),
        users=users,
    )
