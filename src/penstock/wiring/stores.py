"""Where each service of a cluster is, and as whom a process goes there: its own account, or the common one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote, urlsplit

from penstock.adapters.tls import Tls
from penstock.config import Configuration, read_secret
from penstock.config.store_settings import Accounts, Store
from penstock.config.values import FileReference
from penstock.errors import ConfigurationError

USER_PREFIX = "penstock_"
VIRTUAL_HOST = "penstock"  # where the address names none
_PORTS = {"redis": 6379, "rediss": 6379, "postgresql": 5432, "amqp": 5672, "amqps": 5671}
_PORTS_OF_SEVERAL = {"sentinel": 26379, "cluster": 6379}
_TLS = frozenset({"rediss", "amqps"})


class Service(StrEnum):
    """What keeps state."""

    REDIS = "redis"
    POSTGRESQL = "postgresql"
    RABBITMQ = "rabbitmq"


class Role(StrEnum):
    """The kinds of processes that have accounts."""

    API = "api"
    KEEPER = "keeper"
    GATEWAY = "gateway"
    WORKER = "worker"
    COLLECTOR = "collector"
    MONITOR = "monitor"


ROLES: dict[Service, tuple[Role, ...]] = {
    Service.REDIS: (Role.API, Role.KEEPER, Role.GATEWAY, Role.WORKER, Role.COLLECTOR),
    Service.POSTGRESQL: (Role.API, Role.KEEPER, Role.COLLECTOR),
    Service.RABBITMQ: (Role.GATEWAY, Role.WORKER, Role.COLLECTOR, Role.MONITOR),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A service, and an account there.

    Args:
        path: Of the URL, without its slash: a database's number or name, or a virtual host.
        tls: How TLS is spoken there, if it is.
        others: More hosts and ports, of ``redis+sentinel`` and ``redis+cluster``.
    """

    scheme: str
    host: str
    port: int
    path: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Tls = field(default_factory=Tls)
    others: tuple[tuple[str, int], ...] = ()

    @property
    def is_tls(self) -> bool:
        """Whether the scheme asks for TLS; PostgreSQL does where there is a ``ca``."""
        return self.scheme.partition("+")[0] in _TLS or (self.scheme == "postgresql" and self.tls.ca is not None)

    @property
    def location(self) -> str:
        """The URL without the account."""
        return f"{self.scheme}://{','.join(self._hosts)}/{quote(self.path, safe='')}"

    @property
    def url(self) -> str:
        """With the account in it, as most programs take it; a secret."""
        return f"{self.scheme}://{self._account}{','.join(self._hosts)}/{quote(self.path, safe='')}"

    @property
    def urls(self) -> str:
        """One URL for each host, all with the account, separated by commas, as Bento takes them; a secret."""
        scheme = self.scheme.partition("+")[0]
        path = "" if scheme != self.scheme else f"/{quote(self.path, safe='')}"
        return ",".join(f"{scheme}://{self._account}{host}{path}" for host in self._hosts)

    @property
    def _account(self) -> str:
        return f"{quote(self.username, safe='')}:{quote(self.password or '', safe='')}@" if self.username else ""

    @property
    def _hosts(self) -> list[str]:
        places = ((self.host, self.port), *self.others)
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in places]


def address(
    configuration: Configuration, service: Service, role: Role | None, environment: Mapping[str, str]
) -> Address:
    """Where a process finds a service.

    Args:
        configuration: With stores.
        role: What the process is; None for ``penstock setup``, which has the common account.
        environment: Usually ``os.environ``.

    Raises:
        ConfigurationError: A reference leads nowhere.
    """
    store = _store(configuration, service)
    own = getattr(store.accounts, role) if role is not None else None
    if own is not None:
        username: str | None = f"{USER_PREFIX}{role}"
        password: str | None = read_secret(own, environment=environment, what=f"stores.{service}.accounts.{role}")
    else:
        username, password = store.username, None
        if store.password is not None:
            password = read_secret(store.password, environment=environment, what=f"stores.{service}.password")
    parts = urlsplit(store.url)
    scheme, _, several = parts.scheme.partition("+")
    port = _PORTS_OF_SEVERAL[several] if several else _PORTS[scheme]
    hosts = [urlsplit(f"//{host}") for host in (parts.netloc.split(",") if several else [parts.netloc])]
    first, *others = [(each.hostname or "", each.port or port) for each in hosts]
    return Address(
        scheme=parts.scheme,
        host=first[0],
        port=first[1],
        others=tuple(others),
        path=parts.path.strip("/"),
        username=username,
        password=password,
        tls=_tls(f"stores.{service}", store),
    )


def accounts(configuration: Configuration, service: Service, environment: Mapping[str, str]) -> dict[str, str]:
    """Passwords of the users that ``penstock setup`` creates in a service, by role.

    Raises:
        ConfigurationError: A reference leads nowhere, or an account is given that the service has no use for.
    """
    given: Accounts = _store(configuration, service).accounts
    found: dict[str, str] = {}
    for role in Role:
        reference = getattr(given, role)
        if reference is None:
            continue
        what = f"stores.{service}.accounts.{role}"
        if role not in ROLES[service]:
            used = ", ".join(ROLES[service])
            raise ConfigurationError((f"{what}: {service} has no user of this kind; it has {used}: remove it",))
        found[role] = read_secret(reference, environment=environment, what=what)
    return found


def _tls(setting: str, store: Store) -> Tls:
    return Tls(
        setting=setting,
        ca=_path(store.ca),
        certificate=_path(store.certificate),
        key=_path(store.key),
        server_name=store.server_name,
    )


def _path(reference: FileReference | None) -> Path | None:
    return None if reference is None else Path(reference.file)


def _store(configuration: Configuration, service: Service) -> Store:
    stores = configuration.stores
    if stores is None:
        raise ConfigurationError(
            ("stores: not given, and only a cluster has services; see docs/reference/configuration.md",)
        )
    store: Store = getattr(stores, service)
    return store
