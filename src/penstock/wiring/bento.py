"""Bento's streams as a configuration asks for them: which there are, and the environment of each.

Every setting of a stream is a variable of its environment; the files in ``config/bento`` are the same everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from penstock.adapters.processes import free_port
from penstock.adapters.rabbitmq.topology import queue_name
from penstock.config import Configuration, read_secret
from penstock.errors import ConfigurationError
from penstock.wiring.stores import Role, Service, address
from penstock.wiring.templates import templates


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One process of Bento.

    Args:
        environment: On top of the common one; holds secrets.
    """

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    operations_port: int


def streams(
    configuration: Configuration, environment: Mapping[str, str], *, gateway_port: int, executor_url: str
) -> Iterator[Stream]:
    """The gateway, a worker for each model, the collector and the reader of dead letters.

    Raises:
        ConfigurationError: A reference leads nowhere, or the files are not there.
    """
    auth = configuration.auth
    if auth.pepper is None:
        raise ConfigurationError(("auth.pepper: not given, and the gateway needs it; write `pepper: {env: NAME}`",))
    peppers = {"PENSTOCK_PEPPER": read_secret(auth.pepper, environment=environment, what="auth.pepper")}
    if auth.pepper_previous is not None:
        peppers["PENSTOCK_PEPPER_PREVIOUS"] = read_secret(
            auth.pepper_previous, environment=environment, what="auth.pepper_previous"
        )
    models = {
        name: {"max_tokens": model.max_tokens, "queue": queue_name(name)}
        for name, model in configuration.models.items()
    }

    def stream(name: str, file: str, role: Role, own: Mapping[str, str]) -> Stream:
        port = free_port()
        return Stream(
            name=name,
            arguments=(
                "-r",
                str(templates() / "bento" / "resources" / "*.yaml"),
                "-c",
                str(templates() / "bento" / file),
            ),
            environment={
                "PENSTOCK_OPERATIONS_ADDRESS": f"127.0.0.1:{port}",
                "PENSTOCK_REDIS_URL": address(configuration, Service.REDIS, role, environment).url,
                "PENSTOCK_RABBITMQ_URL": address(configuration, Service.RABBITMQ, role, environment).url,
                **own,
            },
            operations_port=port,
        )

    yield stream(
        "gateway",
        "gateway.yaml",
        Role.GATEWAY,
        {
            **peppers,
            "PENSTOCK_GATEWAY_ADDRESS": f"127.0.0.1:{gateway_port}",
            "PENSTOCK_MODELS": json.dumps(models),
            "PENSTOCK_JOB_DEADLINE_MS": str(configuration.queue.deadline_ms),
        },
    )
