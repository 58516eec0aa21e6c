"""Bento's streams as a configuration asks for them: which there are, and the environment of each.

Every setting of a stream is a variable of its environment; the files in ``config/bento`` are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from penstock.config import Configuration


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
    raise NotImplementedError
