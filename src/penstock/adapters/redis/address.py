"""Where Redis is and as whom to speak to it, read from a URL and what the configuration names beside it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from penstock.adapters.tls import Tls

PORT: Final = 6379
SENTINEL_PORT: Final = 26379


class Kind(StrEnum):
    """How the server that has a key is found."""

    SINGLE = "single"
    SENTINEL = "sentinel"  # its sentinels are asked which server is the primary
    CLUSTER = "cluster"  # any of its nodes is asked which of them has which slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One Redis and one account of it.

    Args:
        tls: Set for ``rediss://``; ``server_name`` is what each server's certificate must name, its host if None.
        shows_certificate: Whether ``tls`` has one of ours for a server that asks.
        username: None with a password is the user ``default``.
        others: More sentinels, or more nodes of a cluster, to be asked beside ``host``.
        service: What the sentinels call the primary.
    """

    host: str
    port: int = PORT
    database: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    server_name: str | None = None
    shows_certificate: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    kind: Kind = Kind.SINGLE
    others: tuple[tuple[str, int], ...] = ()
    service: str = ""

    @property
    def places(self) -> tuple[tuple[str, int], ...]:
        """Each (host, port) that the address names."""
        return ((self.host, self.port), *self.others)

    def at(self, host: str, port: int) -> Address:
        """One server, with the same account."""
        return replace(self, host=host, port=port, kind=Kind.SINGLE, others=(), service="")

    def certified(self, host: str) -> str | None:
        """The name that the certificate of one of the servers must have; None without TLS."""
        return (self.server_name or host) if self.tls else None

    def __str__(self) -> str:
        scheme = "rediss" if self.tls else "redis"
        if self.kind is not Kind.SINGLE:
            scheme = f"{scheme}+{self.kind}"
        account = f"{self.username}@" if self.username else ""
        hosts = ",".join(f"{host}:{port}" for host, port in self.places)
        return f"{scheme}://{account}{hosts}{f'/{self.service}' if self.service else ''}"


def read_address(
    url: str, *, username: str | None = None, password: str | None = None, tls: Tls | None = None
) -> Address:
    """An address from ``redis[s]://[user[:password]@]host[:port][/database]``, or of several servers.

    ``redis+sentinel://host[:port],host[:port]/service`` names the sentinels that know a primary, and what they call it;
    ``redis+cluster://host[:port],host[:port]`` any nodes of a cluster. ``rediss+...`` speaks TLS, to sentinels too.
    The account is that of the servers; sentinels are asked without one.

    Args:
        username: Goes before the URL's, as ``password`` does.
        tls: How ``rediss`` is spoken: the system's authorities, and no certificate of ours, if None.

    Raises:
        ValueError: The URL is of another scheme, names no host, or names sentinels without a service.
        ConfigurationError: A file of ``tls`` cannot be used.

    Example:
        >>> str(read_address("redis://127.0.0.1/2", username="penstock_api"))
        'redis://penstock_api@127.0.0.1:6379'
        >>> str(read_address("redis+sentinel://a,b:7000/main"))
        'redis+sentinel://a:26379,b:7000/main'
    """
    parts = urlsplit(url)
    scheme, _, named = parts.scheme.partition("+")
    if scheme not in ("redis", "rediss") or named not in ("", Kind.SENTINEL, Kind.CLUSTER):
        raise _no_address(parts)
    kind = Kind(named) if named else Kind.SINGLE
    account, _, hosts = parts.netloc.rpartition("@")
    port = SENTINEL_PORT if kind is Kind.SENTINEL else PORT
    places = [(each.hostname or "", each.port or port) for each in (urlsplit(f"//{host}") for host in hosts.split(","))]
    path = parts.path.strip("/")
    if not all(host for host, _ in places) or (kind is Kind.SINGLE and len(places) > 1):
        raise _no_address(parts)
    if kind is Kind.SENTINEL and not path:
        raise ValueError(f"{parts.scheme}://{hosts} does not say what the sentinels call the primary; add /<service>")
    own, _, secret = account.partition(":")
    secured = tls or Tls()
    return Address(
        host=places[0][0],
        port=places[0][1],
        database=int(path or 0) if kind is Kind.SINGLE else 0,
        tls=secured.context() if scheme == "rediss" else None,
        server_name=secured.server_name,
        shows_certificate=secured.certificate is not None,
        username=username or unquote(own) or None,
        password=password or unquote(secret) or None,
        kind=kind,
        others=tuple(places[1:]),
        service=path if kind is Kind.SENTINEL else "",
    )


def _no_address(parts: SplitResult) -> ValueError:
    hosts = parts.netloc.rpartition("@")[2]
    return ValueError(
        f"{parts.scheme}://{hosts} is no address of a Redis: redis[s]://host[:port][/database], "
        "redis+sentinel://host[:port],.../service or redis+cluster://host[:port],..."
    )
