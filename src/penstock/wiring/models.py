"""From the configuration's models to those that the lanes call: credentials read, the local model's address put in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from penstock.adapters.tls import Tls
from penstock.config import Configuration, read_secret, settings
from penstock.config.notation import parse_units
from penstock.config.settings import LOCAL
from penstock.errors import ConfigurationError
from penstock.lanes.generic import Per, Units
from penstock.lanes.models import ServedModel, Upstream


def local_model_name(configuration: Configuration) -> str | None:
    """The model that the bundled one serves, or None; the first if there are several."""
    return next((name for name, model in configuration.models.items() if model.is_local), None)


def served_models(
    configuration: Configuration, *, local_url: str, environment: Mapping[str, str]
) -> dict[str, ServedModel]:
    """Every model, by its name, with what only a running service knows.

    Args:
        local_url: Where the bundled model listens; unused if no model asks for it.
        environment: Usually ``os.environ``.

    Raises:
        ConfigurationError: A credential's reference leads nowhere, or a model has no upstream to run with.
    """
    missing = [name for name, model in configuration.models.items() if not model.upstreams]
    if missing:
        raise ConfigurationError(
            tuple(
                f"models.{name}.upstream: not given; its server is deployed by the chart only (`deploy`): "
                "write `upstream: URL` beside it to serve from here"
                for name in missing
            )
        )
    return {
        name: _served(name, model, local_url=local_url, environment=environment)
        for name, model in configuration.models.items()
    }


def upstream_tls(configuration: Configuration) -> dict[str, Tls]:
    """How each upstream that has its own authority is spoken with, by its URL."""
    return {
        upstream.url: Tls(setting=f"models.{name}.upstream", ca=Path(upstream.ca.file))
        for name, model in configuration.models.items()
        for upstream in model.upstreams
        if upstream.ca is not None
    }


def _served(name: str, model: settings.Model, *, local_url: str, environment: Mapping[str, str]) -> ServedModel:
    upstreams = tuple(
        _upstream(f"models.{name}.upstream[{index}]", each, local_url=local_url, environment=environment)
        for index, each in enumerate(model.upstreams)
    )
    timeouts = model.timeouts
    return ServedModel(
        name=name,
        upstreams=upstreams,
        upstream_model=model.upstream_model or name,
        context=model.context,
        max_tokens=model.max_tokens,
        bytes_per_token=model.bytes_per_token,
        units=_units(model),
        reports_running_usage=model.running_usage,
        connect_s=timeouts.connect_ms / 1000,
        first_byte_s=timeouts.first_byte_ms / 1000,
        between_chunks_s=timeouts.between_chunks_ms / 1000,
        total_s=timeouts.total_ms / 1000,
    )


def _units(model: settings.Model) -> Units | None:
    if model.kind is not settings.ModelKind.KSERVE_V2:
        return None
    per, tensor = parse_units(model.units)
    return Units(Per(per), tensor)


def _upstream(path: str, written: settings.Upstream, *, local_url: str, environment: Mapping[str, str]) -> Upstream:
    headers = {}
    if written.credential is not None:
        secret = read_secret(written.credential, environment=environment, what=f"{path}.credential")
        headers["authorization"] = f"Bearer {secret}"
    return Upstream(url=local_url if written.url == LOCAL else written.url, headers=headers, weight=written.weight)
