"""What must fit together where a service is reached over TLS: addresses, names, and the two halves of a certificate."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from penstock.config.reading import Location
from penstock.config.store_settings import Store, Stores
from penstock.config.values import FileReference
from penstock.config.walking import SECRETS_FOLDER

_SECURED = {"redis": "rediss", "rabbitmq": "amqps"}


def tls_problems(stores: Stores) -> Iterator[tuple[Location, str]]:
    """What keeps a service from being reached as written."""
    for name in ("redis", "postgresql", "rabbitmq"):
        store: Store = getattr(stores, name)
        at: Location = ("stores", name)
        if store.certificate is not None and store.key is None:
            yield (*at, "key"), "missing, and a certificate proves nothing without it; write `key: {file: PATH}`"
        if store.key is not None and store.certificate is None:
            yield (*at, "certificate"), "missing, and a key is shown to nobody; write `certificate: {file: PATH}`"
        given = next((each for each in ("certificate", "key", "server_name") if getattr(store, each) is not None), None)
        if given is not None:
            yield from _without_tls((*at, given), name, store)
        if name == "postgresql" and store.server_name is not None and not _is_address(urlsplit(store.url).hostname):
            message = "found it beside a name in `url`, which is what is checked; write an IP address there"
            yield (*at, "server_name"), message


def tls_warnings(stores: Stores) -> Iterator[tuple[Location, str]]:
    """What will fail where the file is as it is here: a service may run elsewhere, with files of its own."""
    for name in ("redis", "postgresql", "rabbitmq"):
        store: Store = getattr(stores, name)
        for part in ("certificate", "key"):
            reference: FileReference | None = getattr(store, part)
            if reference is None or reference.file.startswith(SECRETS_FOLDER):  # a pod's
                continue
            try:
                Path(reference.file).read_bytes()
            except OSError as error:
                where = "cannot be read from here"
                yield ("stores", name, part), f"{reference.file} {where}: {error.strerror}; check path and rights"
    if stores.redis.server_name is not None:
        message = (
            "Bento's streams check the name of `url` and will not start; for the queue lane, write this name there"
        )
        yield ("stores", "redis", "server_name"), message


def _without_tls(at: Location, name: str, store: Store) -> Iterator[tuple[Location, str]]:
    if name == "postgresql":
        if store.ca is None:
            yield at, "found without `ca`, by which PostgreSQL is reached over TLS; give `ca: {file: PATH}`"
        return
    scheme = store.url.partition(":")[0]
    wanted = _SECURED[name]
    is_managed = name == "rabbitmq" and getattr(store, "management", "").startswith("https:")
    if not scheme.startswith(wanted) and not is_managed:
        yield at, f"found beside {scheme}://, where there is no TLS; write {wanted}:// in `url`"


def _is_address(host: str | None) -> bool:
    try:
        ip_address(host or "")
    except ValueError:
        return False
    return True
