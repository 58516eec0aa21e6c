"""Every secret and every certificate that a configuration refers to, with its path in the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import structs

from penstock.config import Configuration
from penstock.config.values import FileReference, Secret, Setting


def secrets_in(configuration: Configuration) -> Iterator[tuple[str, Secret]]:
    """``("auth.pepper", Secret(...))`` and so on, in the order of the file's sections."""
    for path, found in _walk("", configuration):
        if isinstance(found, Secret):
            yield path, found


def certificates_in(configuration: Configuration) -> Iterator[tuple[str, FileReference]]:
    """``("stores.redis.ca", FileReference(...))`` and so on; without the private keys, which have no end."""
    for path, found in _walk("", configuration):
        if isinstance(found, FileReference) and not path.endswith(".key"):
            yield path, found


def _walk(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Secret | FileReference):
        yield path, value
    elif isinstance(value, Setting):
        for field in structs.fields(value):
            if field.encode_name != "kubernetes":  # what the chart reads, and no process here
                yield from _walk(f"{path}.{field.encode_name}".lstrip("."), getattr(value, field.name))
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _walk(f"{path}.{name}", inner)
    elif isinstance(value, tuple):
        for number, inner in enumerate(value):
            yield from _walk(f"{path}[{number}]", inner)
