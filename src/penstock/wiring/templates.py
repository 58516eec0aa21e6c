"""Where the configuration of other programs lies: ``config/`` of the project, or its copy in an installed package."""

from __future__ import annotations

from pathlib import Path

import penstock
from penstock.errors import ConfigurationError


def templates() -> Path:
    """The directory with ``bento``, ``rabbitmq`` and ``redis`` in it.

    Raises:
        ConfigurationError: This installation has none.
    """
    package = Path(penstock.__file__).parent
    for place in (package / "templates", package.parent.parent / "config"):
        if (place / "bento").is_dir():
            return place
    raise ConfigurationError(("config/: not found beside the package; install penstock anew, from a wheel or a clone",))
