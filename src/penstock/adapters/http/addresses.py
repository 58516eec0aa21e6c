"""Where a URL leads, worked out once per URL: the origin to connect to, and the text of the request's first lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Origin:
    """What connections are shared by."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Address:
    """One URL. ``first_lines`` follow the method: target, version and the Host header."""

    origin: Origin
    first_lines: str


def parse_address(url: str) -> Address:
    """Take an absolute http or https URL apart.

    Raises:
        ValueError: It has another scheme, no host, credentials, or characters that would split the request.

    Example:
        >>> parse_address("http://vllm:8000/v1/models").origin
        Origin(host='vllm', port=8000, tls=False)
    """
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("the URL has a blank or a character that is not printable ASCII; percent-encode it")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the URL is not absolute; write http://host:port/path or https://host/path")
    if parts.username is not None or parts.password is not None:
        raise ValueError("the URL carries credentials; put them into a header")
    tls = parts.scheme == "https"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    origin = Origin(parts.hostname, parts.port or (443 if tls else 80), tls)
    return Address(origin, f"{target} HTTP/1.1\r\nhost: {parts.netloc}\r\n")


def request_head(method: str, address: Address, headers: Mapping[str, str], body_bytes: int) -> bytes:
    """Write a request's head. ``headers`` must not name host, content-length or transfer-encoding.

    Raises:
        ValueError: A header would split the head, or is not Latin-1.
    """
    lines = [f"{method} {address.first_lines}"]
    lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
    lines.append(f"content-length: {body_bytes}\r\n\r\n")
    text = "".join(lines)
    if text.count("\n") != len(headers) + 4 or text.count("\r") != len(headers) + 4:
        raise ValueError("a header of the request contains a line break; correct its value")
    return text.encode("latin-1")
