"""Finding the service that runs on a data directory, and asking its operations port."""

from __future__ import annotations

import urllib.error
import urllib.request

import msgspec

from penstock.errors import StoreUnavailable
from penstock.wiring.places import Places

ANSWER_S = 30.0


class Running(msgspec.Struct, frozen=True):
    """What a service writes into its data directory while it runs."""

    pid: int
    url: str
    operations_url: str


def local_url(host: str, port: int) -> str:
    """An address that a client on this machine can use for one that a server listens on.

    Example:
        >>> local_url("0.0.0.0", 8080), local_url("::", 8080)
        ('http://127.0.0.1:8080', 'http://[::1]:8080')
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def announce(places: Places, running: Running) -> None:
    """Write that a service runs, whole or not at all."""
    draft = places.running.with_suffix(f".{running.pid}")
    draft.write_bytes(msgspec.json.encode(running) + b"\n")
    draft.replace(places.running)


def retract(places: Places) -> None:
    """The service has stopped."""
    places.running.unlink(missing_ok=True)


def ask(places: Places, path: str) -> bytes | None:
    """GET ``path`` from the operations port of the service that runs here.

    Returns:
        The answer; None if no service runs. A file left by one that was killed counts as none: nobody listens.

    Raises:
        StoreUnavailable: A service runs, and does not answer this.
    """
    try:
        running = msgspec.json.decode(places.running.read_bytes(), type=Running)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise StoreUnavailable(
            f"{places.running}: cannot be read: {error}; restart the service, which writes it"
        ) from error
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy: it is this machine
    try:
        with opener.open(running.operations_url.rstrip("/") + path, timeout=ANSWER_S) as answer:
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError as error:
        with error:
            raise StoreUnavailable(
                f"the service at {running.operations_url} answered {error.code} to {path}; see its log"
            ) from error
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ConnectionRefusedError):
            return None
        raise StoreUnavailable(
            f"the service at {running.operations_url} does not answer: {reason}; see its log, or stop it"
        ) from error
