"""The lanes as the configuration describes them: the models' servers, and what leads there."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from penstock.adapters.http import HttpClient
from penstock.adapters.local_model import LocalModel
from penstock.api.services import Bounds, ModelCard
from penstock.config import Configuration
from penstock.lanes.models import ServedModel
from penstock.lanes.queueing import unnoticed
from penstock.lanes.realtime import RealtimeLane
from penstock.lanes.repeating import Repeating
from penstock.ports import Answers, Clock, Observer, QuotaStore, Spool
from penstock.quota.definitions import Overrun
from penstock.wiring.models import local_model_name, served_models, upstream_tls
from penstock.wiring.places import Places


@asynccontextmanager
async def realtime_lane(
    configuration: Configuration,
    places: Places,
    quota: QuotaStore,
    *,
    overrun: Callable[[str], Overrun],
    clock: Clock,
    observer: Observer,
    spool: Spool | None = None,
) -> AsyncIterator[RealtimeLane]:
    """The realtime lane, with what reaches its models.

    Args:
        overrun: An organisation's policy for streams that outgrow a learned hold.
        spool: Takes ends that the store did not acknowledge; by default they are tried again in this process.

    Raises:
        ConfigurationError, UpstreamUnreachable: See ``model_servers``.
    """
    async with model_servers(configuration, places) as servers:
        lane = RealtimeLane(
            quota, servers.client, clock, servers.models, observer=observer, spool=spool, overrun=overrun
        )
        await lane.start()
        try:
            yield lane
        finally:
            await lane.close()


@asynccontextmanager
async def repeating(
    lane: RealtimeLane,
    answers: Answers,
    quota: QuotaStore,
    clock: Clock,
    *,
    is_alone: bool,
    reached: Callable[[str], None] = unnoticed,
) -> AsyncIterator[Repeating]:
    """What answers requests with an idempotency key, once for each; what an earlier process stored is settled first.

    Raises:
        StoreUnavailable: What is stored cannot be read.
    """
    once = Repeating(lane, answers, quota, clock, is_alone=is_alone, reached=reached)
    if is_alone:
        await once.settle_stored()
    try:
        yield once
    finally:
        await once.close()


@dataclass(frozen=True, slots=True)
class ModelServers:
    """Models by the name that clients use, and what reaches their servers."""

    client: HttpClient
    models: dict[str, ServedModel]


@asynccontextmanager
async def model_servers(configuration: Configuration, places: Places) -> AsyncIterator[ModelServers]:
    """The upstream client and, if a model asks for it, the local model.

    Raises:
        ConfigurationError: A secret or the local model is missing.
        UpstreamUnreachable: The local model does not start.
    """
    async with AsyncExitStack() as parts:
        local_url = ""
        name = local_model_name(configuration)
        if name is not None:
            local = LocalModel(
                name=configuration.models[name].upstream_model or name,
                context=configuration.models[name].context,
                log_file=places.data / "local-model.log",
            )
            parts.push_async_callback(local.stop)
            local_url = await local.start()
        client = HttpClient(tls=upstream_tls(configuration))
        parts.push_async_callback(client.close)
        yield ModelServers(client, served_models(configuration, local_url=local_url, environment=os.environ))


def model_cards(configuration: Configuration) -> dict[str, ModelCard]:
    """What ``/v1/models`` shows."""
    return {name: ModelCard(id=name, context=model.context) for name, model in configuration.models.items()}


def request_bounds(configuration: Configuration) -> Bounds:
    """How much of a request is read."""
    server = configuration.server
    return Bounds(body_bytes_max=server.body_bytes_max, json_depth_max=server.json_depth_max)
