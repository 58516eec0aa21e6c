"""A healthy cluster has nothing wrong; each thing that can be broken is found, with what to type."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import text

from penstock.adapters.rabbitmq.management import ManagementApi, prepare
from penstock.adapters.redis.client import pack
from penstock.adapters.redis.library import load_library
from penstock.adapters.redis.translating import keys_of
from penstock.adapters.sql.database import to_json
from penstock.lanes.diagnosis import Diagnosis, Finding, Severity
from penstock.wiring.broker import wanted
from penstock.wiring.clock import SystemClock
from penstock.wiring.doctoring.clocks import check_clocks
from penstock.wiring.doctoring.examining import examine
from penstock.wiring.doctoring.ledger import check_definitions, check_drift, check_organisations
from penstock.wiring.doctoring.patient import Patient
from penstock.wiring.doctoring.postgresql import check_keeper, check_postgresql, check_results, check_schema
from penstock.wiring.doctoring.rabbitmq import (
    check_consumer_timeout,
    check_dead_letters,
    check_queues,
    check_rabbitmq,
    check_topology,
)
from penstock.wiring.doctoring.redis import check_functions, check_outbox, check_redis
from penstock.wiring.places import Places
from tests.system.clusters import Cluster, until
from tests.system.services import found_program, free_port

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]

Look = Callable[[Patient], Coroutine[Any, Any, list[Finding]]]


class Ahead(SystemClock):
    """A clock that goes before."""

    def __init__(self, by_ms: int) -> None:
        self._by_ms = by_ms

    def now_ms(self) -> int:
        return super().now_ms() + self._by_ms


@pytest.fixture
def patient(cluster: Cluster) -> Patient:
    return Patient(
        configuration=cluster.configuration, places=Places(cluster.data), environment=os.environ, clock=SystemClock()
    )


def changed(patient: Patient, section: str, **changes: Any) -> Patient:
    """With other values in one section of ``stores``, or of the configuration."""
    configuration = patient.configuration
    if hasattr(configuration, section):
        new = structs.replace(configuration, **{section: structs.replace(getattr(configuration, section), **changes)})
    else:
        assert configuration.stores is not None
        store = structs.replace(getattr(configuration.stores, section), **changes)
        new = structs.replace(configuration, stores=structs.replace(configuration.stores, **{section: store}))
    return replace(patient, configuration=new)


def found(look: Look, patient: Patient) -> list[tuple[Severity, str]]:
    return [(each.severity, f"{each.what} -> {each.fix}") for each in asyncio.run(look(patient))]


def only(look: Look, patient: Patient, severity: Severity) -> str:
    """The one finding, which is so bad."""
    ((there, told),) = found(look, patient)
    assert there is severity
    return told


def asked(patient: Patient, *commands: tuple[Any, ...]) -> list[Any]:
    """Redis' answers, as its administrator."""

    async def ask() -> list[Any]:
        (at,) = await patient.redis_addresses()
        async with patient.redis(at) as client:
            return [await client.ask(pack(*words)) for words in commands]

    return asyncio.run(ask())


def executed(patient: Patient, *statements: str, **values: Any) -> None:
    """Statements to PostgreSQL as its administrator, past every trigger."""
    with patient.database() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text("SET session_replication_role = replica"))
        for statement in statements:
            connection.execute(text(statement), values)


def managed(patient: Patient, work: Callable[[ManagementApi], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        async with patient.management() as api:
            return await work(api)

    return asyncio.run(run())


@contextmanager
def frozen_keeper(cluster: Cluster, patient: Patient) -> Iterator[None]:
    """The keeper hangs, and has lost its lock: nobody drains, sweeps or rebuilds."""
    group = cluster.pids["keeper"]
    os.killpg(group, signal.SIGSTOP)
    try:
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'penstock keeper'"
        executed(patient, ended)
        until(lambda: found(check_keeper, patient) != [])
        yield
    finally:
        os.killpg(group, signal.SIGCONT)
        until(lambda: found(check_keeper, patient) == [])


@pytest.fixture
def empty_vhost(cluster: Cluster, patient: Patient) -> Iterator[Patient]:
    """The topology of the cluster again, in a virtual host where nothing is connected."""
    store = patient.configuration.stores
    assert store is not None
    url = store.rabbitmq.url.rpartition("/")[0] + "/empty"
    other = changed(patient, "rabbitmq", url=url)
    managed(other, lambda api: prepare(api, wanted(other.configuration, "empty", ()), {}))
    yield other
    managed(other, lambda api: api.ask("DELETE", "vhosts", "empty"))


def published(patient: Patient, queue: str) -> None:
    body = {"properties": {}, "routing_key": queue, "payload": "{}", "payload_encoding": "string"}
    managed(patient, lambda api: api.ask("POST", "exchanges", "empty", "amq.default", "publish", body=body))


def test_a_healthy_cluster_has_no_finding(cluster: Cluster, patient: Patient) -> None:
    with cluster.client() as client:
        cluster.ended(client, cluster.submit(client))
    cluster.audited()
    whole: list[Diagnosis] = []

    def is_well() -> bool:
        whole[:] = [asyncio.run(examine(patient))]
        return whole[0].exit_code == 0

    until(is_well)  # what an earlier test killed may still be on its way back
    assert (whole[0].findings, whole[0].unseen, len(whole[0].looked)) == ([], [], 23)
    assert "23 checks: all is well" in cluster.command("doctor")


def test_the_worst_comes_first_and_decides_the_exit_code(cluster: Cluster, patient: Patient) -> None:
    asked(patient, ("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"))
    try:
        told = json.loads(cluster.command("doctor", "--json", expect=2))
    finally:
        asked(patient, ("CONFIG", "SET", "maxmemory-policy", "noeviction"))
    (finding,) = told["findings"]
    assert (finding["check"], finding["severity"]) == ("redis", "wrong")
    assert finding["fix"] == "set `maxmemory-policy noeviction`"


def test_a_service_out_of_reach_is_one_finding_and_hides_only_what_needs_it(patient: Patient) -> None:
    away = changed(patient, "rabbitmq", management=f"http://127.0.0.1:{free_port()}")
    diagnosis = asyncio.run(examine(away))
    assert [each.check for each in diagnosis.findings] == ["stores"]
    assert "stores.rabbitmq.management" in diagnosis.findings[0].fix
    unseen = {each.check for each in diagnosis.unseen}
    assert unseen == {"rabbitmq", "topology", "queues", "dead_letters", "consumer_timeout"}
    assert diagnosis.exit_code == 2


def test_a_redis_that_may_lose_counters_is_found(patient: Patient) -> None:
    asked(patient, ("CONFIG", "SET", "appendfsync", "no"), ("CONFIG", "SET", "maxmemory", "1mb"))
    try:
        told = found(check_redis, patient)
    finally:
        asked(patient, ("CONFIG", "SET", "appendfsync", "everysec"), ("CONFIG", "SET", "maxmemory", "0"))
    assert [severity for severity, _ in told] == [Severity.WRONG, Severity.WARNING]
    assert "appendfsync everysec" in told[0][1]
    assert "raise maxmemory" in told[1][1]


def test_missing_functions_are_found(patient: Patient) -> None:
    async def load() -> None:
        (at,) = await patient.redis_addresses()
        async with patient.redis(at) as client:
            await load_library(client)

    asked(patient, ("FUNCTION", "DELETE", "penstock"))
    try:
        told = only(check_functions, patient, Severity.WRONG)
    finally:
        asyncio.run(load())
    assert "run `penstock setup`" in told


def test_a_postgresql_that_may_lose_rows_is_found(patient: Patient) -> None:
    reload = "SELECT pg_reload_conf()"
    executed(patient, "ALTER SYSTEM SET synchronous_commit = off", reload)
    try:
        until(lambda: found(check_postgresql, patient) != [])
        assert "ALTER SYSTEM SET synchronous_commit = on" in only(check_postgresql, patient, Severity.WRONG)
    finally:
        executed(patient, "ALTER SYSTEM RESET synchronous_commit", reload)
    until(lambda: found(check_postgresql, patient) == [])


def test_an_older_schema_and_a_missing_partition_are_found(patient: Patient) -> None:
    with patient.database() as connection:
        right = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
    executed(patient, "UPDATE alembic_version SET version_num = '0001'")
    try:
        assert "revision 0001" in only(check_schema, patient, Severity.WRONG)
    finally:
        executed(patient, "UPDATE alembic_version SET version_num = :right", right=right)
    years = replace(patient, clock=Ahead(5 * 366 * 86_400_000))
    assert "no partition for" in only(check_schema, years, Severity.WARNING)


def test_a_missing_keeper_and_what_waits_for_it_are_found(cluster: Cluster, patient: Patient) -> None:
    keys = [key.decode() for key in keys_of("other")[:4]]
    with frozen_keeper(cluster, patient):
        assert "penstock keeper" in only(check_keeper, patient, Severity.WRONG)
        with cluster.client() as client:
            asked_for = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
            assert client.post("/v1/chat/completions", json=asked_for).status_code == 200
        until(lambda: found(check_outbox, replace(patient, clock=Ahead(700_000))) != [])
        assert only(check_outbox, replace(patient, clock=Ahead(700_000)), Severity.WRONG)
        assert only(check_outbox, replace(patient, clock=Ahead(100_000)), Severity.WARNING)
        assert found(check_outbox, patient) == []
        there = [key for key in keys if asked(patient, ("EXISTS", key)) == [1]]
        asked(patient, *(("RENAME", key, f"{key}:kept") for key in there))
        try:
            assert "no quota state of other" in only(check_organisations, patient, Severity.WRONG)
        finally:
            asked(patient, *(("RENAME", f"{key}:kept", key) for key in there))
    cluster.audited()


def test_a_result_that_nobody_charged_is_found(cluster: Cluster, patient: Patient) -> None:
    row = (
        "INSERT INTO results (job, organisation, model, route, status, http_status, reason, attempts, started_at_ms, "
        "finished_at_ms, arguments, settled) VALUES ('lost', 'acme', 'm', '', 'failed', 500, '', 0, 0, 1, '{}', false)"
    )
    with frozen_keeper(cluster, patient):
        executed(patient, row)
        try:
            assert "1 results of jobs" in only(check_results, patient, Severity.WRONG)
        finally:
            executed(patient, "DELETE FROM results WHERE job = 'lost'")


def test_a_changed_ledger_is_found(cluster: Cluster, patient: Patient) -> None:
    with cluster.client() as client:
        cluster.ended(client, cluster.submit(client))
    row = next(event for event in cluster.audited() if event.charge.tokens)
    amounts = [(each.limit, each.window, each.amount) for each in row.amounts]
    changed = "UPDATE ledger SET amounts = CAST(:amounts AS json) WHERE reservation = :id AND kind = :kind"
    values = {"id": row.reservation, "kind": str(row.kind)}
    less = [(limit, window, amount - 1) for limit, window, amount in amounts]
    executed(patient, changed, amounts=to_json(less), **values)
    try:
        told = found(check_drift, patient)
    finally:
        executed(patient, changed, amounts=to_json(amounts), **values)
    assert told[0][0] is Severity.WRONG
    assert row.reservation in told[0][1]
    assert "penstock audit acme" in told[0][1]


def test_a_node_with_an_alarm_is_found(cluster: Cluster, patient: Patient) -> None:
    def control(*arguments: str) -> None:
        environment = Path(f"/proc/{cluster.pids['rabbitmq']}/environ").read_bytes().decode().split("\0")
        variables = dict(each.partition("=")[::2] for each in environment if each)
        program = found_program("rabbitmqctl", "/usr/lib/rabbitmq/lib/*/sbin/rabbitmqctl")
        os.spawnve(os.P_WAIT, program, [program, *arguments], variables)

    control("set_disk_free_limit", "1000GB")
    try:
        until(lambda: found(check_rabbitmq, patient) != [])
        assert "disk alarm" in only(check_rabbitmq, patient, Severity.WRONG)
    finally:
        control("set_disk_free_limit", "50MB")
    until(lambda: found(check_rabbitmq, patient) == [])


def test_a_topology_that_was_changed_is_found(empty_vhost: Patient) -> None:
    assert found(check_topology, empty_vhost) == []
    classic = {"durable": True, "arguments": {"x-queue-type": "classic"}}

    async def break_it(api: ManagementApi) -> None:
        await api.ask("DELETE", "policies", "empty", "penstock-dead")
        await api.ask("DELETE", "queues", "empty", "parked.5s")
        await api.ask("DELETE", "queues", "empty", "results")
        await api.ask("PUT", "queues", "empty", "results", body=classic)
        other = {"pattern": "^jobs", "definition": {"max-length": 5}, "priority": 99, "apply-to": "queues"}
        await api.ask("PUT", "policies", "empty", "mine", body=other)

    managed(empty_vhost, break_it)
    until(lambda: "governed by the policy mine" in str(found(check_topology, empty_vhost)))
    told = [each for _, each in found(check_topology, empty_vhost)]
    assert "1 queues are missing in empty: parked.5s" in told[0]
    assert "the policy penstock-dead of empty is missing" in told[1]
    assert any("the queue results is of type classic" in each for each in told)


def test_queues_that_nobody_takes_from_are_found(empty_vhost: Patient) -> None:
    assert "no collector is connected" in only(check_queues, empty_vhost, Severity.WRONG)
    assert found(check_dead_letters, empty_vhost) == []
    published(empty_vhost, "jobs.m.standard.0")
    published(empty_vhost, "dead")
    until(lambda: len(found(check_queues, empty_vhost)) == 2)
    assert "1 jobs of m wait, and no worker" in found(check_queues, empty_vhost)[0][1]
    until(lambda: found(check_dead_letters, empty_vhost) != [])
    assert "1 dead letters wait" in only(check_dead_letters, empty_vhost, Severity.WRONG)
    narrow = changed(empty_vhost, "queue", ready_bytes_max=1)
    until(lambda: "queue.ready_bytes_max wait in" in found(check_queues, narrow)[-1][1])


def test_a_deadline_beyond_the_brokers_patience_is_found(patient: Patient) -> None:
    assert found(check_consumer_timeout, patient) == []
    told = only(check_consumer_timeout, changed(patient, "queue", deadline_ms=10_000_000), Severity.WARNING)
    assert "`consumer_timeout = 20000000` in its rabbitmq.conf" in told


def test_clocks_that_differ_are_found(patient: Patient) -> None:
    assert found(check_clocks, patient) == []
    told = found(check_clocks, replace(patient, clock=Ahead(10_000)))
    assert [severity for severity, _ in told] == [Severity.WARNING] * 2
    assert re.search(r"PostgreSQL is (9\.\d|10\.0) s behind", told[1][1])  # less by how long it took to answer
    assert [severity for severity, _ in found(check_clocks, replace(patient, clock=Ahead(-40_000)))] == [2, 2]


def test_a_configuration_that_was_not_set_up_is_found(patient: Patient) -> None:
    configuration = patient.configuration
    acme = configuration.organisations["acme"]
    others = {"acme": structs.replace(acme, limits=acme.limits + configuration.plans["p"].limits[:1]), "new": acme}
    fewer = {"p": structs.replace(configuration.plans["p"], limits=configuration.plans["p"].limits[:1])}
    new = structs.replace(configuration, plans=fewer, organisations=configuration.organisations | others)
    told = found(check_definitions, replace(patient, configuration=new))
    assert [severity for severity, _ in told] == [Severity.WRONG, Severity.WARNING, Severity.WARNING]
    assert "does not have: new -> penstock setup" in told[0][1]
