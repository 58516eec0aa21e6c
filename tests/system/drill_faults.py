"""The faults of the drill: what is broken, which alert must fire, and which others it is declared to imply."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Final

from tests.system.drill_scene import SMALL, YEAR_S, Scene, certify


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One.

    Args:
        what: For people.
        how: Breaks it on entering, mends it on leaving.
        fires: The alert.
        labels: That it must have.
        implies: Other alerts that may fire with it.
    """

    what: str
    how: Callable[[Scene], AbstractContextManager[None]]
    fires: str
    labels: Mapping[str, str] = field(default_factory=dict)
    implies: frozenset[str] = frozenset()


def _named(names: str) -> frozenset[str]:
    return frozenset(f"Penstock{name}" for name in names.split())


DOWN: Final = _named("ComponentDown InstanceDown")
ERRORS: Final = _named("ErrorsBurnFast ErrorsBurnSlow")
LATE: Final = _named("FirstTokenBurnFast FirstTokenBurnSlow")
JOBS_WAIT: Final = _named("QueueStalled QueueOld QueueWaitBurnFast QueueWaitBurnSlow")
LEDGER_WAITS: Final = _named("KeeperInactive OutboxGrowing ScalerBlind AuditStale DefinitionsStale")
STORE: Final = _named("StoreDown StorePartlyDown")


@contextmanager
def _alarm(scene: Scene) -> Iterator[None]:
    scene.broker("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        yield
    finally:
        scene.broker("set_vm_memory_high_watermark", "absolute", "1GB")


@contextmanager
def _poison(scene: Scene) -> Iterator[None]:
    scene.publish("jobs.m.standard.0", "neither a job nor a result")
    yield


@contextmanager
def _unread_poison(scene: Scene) -> Iterator[None]:
    with scene.frozen("dead-letters"):
        for _ in range(15):  # more than its reader has at hand
            scene.publish("jobs.m.standard.0", "neither a job nor a result")
        yield


@contextmanager
def _tampered(scene: Scene) -> Iterator[None]:
    """What another organisation used is put back to what it was before; then to what it is."""
    (key,) = scene.redis("--scan", "--pattern", "*:other:counters").split()
    (counter,) = (name for name in scene.redis("HKEYS", key).split() if name.startswith("other/tokens/day"))
    keep = "redis.call('HSET', 'drill', ARGV[2], redis.call('HGET', KEYS[1], ARGV[1]))"
    put = "redis.call('HSET', KEYS[1], ARGV[1], redis.call('HGET', 'drill', ARGV[2]))"
    scene.redis("EVAL", keep, "1", key, counter, "before")
    scene.ask("other")
    scene.redis("EVAL", keep, "1", key, counter, "after")
    scene.redis("EVAL", put, "1", key, counter, "before")
    try:
        yield
    finally:
        scene.redis("EVAL", put, "1", key, counter, "after")


@contextmanager
def _certificate_ends(scene: Scene) -> Iterator[None]:
    certify(scene.cluster.certificate, valid_s=120.0)
    try:
        yield
    finally:
        certify(scene.cluster.certificate, valid_s=YEAR_S)


@contextmanager
def _figures_gone(scene: Scene) -> Iterator[None]:
    scene.sql("ALTER TABLE scaling_figures RENAME TO scaling_figures_away")
    try:
        yield
    finally:
        scene.sql("ALTER TABLE scaling_figures_away RENAME TO scaling_figures")


FAULTS: Final = (
    Fault(
        what="the API service stands still", how=lambda scene: scene.frozen("api"),
        fires="PenstockComponentDown", labels={"job": "penstock-api"}, implies=DOWN | LATE | ERRORS,
    ),
    Fault(
        what="the keeper is killed and not started again", how=lambda scene: scene.gone("keeper"),
        fires="PenstockKeeperInactive", implies=DOWN | LEDGER_WAITS,
    ),
    Fault(
        what="the executor is killed and not started again", how=lambda scene: scene.gone("executor"),
        fires="PenstockExecutorUnreachable", implies=DOWN | JOBS_WAIT,
    ),
    Fault(
        what="one of two workers stands still", how=lambda scene: scene.frozen("worker-n"),
        fires="PenstockInstanceDown", labels={"job": "penstock-worker"},
    ),
    Fault(
        what="all workers stand still", how=lambda scene: scene.frozen("worker-m", "worker-n"),
        fires="PenstockWorkerMissing", implies=DOWN | JOBS_WAIT,
    ),
    Fault(
        what="the gateway stands still", how=lambda scene: scene.frozen("gateway"),
        fires="PenstockComponentDown", labels={"job": "penstock-gateway"},
        implies=DOWN | ERRORS | JOBS_WAIT | _named("GatewayDisconnected PublishesFail"),
    ),
    Fault(
        what="the collector stands still", how=lambda scene: scene.frozen("collector"),
        fires="PenstockComponentDown", labels={"job": "penstock-collector"}, implies=DOWN | JOBS_WAIT,
    ),
    Fault(
        what="Redis is killed and not started again", how=lambda scene: scene.gone("redis"),
        fires="PenstockStoreDown", labels={"store": "redis"},
        implies=STORE | ERRORS | LATE | JOBS_WAIT | LEDGER_WAITS
        | _named("HoldsLeft SpoolStuck Rebuilding ReservationsExpire ExecutorUnreachable HoldsStuck"),
    ),
    Fault(
        what="PostgreSQL stands still", how=lambda scene: scene.frozen("postgresql"),
        fires="PenstockStoreDown", labels={"store": "postgresql"},
        implies=STORE | ERRORS | JOBS_WAIT | LEDGER_WAITS | DOWN | LATE,
    ),
    Fault(
        what="RabbitMQ is killed and not started again", how=lambda scene: scene.gone("rabbitmq"),
        fires="PenstockGatewayDisconnected", implies=STORE | ERRORS | JOBS_WAIT | _named("PublishesFail HoldsLeft"),
    ),
    Fault(
        what="RabbitMQ is out of memory", how=_alarm, fires="PenstockBrokerAlarm",
        implies=ERRORS | JOBS_WAIT | _named("PublishesFail GatewayDisconnected HoldsLeft"),
    ),
    Fault(
        what="the model server is away", how=lambda scene: scene.without_model(),
        fires="PenstockModelDown", labels={"model": "m"},
        implies=ERRORS | LATE | JOBS_WAIT | _named("UpstreamDown UpstreamFlaps ModelFails"),
    ),
    Fault(
        what="a third of the requests fails upstream", how=lambda scene: scene.asking(faulty="fault=refuse:500"),
        fires="PenstockModelFails", labels={"model": "m"},
        implies=ERRORS | JOBS_WAIT | _named("ModelDown UpstreamDown UpstreamFlaps"),
    ),
    Fault(
        what="the model server begins late",
        how=lambda scene: scene.asking(simulate="tokens=5 fault=slow_first_byte:3500", is_streamed=True),
        fires="PenstockFirstTokenBurnFast", implies=LATE,
    ),
    Fault(
        what="the model server has long gaps",
        how=lambda scene: scene.asking(simulate="tokens=5 fault=slow_chunks:2000", is_streamed=True),
        fires="PenstockModelSlow", labels={"model": "m"}, implies=LATE,
    ),
    Fault(
        what="the model server tells no usage", how=lambda scene: scene.asking(simulate="tokens=5 fault=no_usage"),
        fires="PenstockUsageCountedLocally", labels={"model": "m"},
    ),
    Fault(
        what="a message that is no job", how=_poison, fires="PenstockDeadLettersUnreadable",
        implies=_named("JobsDeadLettered"),
    ),
    Fault(
        what="dead letters that nobody reads", how=_unread_poison, fires="PenstockDeadLetters",
        implies=DOWN | JOBS_WAIT | _named("JobsDeadLettered DeadLettersUnreadable"),
    ),
    Fault(
        what="a transaction keeps the ledger locked",
        how=lambda scene: scene.transaction("LOCK TABLE ledger IN ACCESS EXCLUSIVE MODE"),
        fires="PenstockOutboxGrowing", implies=JOBS_WAIT | STORE | LEDGER_WAITS,
    ),
    Fault(
        what="a counter is changed by hand", how=_tampered,
        fires="PenstockLedgerDrift", labels={"organisation": "other"},
    ),
    Fault(
        what="the table of scaling figures is gone", how=_figures_gone, fires="PenstockScalerBlind",
        implies=STORE,
    ),
    Fault(
        what="a certificate ends soon", how=_certificate_ends, fires="PenstockCertificateExpiresNow",
        implies=_named("CertificateExpiresSoon"),
    ),
    Fault(
        what="somebody tries keys", how=lambda scene: scene.asking(key="psk_acme_guessed_secret"),
        fires="PenstockKeysRefused",
    ),
    Fault(
        what="an organisation has run out of its limits", how=lambda scene: scene.asking(organisation=SMALL),
        fires="PenstockOrganisationThrottled", labels={"organisation": SMALL},
    ),
)  # fmt: skip
