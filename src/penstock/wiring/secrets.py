"""The peppers that API keys are hashed with: referred to by the configuration, or made by the embedded default.

A pepper made here lies in a file of its own beside the database, for its owner only. Without it no key of that
database works again, so a database with keys and without their pepper is an error, never a reason to make another.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping

from sqlalchemy import inspect

from penstock.adapters.sql.database import open_engine
from penstock.adapters.sql.keys import Keys
from penstock.adapters.sql.tables import api_keys
from penstock.config import Configuration, read_secret
from penstock.errors import ConfigurationError
from penstock.wiring.places import Places

PEPPER_BYTES_MIN = 32


def read_peppers(configuration: Configuration, places: Places, environment: Mapping[str, str]) -> tuple[bytes, ...]:
    """The live peppers, the newest first; keys are made with the first and accepted with each.

    Args:
        environment: Usually ``os.environ``.

    Raises:
        ConfigurationError: A reference leads nowhere, a pepper is shorter than 32 bytes, others may read the file
            that holds it, or the file is gone while the database has keys that were made with it.
    """
    auth = configuration.auth
    if auth.pepper is not None:
        newest = read_secret(auth.pepper, environment=environment, what="auth.pepper")
    elif configuration.stores is not None:
        raise ConfigurationError(
            ("auth.pepper: not given, and services with stores share one; refer to it, as in `pepper: {env: NAME}`",)
        )
    else:
        newest = _own_pepper(places)
    found = {"auth.pepper": newest}
    if auth.pepper_previous is not None:
        previous = read_secret(auth.pepper_previous, environment=environment, what="auth.pepper_previous")
        found["auth.pepper_previous"] = previous
    for what, pepper in found.items():
        if len(pepper.encode()) < PEPPER_BYTES_MIN:
            raise ConfigurationError(
                (
                    f"{what}: {len(pepper.encode())} bytes, at least {PEPPER_BYTES_MIN} are wanted; "
                    "make one with `openssl rand -hex 32`",
                )
            )
    return tuple(pepper.encode() for pepper in found.values())


def _own_pepper(places: Places) -> str:
    """Read the file, or make it for a database that is yet to come."""
    path = places.pepper
    if not path.exists():
        kept = _keys_kept(places)
        if kept:
            raise ConfigurationError(
                (
                    f"{path}: not there, but the database beside it has {kept} keys that were made with it; "
                    "restore the file from its backup, or refer to the pepper with auth.pepper",
                )
            )
        _make_pepper(places)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        pepper = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            (f"{path}: cannot be read: {error}; check the owner of the data directory",)
        ) from error
    if mode & 0o077:
        raise ConfigurationError((f"{path}: others may read it (mode {mode:04o}); run `chmod 600 {path}`",))
    return pepper


def _keys_kept(places: Places) -> int:
    """How many keys the database has; 0 of one that is not there or was never migrated."""
    if not places.database.exists():
        return 0
    engine = open_engine(places.database)
    try:
        return len(Keys(engine).list()) if inspect(engine).has_table(api_keys.name) else 0
    finally:
        engine.dispose()


def _make_pepper(places: Places) -> None:
    """Write it whole under another name first: of two processes at once, both then read the same file."""
    places.create()
    draft = places.pepper.with_name(f"pepper.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(PEPPER_BYTES_MIN) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, places.pepper)
        except FileExistsError:
            return
    finally:
        draft.unlink()
