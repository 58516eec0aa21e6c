"""Following a reference to a secret, when a service starts. Nothing here ever repeats what it read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from penstock.config.values import Secret
from penstock.errors import ConfigurationError


def read_secret(reference: Secret, *, environment: Mapping[str, str], what: str) -> str:
    """The secret that a reference points at.

    Args:
        environment: Usually ``os.environ``.
        what: The setting's path, for errors: ``models.chat-small.upstream.credential``.

    Raises:
        ConfigurationError: The variable is not set, the file cannot be read, or either is empty.
    """
    if reference.env is not None:
        value = environment.get(reference.env, "").strip()
        if not value:
            fix = "export it before starting"
            raise ConfigurationError((f"{what}: the environment variable {reference.env} is not set or empty; {fix}",))
        return value
    path = Path(reference.file or "")
    try:
        value = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError((f"{what}: {path} cannot be read: {reason}; check path and rights",)) from error
    if not value:
        raise ConfigurationError((f"{what}: {path} is empty; write the secret into it",))
    return value
