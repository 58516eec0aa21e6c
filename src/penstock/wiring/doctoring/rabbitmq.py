"""Checks of RabbitMQ: its alarms and bounds, that its topology is as wanted, and that somebody works on each queue."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from penstock.adapters.rabbitmq.management import ManagementApi
from penstock.adapters.rabbitmq.topology import queue_name
from penstock.errors import StoreUnavailable
from penstock.lanes.diagnosis import Finding, warning, wrong
from penstock.wiring.broker import virtual_host, wanted
from penstock.wiring.doctoring.patient import Patient

CONSUMER_TIMEOUT_MS = 1_800_000  # the server's own, where its configuration names none
FULL_SHARE = 0.8
DEAD = "dead"
_ALARMS = {"mem_alarm": "memory", "disk_free_alarm": "disk"}
_SETTING = re.compile(r"^\s*consumer_timeout\s*=\s*(\d+)", re.MULTILINE)


async def check_rabbitmq(patient: Patient) -> list[Finding]:
    """Every node runs, without an alarm and without a partition of the network."""
    async with patient.management() as api:
        _, nodes = await api.ask("GET", "nodes")
    return [finding for node in nodes for finding in _node(node)]


def _node(node: Mapping[str, Any]) -> Iterator[Finding]:
    name = node["name"]
    if not node.get("running"):
        yield wrong("rabbitmq", f"the node {name} does not run", f"start it; `rabbitmqctl -n {name} status` says why")
        return
    for field, what in _ALARMS.items():
        if node.get(field):
            told = f"the node {name} has its {what} alarm, so no job is accepted"
            yield wrong("rabbitmq", told, f"free its {what}; `rabbitmqctl -n {name} alarms` tells how much it wants")
    if node.get("partitions"):
        told = f"the node {name} has lost {', '.join(node['partitions'])} over the network"
        yield wrong("rabbitmq", told, "mend the network, then restart the smaller part")


async def check_consumer_timeout(patient: Patient) -> list[Finding]:
    """A worker may keep a job as long as the job may take; else the broker gives it to a second one meanwhile."""
    async with patient.management() as api:
        _, nodes = await api.ask("GET", "nodes")
    deadline_ms = patient.configuration.queue.deadline_ms
    findings = []
    for node in nodes:
        timeout_ms = consumer_timeout_ms([Path(file) for file in node.get("config_files") or ()])
        if timeout_ms < deadline_ms:
            what = f"{node['name']}: consumer_timeout is {timeout_ms} ms, shorter than queue.deadline, {deadline_ms} ms"
            fix = f"`consumer_timeout = {2 * deadline_ms}` in its rabbitmq.conf, and restart it"
            findings.append(warning("consumer_timeout", what, fix))
    return findings


def consumer_timeout_ms(files: list[Path]) -> int:
    """Of a broker's configuration files and the ``conf.d`` beside them, the last to name it.

    Raises:
        StoreUnavailable: They are on another machine: the management API does not tell this setting.
    """
    found = CONSUMER_TIMEOUT_MS
    for file in files:
        try:
            texts = [each.read_text() for each in (file, *sorted(file.parent.glob("conf.d/*.conf")))]
        except OSError as error:
            raise StoreUnavailable(
                f"{file} cannot be read here ({error.strerror}), and the management API does not tell it; "
                "run this on the broker's machine"
            ) from error
        for text in texts:
            found = int([str(found), *_SETTING.findall(text)][-1])
    return found


async def check_topology(patient: Patient) -> list[Finding]:
    """Exchanges, queues of the quorum type and policies are those that ``penstock setup`` makes."""
    vhost = virtual_host(patient.configuration, patient.environment)
    definitions = wanted(patient.configuration, vhost, ())
    async with patient.management() as api:
        queues = await _by_name(api, "queues", vhost)
        policies = await _by_name(api, "policies", vhost)
        exchanges = await _by_name(api, "exchanges", vhost)
    findings = []
    for kind, there in (("exchanges", exchanges), ("queues", queues)):
        missing = [entry["name"] for entry in definitions[kind] if entry["name"] not in there]
        if missing:
            what = f"{len(missing)} {kind} are missing in {vhost}: {_some(missing)}"
            findings.append(wrong("topology", what, "penstock setup"))
    for entry in definitions["policies"]:
        found = policies.get(entry["name"])
        if found is None or any(found[name] != entry[name] for name in ("pattern", "definition")):
            state = "is missing" if found is None else f"is {found['definition']}, not {entry['definition']}"
            findings.append(wrong("topology", f"the policy {entry['name']} of {vhost} {state}", "penstock setup"))
    names = {entry["name"] for entry in definitions["queues"]}
    for name in sorted(names & queues.keys()):
        findings += _queue(queues[name], definitions["policies"])
    return findings


def _queue(queue: Mapping[str, Any], policies: list[dict[str, Any]]) -> Iterator[Finding]:
    name = queue["name"]
    if queue.get("type") != "quorum":
        what = f"the queue {name} is of type {queue.get('type')}, not quorum, so a crash of its node may lose jobs"
        yield wrong("topology", what, "stop the gateway, let it run empty, delete it, and run `penstock setup`")
    expected = next((each["name"] for each in policies if re.search(each["pattern"], name)), None)
    if queue.get("policy") not in (expected, None):
        what = f"the queue {name} is governed by the policy {queue['policy']}, not by {expected}"
        yield wrong("topology", what, f"rabbitmqctl clear_policy -p {queue['vhost']} {queue['policy']}")


async def check_queues(patient: Patient) -> list[Finding]:
    """Somebody takes from every queue in which something waits, and none is nearly full."""
    vhost = virtual_host(patient.configuration, patient.environment)
    async with patient.management() as api:
        queues = await _by_name(api, "queues", vhost)
    findings = []
    for model in patient.configuration.models:
        own = [each for name, each in queues.items() if name.startswith(f"{queue_name(model)}.")]
        waiting, consumers = (sum(each.get(field, 0) for each in own) for field in ("messages_ready", "consumers"))
        if waiting and not consumers:
            what = f"{waiting} jobs of {model} wait, and no worker is connected"
            fix = f"start the worker of {model}; in Kubernetes see `kubectl describe scaledobject`"
            findings.append(wrong("queues", what, fix))
    if (found := queues.get("results")) is not None and not found.get("consumers", 0):
        what = f"no collector is connected; {found.get('messages_ready', 0)} results wait to be stored and billed"
        findings.append(wrong("queues", what, "start Bento with config/bento/collector.yaml"))
    most = patient.configuration.queue.ready_bytes_max
    full = [name for name, each in queues.items() if each.get("message_bytes_ready", 0) > FULL_SHARE * most]
    if full:
        what = f"more than {FULL_SHARE:.0%} of queue.ready_bytes_max wait in {_some(full)}; when full, jobs are refused"
        findings.append(warning("queues", what, "add workers, or raise queue.ready_bytes_max and run `penstock setup`"))
    return findings


async def check_dead_letters(patient: Patient) -> list[Finding]:
    """No message was given up and waits to be looked at."""
    vhost = virtual_host(patient.configuration, patient.environment)
    async with patient.management() as api:
        _, queue = await api.ask("GET", "queues", vhost, DEAD)
    count = 0 if queue is None else queue.get("messages", 0)
    if not count:
        return []
    if queue.get("consumers", 0):
        what = f"{count} dead letters are being made into failed jobs"
        return [warning("dead_letters", what, "the reason of each is in GET /v1/jobs/{id}, and in the stream's log")]
    what = f"{count} dead letters wait, and what they hold is not given back"
    return [wrong("dead_letters", what, "start Bento with config/bento/dead_letters.yaml")]


async def _by_name(api: ManagementApi, kind: str, vhost: str) -> dict[str, Any]:
    _, found = await api.ask("GET", kind, vhost)
    return {each["name"]: each for each in found or ()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
