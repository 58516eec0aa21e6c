"""As whom a process goes to a service: its own account where there is one, else the common one."""

from __future__ import annotations

import pytest

from penstock.config import Configuration, examine_text
from penstock.errors import ConfigurationError
from penstock.wiring.stores import Role, Service, accounts, address

STORES = """
models: {m: {upstream: 'http://m:8000', context: 4096}}
stores:
  redis: {url: 'rediss://r:7000', username: root, password: {env: ROOT}, accounts: {api: {env: API}}}
  postgresql: {url: 'postgresql://[::1]/penstock', ca: {file: ca.pem}}
  rabbitmq: {url: 'amqp://q/lane', accounts: {gateway: {env: API}, keeper: {env: ROOT}}}
"""
ENVIRONMENT = {"ROOT": "of root", "API": "p@ss/word"}


def configuration(text: str = STORES) -> Configuration:
    found = examine_text(text).configuration
    assert found is not None
    return found


def test_a_role_with_an_account_has_its_own_user() -> None:
    found = address(configuration(), Service.REDIS, Role.API, ENVIRONMENT)
    assert (found.username, found.password) == ("penstock_api", "p@ss/word")
    assert found.url == "rediss://penstock_api:p%40ss%2Fword@r:7000/"
    assert found.is_tls


def test_the_others_and_setup_share_the_common_one() -> None:
    for role in (Role.KEEPER, None):
        found = address(configuration(), Service.REDIS, role, ENVIRONMENT)
        assert (found.username, found.password) == ("root", "of root")


def test_ports_paths_and_certificates_have_their_places() -> None:
    found = address(configuration(), Service.POSTGRESQL, Role.API, ENVIRONMENT)
    assert (found.host, found.port, found.path, found.is_tls) == ("::1", 5432, "penstock", True)
    assert found.url == "postgresql://[::1]:5432/penstock"
    assert address(configuration(), Service.RABBITMQ, None, ENVIRONMENT).path == "lane"


def test_a_password_is_in_no_representation() -> None:
    assert "word" not in repr(address(configuration(), Service.REDIS, Role.API, ENVIRONMENT))


def test_setup_learns_the_passwords_of_the_users_to_create() -> None:
    assert accounts(configuration(), Service.REDIS, ENVIRONMENT) == {"api": "p@ss/word"}


def test_an_account_that_a_service_has_no_use_for_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"stores\.rabbitmq\.accounts\.keeper: .* gateway, worker, collector"):
        accounts(configuration(), Service.RABBITMQ, ENVIRONMENT)
