"""Where Redis is and as whom to speak to it, read from a URL and what the configuration names beside it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

PORT = 6379


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One Redis and one account of it.

    Args:
        tls: Set for ``rediss://``.
        username: None with a password is the user ``default``.
    """

    host: str
    port: int = PORT
    database: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        account = f"{self.username}@" if self.username else ""
        return f"{'rediss' if self.tls else 'redis'}://{account}{self.host}:{self.port}"


def read_address(
    url: str, *, username: str | None = None, password: str | None = None, ca: Path | None = None
) -> Address:
    """An address from ``redis[s]://[user[:password]@]host[:port][/database]``.

    Args:
        username: Goes before the URL's, as ``password`` does.
        ca: Certificates (PEM) that vouch for the server instead of the system's.

    Raises:
        ValueError: The URL is of another scheme or names no host.
        OSError: ``ca`` cannot be read.

    Example:
        >>> str(read_address("redis://127.0.0.1/2", username="penstock_api"))
        'redis://penstock_api@127.0.0.1:6379'
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ValueError(
            f"{parts.scheme}://{parts.hostname or ''} is no address of a Redis: redis[s]://host[:port][/database]"
        )
    tls = ssl.create_default_context(cafile=ca) if parts.scheme == "rediss" else None
    return Address(
        host=parts.hostname,
        port=parts.port or PORT,
        database=int(parts.path.strip("/") or 0),
        tls=tls,
        username=username or (unquote(parts.username) if parts.username else None),
        password=password or (unquote(parts.password) if parts.password else None),
    )
