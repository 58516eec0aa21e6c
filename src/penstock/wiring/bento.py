"""Bento's streams as a configuration asks for them: which there are, and the environment of each.

Every setting of a stream is a variable of its environment; the files in ``config/bento`` are the same everywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode

from penstock.adapters.processes import free_port
from penstock.adapters.rabbitmq.topology import queue_name
from penstock.adapters.tls import Tls
from penstock.config import Configuration, read_secret, settings
from penstock.errors import ConfigurationError
from penstock.wiring.stores import Address, Role, Service, address
from penstock.wiring.templates import templates

EXECUTE_MARGIN_S: Final = 300
"""How much longer than a job's deadline a worker waits for the executor, which ends jobs by itself."""
_OTHER = re.compile(r"[^A-Za-z0-9-]")


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
    """The gateway, a worker for each model, the collector and the reader of dead letters, all of this machine.

    Raises:
        ConfigurationError: A reference leads nowhere, or the files are not there.
    """
    for name in stream_names(configuration):
        file, _, model = name.partition(":")
        port = free_port()
        addresses = {"PENSTOCK_OPERATIONS_ADDRESS": f"127.0.0.1:{port}"}
        if file == "gateway":
            addresses["PENSTOCK_GATEWAY_ADDRESS"] = f"127.0.0.1:{gateway_port}"
        if file == "worker":
            addresses["PENSTOCK_EXECUTOR_URL"] = executor_url
        yield Stream(
            name=f"{file}-{_OTHER.sub('-', model)}" if model else file,
            arguments=_arguments(file.replace("-", "_")),
            environment=stream_environment(configuration, name, environment) | addresses,
            operations_port=port,
        )


def stream_names(configuration: Configuration) -> tuple[str, ...]:
    """``gateway``, ``worker:MODEL`` for each model, ``collector`` and ``dead-letters``."""
    return ("gateway", *(f"worker:{model}" for model in configuration.models), "collector", "dead-letters")


def stream_environment(configuration: Configuration, name: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What a stream needs to know but addresses of its own machine; with secrets in it, and no other stream's.

    Args:
        name: One of ``stream_names``.
        environment: Where references are followed, usually ``os.environ``.

    Raises:
        ConfigurationError: There is no such stream, or a reference leads nowhere.
    """
    if name not in stream_names(configuration):
        known = ", ".join(stream_names(configuration))
        raise ConfigurationError((f"found the stream {name!r}, wanted one of {known}; choose one",))
    file, _, model = name.partition(":")
    role = {"gateway": Role.GATEWAY, "worker": Role.WORKER}.get(file, Role.COLLECTOR)
    redis = address(configuration, Service.REDIS, role, environment)
    rabbitmq = address(configuration, Service.RABBITMQ, role, environment)
    common = {
        **_redis(redis),
        "PENSTOCK_RABBITMQ_URL": _for_amqp(rabbitmq),
        **_tracing(configuration, file),
    }
    if role is Role.GATEWAY:
        return common | _gateway(configuration, environment)
    if role is Role.WORKER:
        return common | _worker(configuration, model)
    database = address(configuration, Service.POSTGRESQL, Role.COLLECTOR, environment)
    return common | {"PENSTOCK_POSTGRESQL_URL": _for_libpq(database)}


def execute_timeout_s(configuration: Configuration) -> int:
    """How long a worker waits for the executor."""
    return configuration.queue.deadline_ms // 1000 + EXECUTE_MARGIN_S


def _arguments(file: str) -> tuple[str, ...]:
    files = templates() / "bento"
    return (
        *("-t", str(files / "templates" / "*.yaml")),
        *("-r", str(files / "resources" / "*.yaml")),
        *("-c", str(files / f"{file}.yaml")),
    )


def _gateway(configuration: Configuration, environment: Mapping[str, str]) -> dict[str, str]:
    auth = configuration.auth
    if auth.pepper is None:
        raise ConfigurationError(("auth.pepper: not given, and the gateway needs it; write `pepper: {env: NAME}`",))
    found = {"PENSTOCK_PEPPER": read_secret(auth.pepper, environment=environment, what="auth.pepper")}
    if auth.pepper_previous is not None:
        found["PENSTOCK_PEPPER_PREVIOUS"] = read_secret(
            auth.pepper_previous, environment=environment, what="auth.pepper_previous"
        )
    models = {
        name: {"max_tokens": model.max_tokens, "context": model.context, "queue": queue_name(name)}
        | ({"infers": True} if model.kind is settings.ModelKind.KSERVE_V2 else {})
        for name, model in configuration.models.items()
    }
    return found | {
        "PENSTOCK_MODELS": json.dumps(models),
        "PENSTOCK_JOB_DEADLINE_MS": str(configuration.queue.deadline_ms),
    }


def _worker(configuration: Configuration, model: str) -> dict[str, str]:
    queue = configuration.queue
    return {
        "PENSTOCK_QUEUE": queue_name(model),
        "PENSTOCK_SHARDS": str(queue.shards),
        "PENSTOCK_CONCURRENCY": str(queue.concurrency),
        "PENSTOCK_JOBS": str(queue.shards * queue.concurrency),
        "PENSTOCK_EXECUTE_TIMEOUT": f"{execute_timeout_s(configuration)}s",
    }


def _redis(found: Address) -> dict[str, str]:
    own = {"PENSTOCK_REDIS_URL": found.urls}
    if found.is_tls:
        own |= _redis_tls(found.tls)
    if found.scheme.endswith("+sentinel"):
        return {**own, "PENSTOCK_REDIS_KIND": "failover", "PENSTOCK_REDIS_MASTER": found.path}
    return {**own, "PENSTOCK_REDIS_KIND": "cluster"} if found.scheme.endswith("+cluster") else own


def _tracing(configuration: Configuration, file: str) -> dict[str, str]:
    """The variables by which every OpenTelemetry SDK is set up; without them a stream makes no spans."""
    tracing = configuration.tracing
    if tracing.endpoint is None:
        return {}
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": tracing.endpoint,
        "OTEL_SERVICE_NAME": f"penstock-{file}",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": str(tracing.ratio),
    }


def _redis_tls(tls: Tls) -> dict[str, str]:
    """Bento reads TLS from no scheme, and its files from its configuration."""
    if tls.server_name is not None:
        fix = "write the name that the certificate has into the address, and remove stores.redis.server_name"
        raise ConfigurationError((f"stores.redis.server_name: a stream of Bento checks the address's own name; {fix}",))
    own = {"PENSTOCK_REDIS_TLS": "true"}
    if tls.ca is not None:
        own["PENSTOCK_REDIS_CA"] = str(tls.ca.absolute())
    if tls.certificate is not None and tls.key is not None:
        pair = {"cert_file": str(tls.certificate.absolute()), "key_file": str(tls.key.absolute())}
        own["PENSTOCK_REDIS_CERTIFICATES"] = json.dumps([pair])
    return own


def _for_amqp(found: Address) -> str:
    """The URL as Go's client wants it, which reads files and name from its query."""
    tls = found.tls
    query = {
        "cacertfile": tls.ca,
        "certfile": tls.certificate,
        "keyfile": tls.key,
        "server_name_indication": tls.server_name,
    }
    return found.url + _query(query) if found.is_tls else found.url


def _for_libpq(found: Address) -> str:
    """The URL as Go's driver wants it, which insists on TLS unless it is told not to."""
    tls = found.tls
    if tls.ca is None:
        return f"{found.url}?sslmode=disable"
    query: dict[str, Path | str | None] = {
        "sslmode": "verify-full",
        "sslrootcert": tls.ca,
        "sslcert": tls.certificate,
        "sslkey": tls.key,
    }
    if tls.server_name is None:
        return found.url + _query(query)
    return replace(found, host=tls.server_name).url + _query({**query, "hostaddr": found.host})


def _query(values: Mapping[str, Path | str | None]) -> str:
    """What is given, as the end of a URL; paths as they are from anywhere."""
    given = {
        name: str(value.absolute() if isinstance(value, Path) else value)
        for name, value in values.items()
        if value is not None
    }
    return f"?{urlencode(given, quote_via=quote)}" if given else ""
