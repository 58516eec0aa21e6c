"""The section `stores`: where the services of a cluster are, and how they and we prove who they are."""

from __future__ import annotations

from penstock.config.values import FileReference, HostName, Secret, Setting, StoreUrl, Url


class Accounts(Setting, frozen=True, kw_only=True):
    """Passwords of the users that `penstock setup` creates in a service, each with the least rights.

    The users are called `penstock_api`, `penstock_keeper` and so on. A service has those that make use of it.

    Args:
        api: Of the API service: Redis and PostgreSQL.
        keeper: Of the keeper: Redis and PostgreSQL.
        gateway: Of the queue lane's gateway: Redis and RabbitMQ.
        worker: Of the workers and the executors beside them: Redis and RabbitMQ.
        collector: Of the results collector: Redis, PostgreSQL and RabbitMQ.
        monitor: Of those who only look at queue lengths: RabbitMQ.
    """

    api: Secret | None = None
    keeper: Secret | None = None
    gateway: Secret | None = None
    worker: Secret | None = None
    collector: Secret | None = None
    monitor: Secret | None = None


class Store(Setting, frozen=True, kw_only=True):
    """One service that keeps state.

    Args:
        url: Address, without a password.
        username: Account of `penstock setup`, and of each process without an account of its own.
        password: Of that account.
        ca: Certificates (PEM) that vouch for the service instead of the system's.
        certificate: Our own (PEM), for a service that asks its clients for one. Beside `key`.
        key: Of `certificate` (PEM), not encrypted, readable by nobody else.
        server_name: What the service's certificate names, if that is not the host of `url`. PostgreSQL wants an IP
            address in `url` beside it; to Redis, Bento's streams cannot do it.
        accounts: Passwords of its other users.
    """

    url: StoreUrl
    username: str | None = None
    password: Secret | None = None
    ca: FileReference | None = None
    certificate: FileReference | None = None
    key: FileReference | None = None
    server_name: HostName | None = None
    accounts: Accounts = Accounts()


class Rabbitmq(Store, frozen=True, kw_only=True):
    """The queue lane's broker. The path of its address names the virtual host; `penstock` without one.

    Args:
        management: Address of its management API, which `penstock setup` uses.
    """

    management: Url = "http://127.0.0.1:15672"


class Stores(Setting, frozen=True, kw_only=True):
    """The services of a cluster. Without this section everything is embedded in one process.

    Args:
        redis: Quota counters: `redis://` or `rediss://`; `redis+sentinel://host,host/service`; `redis+cluster://host,host`.
        postgresql: The ledger: `postgresql://`.
        rabbitmq: The queue lane: `amqp://` or `amqps://`.
    """

    redis: Store
    postgresql: Store
    rabbitmq: Rabbitmq
