"""From the configuration and the ledger to what is simulated: a load, a server, the setting as configured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from penstock.adapters.sql.ledger import LedgerReads
from penstock.config import Configuration
from penstock.config.walking import nearest
from penstock.errors import InvalidRequest
from penstock.planning.forecasting.autoscaler import Setting, Trigger
from penstock.planning.forecasting.loads import MILLISECOND_US, Load, of_arrivals
from penstock.planning.forecasting.outcomes import Objective, Price
from penstock.planning.forecasting.servers import Server, speeds_of
from penstock.planning.forecasting.simulation import World
from penstock.planning.rehearsing.traces import Arrival
from penstock.quota.operations import Lane
from penstock.wiring.database import existing_database
from penstock.wiring.places import Places
from penstock.wiring.scaling import pools

AS_CONFIGURED = "as configured"
CAPACITY = "capacity: {tokens_per_second: 2500, concurrency: 64}"
REQUESTS_MAX = 20_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What replaces the configuration's own, or what it does not say; None: as configured.

    Args:
        prefill: Prompt tokens per second and request; None: such that a full replica does its capacity.
        decode: Answer tokens per second and request; None: the same.
        concurrency: Requests that one replica works on at once.
        jobs_at_once: That all workers hand over at once; None: as many as there may be, with `queue.concurrency` each.
    """

    prefill: float | None = None
    decode: float | None = None
    concurrency: int | None = None
    latency_us: int = 0
    jobs_at_once: int | None = None
    cold_start_ms: int | None = None
    within_ms: int | None = None
    percentile: int = 95


def model_to_plan(configuration: Configuration, name: str | None) -> str:
    """The model's name: as given, or the first that says its capacity.

    Raises:
        InvalidRequest: There is none, or it does not say its capacity.
    """
    found = pools(configuration)
    if name is None:
        if not found:
            raise InvalidRequest(
                f"no model says its `capacity`, so nothing can be computed; write `{CAPACITY}` below one, with what a "
                "replica was measured to do"
            )
        return next(iter(found))
    if name not in configuration.models:
        raise InvalidRequest(f"--model: {name!r} is not in the configuration; {nearest(name, configuration.models)}")
    if name not in found:
        raise InvalidRequest(
            f"--model: {name} does not say its `capacity`; write `{CAPACITY}` below models.{name}, with what a replica "
            "was measured to do"
        )
    return name


def world(configuration: Configuration, model: str, load: Load, lane: Lane, assumed: Assumptions) -> World:
    """What is simulated, for a model that says its capacity."""
    pool, written = pools(configuration)[model], configuration.models[model]
    assert written.capacity is not None  # it is among the pools
    concurrency = assumed.concurrency or written.capacity.concurrency
    prefill, decode = speeds_of(load, tokens_per_second=pool.tokens_per_second, concurrency=concurrency)
    if assumed.cold_start_ms is not None:
        pool = replace(pool, cold_start_ms=assumed.cold_start_ms)
    if assumed.within_ms is not None and lane is Lane.QUEUE:
        pool = replace(pool, drain_ms=assumed.within_ms)
    server = Server(
        concurrency=concurrency,
        prefill=prefill if assumed.prefill is None else assumed.prefill,
        decode=decode if assumed.decode is None else assumed.decode,
        latency_us=assumed.latency_us,
        at_once=_jobs_at_once(configuration, model, assumed) if lane is Lane.QUEUE else None,
    )
    return World(
        load=load,
        server=server,
        pool=pool,
        is_queued=lane is Lane.QUEUE,
        deadline_ms=configuration.queue.deadline_ms,
    )


def _jobs_at_once(configuration: Configuration, model: str, assumed: Assumptions) -> int:
    """What all workers hand over at once: as many as there may be, since they start in seconds."""
    if assumed.jobs_at_once is not None:
        return assumed.jobs_at_once
    return configuration.models[model].workers.max * configuration.queue.concurrency


def objective(configuration: Configuration, model: str, lane: Lane, assumed: Assumptions) -> Objective:
    """What is to be kept: the model's own, or what is assumed instead."""
    written = configuration.models[model].objective
    own_ms = written.drain_ms if lane is Lane.QUEUE else written.first_token_ms
    within_ms = own_ms if assumed.within_ms is None else assumed.within_ms
    return Objective(within_us=within_ms * MILLISECOND_US, percentile=assumed.percentile)


def price(configuration: Configuration, model: str, *, gpus: int | None, usd_per_gpu_hour: float) -> Price:
    """What a replica costs: the GPUs that the chart gives it, or one."""
    deploy = configuration.models[model].deploy
    return Price(gpus=gpus or (deploy.gpu if deploy else 0) or 1, usd_per_gpu_hour=usd_per_gpu_hour)


def configured(configuration: Configuration, model: str, lane: Lane) -> Setting:
    """The setting that the chart makes of the configuration."""
    keda, replicas = configuration.kubernetes.keda, configuration.models[model].replicas
    is_queued = lane is Lane.QUEUE
    return Setting(
        name=AS_CONFIGURED,
        triggers=(Trigger.QUEUE, Trigger.TOKENS) if is_queued and keda.servers_by_queue else (Trigger.TOKENS,),
        replicas_min=replicas.min if is_queued else max(1, replicas.min),
        replicas_max=replicas.max,
        polling_us=max(1_000, keda.polling_ms) * MILLISECOND_US,
        cooldown_us=keda.cooldown_ms * MILLISECOND_US,
        window_us=keda.scale_in_window_ms * MILLISECOND_US,
    )


def history(
    configuration: Configuration, places: Places, *, model: str, lane: Lane, start_ms: int, end_ms: int
) -> list[Arrival]:
    """What the ledger knows of a model's requests in one lane.

    Raises:
        StoreUnavailable: There is no ledger.
        InvalidRequest: It has no such request.
    """
    with existing_database(configuration, places) as engine, engine.connect() as connection:
        rows = LedgerReads(connection).served(model=model, lane=lane, start_ms=start_ms, end_ms=end_ms)
    if not rows:
        raise InvalidRequest(
            f"the ledger has no request to {model} in the {lane} lane in that time; "
            "name another --model or --lane, or an earlier --from"
        )
    first_ms = rows[0][0]
    return [Arrival(at_ms - first_ms, prompt, completion) for at_ms, prompt, completion in rows]


def replayed(arrivals: list[Arrival], *, speed: float, repeat: int) -> Load:
    """A load of them.

    Raises:
        InvalidRequest: It would be more than fits into memory.
    """
    if len(arrivals) * repeat > REQUESTS_MAX:
        raise InvalidRequest(
            f"--repeat: {len(arrivals):_} requests {repeat} times are more than {REQUESTS_MAX:_}; repeat less often"
        )
    return of_arrivals(arrivals, speed=speed, repeat=repeat)
