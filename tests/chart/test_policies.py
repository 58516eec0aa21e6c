"""What must hold of every pod, whatever the values: no rights, no secrets in the open, nothing reachable unasked."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.chart.rendering import MATRIX, Object, containers, of_kind, one, pods, render

pytestmark = [pytest.mark.kubernetes]
whatever_the_values = pytest.mark.parametrize("name", MATRIX)


@whatever_the_values
def test_every_pod_is_restricted(name: str) -> None:
    """The `restricted` level of the pod security standards, and more."""
    for what, pod in pods(render(name)):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, what
        assert spec["securityContext"]["runAsNonRoot"] is True, what
        assert spec["securityContext"]["runAsUser"] > 0, what
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, what
        assert not any("hostPath" in volume for volume in spec["volumes"]), what
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), what
        for container in containers(pod):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, what
            assert security["readOnlyRootFilesystem"] is True, what
            assert security["capabilities"] == {"drop": ["ALL"]}, what
            assert security.get("runAsUser", 1) > 0, what


@whatever_the_values
def test_every_container_has_bounds_and_whatever_serves_has_probes(name: str) -> None:
    for what, pod in pods(render(name)):
        for container in containers(pod):
            resources = container["resources"]
            assert resources["requests"].keys() >= {"cpu", "memory"}, (what, container["name"])
            assert "memory" in resources["limits"], (what, container["name"])
            if container.get("ports"):
                probes = {"startupProbe", "livenessProbe", "readinessProbe"}
                assert container.keys() >= probes, (what, container["name"])


@whatever_the_values
def test_every_secret_is_a_reference(name: str) -> None:
    objects = render(name)
    for what, pod in pods(objects):
        for container in containers(pod):
            for variable in container.get("env", []):
                secret = re.search("PASS|SECRET|TOKEN|KEY|PEPPER", variable["name"])
                assert not secret or "valueFrom" in variable or variable["name"].endswith("_FILE"), (what, variable)
    for each in of_kind(objects, "ConfigMap"):
        for file, text in each["data"].items():
            if file.endswith((".yaml", ".yml")):
                assert not re.search(r"password: [^\s{]", text), each["metadata"]["name"]
    made = [each["metadata"]["name"] for each in of_kind(objects, "Secret")]
    assert made == (["penstock-bundled"] if name == "bundled" else [])


def test_a_process_is_given_the_secrets_that_it_follows_and_no_other() -> None:
    given = {what: secrets(pod) for what, pod in pods(render("everything"))}
    assert given["Deployment/penstock-api"] == {
        "penstock-auth/pepper", "penstock-auth/previous", "pg-users/api", "redis-users/api", "redis-ca/ca.crt",
        "own-tls/tls.crt", "own-tls/tls.key", "vllm/token", "vllm/ca.pem",
    }  # fmt: skip
    assert given["Deployment/penstock-keeper"] == {
        "pg-users/keeper", "redis-users/keeper", "redis-ca/ca.crt", "rabbit-users/monitor",
        "rabbit-ca/ca.crt", "own-tls/tls.crt", "own-tls/tls.key",
    }  # fmt: skip
    assert given["Deployment/penstock-worker-chat-small"] == {
        "rabbit-users/worker", "redis-users/worker", "redis-ca/ca.crt", "vllm/token", "vllm/ca.pem",
        "rabbit-ca/ca.crt", "own-tls/tls.crt", "own-tls/tls.key",
    }  # fmt: skip
    assert given["Deployment/penstock-collector"] == {
        "rabbit-users/collector", "redis-users/collector", "redis-ca/ca.crt", "pg-users/collector",
        "rabbit-ca/ca.crt", "own-tls/tls.crt", "own-tls/tls.key",
    }  # fmt: skip
    assert "redis-admin/password" in next(found for what, found in given.items() if what.startswith("Job/"))


def test_a_stream_sees_the_files_of_tls_and_no_password() -> None:
    """Its environment names them by the paths that they have in the containers of Python, too."""
    objects = render("everything")
    for name in ("gateway", "worker-chat-small", "collector", "dead-letters"):
        pod = one(objects, "Deployment", f"penstock-{name}")["spec"]["template"]
        bento = next(each for each in containers(pod) if each["name"] == "bento")
        mounts = {each["name"]: each["mountPath"] for each in bento["volumeMounts"]}
        assert mounts == {"stream": "/run/penstock/stream", "tls": "/run/penstock/secrets"}, name
        (volume,) = (each for each in pod["spec"]["volumes"] if each["name"] == "tls")
        shown = {item["path"] for source in volume["projected"]["sources"] for item in source["secret"]["items"]}
        assert shown == {"redis-ca/ca.crt", "rabbit-ca/ca.crt", "own-tls/tls.crt", "own-tls/tls.key"}, name


def test_keda_is_given_the_files_of_the_management_api_and_told_to_use_them() -> None:
    """It ignores them without ``tls: enable``, which it takes from a ConfigMap as it takes a name."""
    objects = render("everything")
    found = one(objects, "TriggerAuthentication", "penstock-rabbitmq")["spec"]
    named = {each["parameter"]: f"{each['name']}/{each['key']}" for each in found["secretTargetRef"]}
    assert named == {
        "password": "rabbit-users/monitor", "ca": "rabbit-ca/ca.crt",
        "cert": "own-tls/tls.crt", "key": "own-tls/tls.key",
    }  # fmt: skip
    assert {each["parameter"] for each in found["configMapTargetRef"]} == {"username", "tls"}
    assert one(objects, "ConfigMap", "penstock-scaling")["data"]["tls"] == "enable"
    assert "tls" not in one(render("bundled"), "ConfigMap", "penstock-scaling")["data"]


def secrets(pod: Object) -> set[str]:
    return {
        item["path"]
        for volume in pod["spec"]["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
        for item in source["secret"]["items"]
    }


@whatever_the_values
def test_every_port_is_covered_by_a_policy_and_nothing_is_allowed_to_all_pods(name: str) -> None:
    objects = render(name)
    policies = list(of_kind(objects, "NetworkPolicy"))
    if name == "plain":
        assert policies == []
        return
    everywhere = one(policies, "NetworkPolicy", "penstock")["spec"]
    assert everywhere["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in everywhere
    for what, pod in pods(objects):
        labels = pod["metadata"]["labels"]
        assert selects(everywhere, labels), what
        mine = [each["spec"] for each in policies if each["spec"] is not everywhere and selects(each["spec"], labels)]
        assert len(mine) == 1, what
        open_ports = {port["port"] for rule in mine[0]["ingress"] for port in rule["ports"]}
        for container in containers(pod):
            for port in container.get("ports", []):
                assert {port["name"], port["containerPort"]} & open_ports, (what, port)


def selects(policy: Object, labels: dict[str, str]) -> bool:
    return set(policy["podSelector"]["matchLabels"].items()) <= set(labels.items())


def test_who_may_speak_to_whom_is_who_does() -> None:
    """The policies as a graph: from each process to each store and process that it uses, and to none beside them."""
    policies = {
        each["spec"]["podSelector"]["matchLabels"].get("app.kubernetes.io/component"): each["spec"]
        for each in of_kind(render("bundled"), "NetworkPolicy")
    }
    edges = {
        (source, peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"])
        for source, policy in policies.items()
        if source is not None
        for rule in policy["egress"]
        for peer in rule.get("to", [])
    }
    assert edges == {
        ("setup", "redis"), ("setup", "postgresql"), ("setup", "rabbitmq"),
        ("api", "redis"), ("api", "postgresql"), ("api", "gateway"), ("api", "model"),
        ("gateway", "redis"), ("gateway", "rabbitmq"),
        ("keeper", "redis"), ("keeper", "postgresql"), ("keeper", "rabbitmq"),
        ("collector", "redis"), ("collector", "rabbitmq"), ("collector", "postgresql"),
        ("worker", "redis"), ("worker", "rabbitmq"), ("worker", "model"),
    }  # fmt: skip
    for source, target in edges:
        peers = [
            peer["podSelector"]["matchLabels"].get("app.kubernetes.io/component")
            for rule in policies[target]["ingress"]
            for peer in rule["from"]
            if "podSelector" in peer
        ]
        assert source in peers, f"{source} may leave for {target}, which does not let it in"


@whatever_the_values
def test_what_may_not_be_lost_at_once_has_a_budget_and_is_spread(name: str) -> None:
    objects = render(name)
    budgets = [each["spec"]["selector"]["matchLabels"] for each in of_kind(objects, "PodDisruptionBudget")]
    for each in of_kind(objects, "Deployment"):
        pod = each["spec"]["template"]
        labels = pod["metadata"]["labels"]
        assert any(budget.items() <= labels.items() for budget in budgets), each["metadata"]["name"]
        assert {spread["topologyKey"] for spread in pod["spec"]["topologySpreadConstraints"]} == {
            "topology.kubernetes.io/zone", "kubernetes.io/hostname",
        }  # fmt: skip


@whatever_the_values
def test_every_pod_waits_for_the_setup_of_its_own_version(name: str) -> None:
    objects = render(name)
    (job,) = of_kind(objects, "Job")
    version = job["metadata"]["name"].removeprefix("penstock-setup-")
    assert version in job["spec"]["template"]["spec"]["containers"][0]["args"]
    waiting = [
        container["args"][:2]
        for _, pod in pods(of_kind(objects, "Deployment"))
        for container in pod["spec"].get("initContainers", [])
        if container["name"] == "await-setup"
    ]
    assert len(waiting) >= 6
    assert all(arguments == ["await", "@/etc/penstock/version"] for arguments in waiting)
    told = [each["data"]["version"] for each in of_kind(objects, "ConfigMap") if "penstock.yaml" in each["data"]]
    assert len(told) >= 6
    assert set(told) == {version}


@whatever_the_values
def test_scaling_never_loses_what_runs_and_never_falls_back_to_nothing(name: str) -> None:
    objects = list(of_kind(render(name), "ScaledObject"))
    assert bool(objects) is (name != "plain")
    for each in objects:
        spec: dict[str, Any] = each["spec"]
        down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
        assert (down["policies"][0]["value"], len(down["policies"])) == (1, 1)
        types = {trigger["type"] for trigger in spec["triggers"]}
        if types - {"cpu", "memory"}:
            assert spec["fallback"]["replicas"] >= 1, each["metadata"]["name"]
        else:
            assert spec["minReplicaCount"] >= 1, each["metadata"]["name"]
        for trigger in spec["triggers"]:
            if trigger["type"] == "prometheus":
                assert trigger["metadata"]["ignoreNullValues"] == "false"
            if trigger["type"] == "rabbitmq":
                assert trigger["metadata"]["protocol"] == "http"


def triggers(name: str, kind: str, *, extra: str = "") -> dict[str, Object]:
    """The metadata of each ScaledObject's trigger of one kind, by the object's name; with the trigger's own type."""
    return {
        each["metadata"]["name"]: {**trigger["metadata"], "metricType": trigger["metricType"]}
        for each in of_kind(render(name, extra=extra), "ScaledObject")
        for trigger in each["spec"]["triggers"]
        if trigger["type"] == kind and each["metadata"]["name"] != "penstock-api"
    }


def test_a_model_with_a_capacity_is_scaled_by_the_keepers_own_page() -> None:
    found = triggers("bundled", "metrics-api")
    figures = {name: trigger["valueLocation"] for name, trigger in found.items()}
    assert figures == {"penstock-model-smollm2-135m": "replicas", "penstock-worker-smollm2-135m": "workers"}
    for trigger in found.values():
        assert trigger["url"] == "http://penstock-keeper.penstock.svc:8083/scaling?model=smollm2-135m"
        wanted = {"targetValue": "1", "activationTargetValue": "0", "metricType": "AverageValue"}
        assert trigger.items() >= wanted.items()
    (keeper,) = [
        each["spec"]
        for each in of_kind(render("bundled"), "NetworkPolicy")
        if each["metadata"]["name"] == "penstock-keeper"
    ]
    keda = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}
    assert {"from": [keda], "ports": [{"port": "operations"}]} in keeper["ingress"]


def test_where_there_is_prometheus_the_figure_comes_from_there_and_a_lost_one_is_a_failure() -> None:
    assert triggers("everything", "metrics-api") == {}
    found = triggers("everything", "prometheus")
    assert len(found) == 4
    for name, trigger in found.items():
        figure = "workers" if "-worker-" in name else "replicas"
        assert trigger["query"].startswith(f"max(penstock_scaling_{figure}{{namespace="), name
        assert (trigger["ignoreNullValues"], trigger["activationThreshold"]) == ("false", "0")


def test_a_model_without_a_capacity_has_no_token_figure_to_ask_for() -> None:
    bare = "models: {bare: {upstream: 'http://m', context: 8192}}"
    assert "penstock-worker-bare" in {
        each["metadata"]["name"] for each in of_kind(render("bundled", extra=bare), "ScaledObject")
    }
    assert "penstock-worker-bare" not in triggers("bundled", "metrics-api", extra=bare)


def test_model_servers_may_follow_the_token_figure_alone_and_workers_follow_both() -> None:
    alone = "kubernetes: {keda: {servers_by_queue: false}}"
    found: dict[str, set[str]] = {}
    for each in of_kind(render("bundled", extra=alone), "ScaledObject"):
        found[each["metadata"]["name"]] = {trigger["type"] for trigger in each["spec"]["triggers"]}
    assert "metrics-api" in found["penstock-model-smollm2-135m"]
    assert "rabbitmq" not in found["penstock-model-smollm2-135m"]
    assert found["penstock-worker-smollm2-135m"] >= {"metrics-api", "rabbitmq"}
