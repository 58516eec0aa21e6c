"""From the configuration's models to the pools that scaling is computed for."""

from __future__ import annotations

from penstock.config import Configuration
from penstock.planning.figures import Serving
from penstock.planning.scaling import Pool


def pools(configuration: Configuration) -> dict[str, Pool]:
    """The pool of each model that says its ``capacity``, by the model's name; without it nothing can be computed."""
    return {
        name: Pool(
            tokens_per_second=model.capacity.tokens_per_second,
            cold_start_ms=model.capacity.cold_start_ms,
            drain_ms=model.objective.drain_ms,
            replicas_min=model.replicas.min,
            replicas_max=model.replicas.max,
        )
        for name, model in configuration.models.items()
        if model.capacity is not None
    }


def servings(configuration: Configuration) -> dict[str, Serving]:
    """The same with what one replica and one worker have under way at once."""
    found = {}
    for name, pool in pools(configuration).items():
        capacity = configuration.models[name].capacity
        assert capacity is not None
        found[name] = Serving(pool, capacity.concurrency, configuration.queue.concurrency)
    return found
