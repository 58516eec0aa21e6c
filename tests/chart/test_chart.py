"""What the chart makes of values is accepted by the API, refuses mistakes, and changes only what a change touches."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from penstock.adapters.rabbitmq.topology import queue_name
from penstock.config import examine
from penstock.config.reading import read_text
from tests.chart.rendering import CHART, MATRIX, ROOT, TOOLS, helm, of_kind, one, pods, render, template, tool
from tests.chart.schemas import KUBERNETES

pytestmark = [pytest.mark.kubernetes]


@pytest.mark.parametrize("name", MATRIX)
def test_helm_finds_nothing_to_complain_of(name: str) -> None:
    given = [argument for file in MATRIX[name] for argument in ("-f", str(file))]
    done = helm("lint", "--strict", "--kube-version", "1.36.3", CHART, *given)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", MATRIX)
def test_every_object_is_one_that_the_api_describes(name: str, version: str) -> None:
    schemas = TOOLS / "schemas"
    if not (schemas / "custom").is_dir():
        pytest.skip("schemas are not made; `make kubernetes-tools` makes them")
    file = "{{.ResourceKind}}{{.KindSuffix}}.json"
    done = subprocess.run(
        [
            tool("kubeconform"), "-strict", "-summary", "-output", "json",
            "-schema-location", f"{schemas}/v{version}/{file}", "-schema-location", f"{schemas}/custom/{file}",
        ],
        input=template(MATRIX[name], version=version).stdout, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert (done.returncode, said.get("resources", [])) == (0, [])
    assert said["summary"]["valid"] > 30


def test_an_unknown_field_would_be_noticed() -> None:
    """The check above can fail."""
    schema = json.loads((TOOLS / "schemas" / f"v{KUBERNETES[0]}" / "deployment-apps-v1.json").read_text())
    assert schema["definitions"]["io.k8s.api.core.v1.Container"]["additionalProperties"] is False


MISTAKES = {
    "models: {chat: {upstream: 'http://m', context: 8192, contxt: 1}}": "contxt",
    "models: {chat: {context: 8192}}": "chat",
    "models: {chat: {upstream: 'http://m', context: 8192, capacity: {tokens_per_second: 10, concurrency: 10}}}": (
        "models.chat.objective.drain"
    ),
    "models: {chat: {upstream: 'http://m', context: 8192, replicas: {min: 0}, "
    "capacity: {tokens_per_second: 2500, concurrency: 10, cold_start: 5m}}}": "models.chat.objective.drain",
    "models: {chat: {upstream: 'http://m', context: 8192, replicas: {min: 8, max: 2}}}": "models.chat.replicas.min",
    "models: {chat: {upstream: 'http://m', context: 8192, deploy: {image: a}, scale_target: {name: b}}}": (
        "models.chat.scale_target"
    ),
    "kubernetes: {ingress: {class: nginx}}": "host",
    "kubernetes: {api: {replicas: {least: 1}}}": "least",
    "auth: {pepper: {secret: a}}": "pepper",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_helm_and_the_command_refuse_the_same_mistake_and_name_where_it_is(mistake: str, tmp_path: Path) -> None:
    refused = template(MATRIX["bundled"], extra=mistake)
    assert refused.returncode != 0
    assert MISTAKES[mistake].replace(".", "/") in refused.stderr or MISTAKES[mistake] in refused.stderr
    (tmp_path / "extra.yaml").write_text(mistake)
    said = [str(problem) for problem in examine([*MATRIX["bundled"], tmp_path / "extra.yaml"]).problems]
    assert any(MISTAKES[mistake] in problem for problem in said), said


ONLY_IN_A_CLUSTER = {
    "stores: missing": ("kubernetes: {dependencies: {bundled: false}}", "bundled"),
    "auth.pepper: missing": ("kubernetes: {dependencies: {bundled: false}}", "bundled"),
    "auth.pepper: found the environment variable PEPPER": ("auth: {pepper: {env: PEPPER}}", "bundled"),
    "models.m.upstream.credential: found the file /a": (
        "models: {m: {upstream: {url: 'http://m', credential: {file: /a}}, context: 8192}}", "everything",
    ),
    "found beside `stores`": ("kubernetes: {dependencies: {bundled: true}}", "everything"),
}  # fmt: skip


@pytest.mark.parametrize("message", ONLY_IN_A_CLUSTER)
def test_what_only_a_cluster_makes_a_mistake_is_refused_with_the_fix(message: str) -> None:
    extra, name = ONLY_IN_A_CLUSTER[message]
    refused = template(MATRIX[name], extra=extra)
    assert refused.returncode != 0
    assert message in refused.stderr


@pytest.mark.parametrize("name", MATRIX)
def test_what_each_process_is_given_is_sound_to_it(name: str, tmp_path: Path) -> None:
    found = 0
    for each in of_kind(render(name), "ConfigMap"):
        if "penstock.yaml" not in each["data"]:
            continue
        files = []
        for file in ("penstock.yaml", "cluster.yaml"):
            text = each["data"][file]
            files.append(tmp_path / f"{each['metadata']['name']}-{file}")
            files[-1].write_text(text)
        files.sort(key=lambda path: path.name.endswith("cluster.yaml"))
        examined = examine(files)
        assert examined.configuration is not None, (each["metadata"]["name"], examined.problems)
        assert examined.configuration.stores is not None
        found += 1
    assert found >= 6


def test_numbers_survive_the_way_through_the_chart(tmp_path: Path) -> None:
    extra = "models: {smollm2-135m: {price: {request: 0.000000000001, input: 1.123456}}}\n"
    extra += "queue: {ready_bytes_max: 123456789}"
    data = one(render("bundled", extra=extra), "ConfigMap", "penstock-setup")["data"]
    (tmp_path / "a.yaml").write_text(data["penstock.yaml"])
    configuration = examine([tmp_path / "a.yaml"]).configuration
    assert configuration is not None
    price = configuration.models["smollm2-135m"].price
    assert (price.request_picos, price.input_picos) == (1, 1_123_456)
    assert configuration.queue.ready_bytes_max == 123_456_789


def changed(extra: str) -> set[str]:
    """What starts anew if ``extra`` is added to everything: pods by the name of what makes them."""
    before, after = (
        {name: pod for name, pod in pods(render("everything", extra=text)) if not name.startswith("StatefulSet")}
        for text in ("", extra)
    )
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def without_jobs(names: set[str]) -> set[str]:
    return {name.removeprefix("Deployment/penstock-") for name in names if name.startswith("Deployment/")}


def test_a_change_of_an_organisation_runs_the_setup_and_starts_nothing_anew() -> None:
    names = changed("organisations: {initech: {plan: team}}")
    assert without_jobs(names) == set()
    assert sum(name.startswith("Job/penstock-setup-") for name in names) == 2


def test_a_change_of_a_model_starts_only_what_reads_it() -> None:
    workers = without_jobs(changed("models: {chat-small: {max_tokens: 1000}}"))
    assert workers == {"api", "gateway", "keeper", "worker-chat-small"}


def test_a_change_of_the_ingress_starts_nothing() -> None:
    assert changed("kubernetes: {ingress: {host: other.example.com}}") == set()


def test_what_the_rendered_manifests_hold_is_what_the_chart_makes_of_the_example() -> None:
    folder = ROOT / "manifests" / "rendered"
    made = template((ROOT / "penstock.yaml", folder / "values.yaml")).stdout
    assert made == (folder / "penstock.yaml").read_text(), "run `make manifests`"


def test_a_worker_may_end_its_longest_job() -> None:
    worker = one(render("bundled", extra="queue: {deadline: 10m}"), "Deployment", "penstock-worker-smollm2-135m")
    assert worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 600 + 300 + 90


def test_a_model_server_with_gpus_asks_for_them_and_is_let_onto_their_nodes() -> None:
    (server,) = (each for each in of_kind(render("everything"), "Deployment") if "-model-" in each["metadata"]["name"])
    spec = server["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["resources"] == {
        "requests": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "4"},
        "limits": {"memory": "96Gi", "nvidia.com/gpu": "4"},
    }
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 1_800
    assert server["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_the_chart_and_the_code_name_the_same_queues() -> None:
    model = "meta-llama/Llama-3.3-70B-Instruct"
    queues = [
        trigger["metadata"]["queueName"]
        for each in of_kind(render("everything"), "ScaledObject")
        for trigger in each["spec"]["triggers"]
        if trigger["type"] == "rabbitmq" and "70B" in trigger["metadata"]["queueName"]
    ]
    assert queues
    assert {queue.replace("\\", "") for queue in queues} == {f"^{queue_name(model)}"}


def test_the_files_are_read_as_helm_reads_them() -> None:
    for files in MATRIX.values():
        for file in files:
            assert read_text(file.read_text(), file.name).problems == []


def test_alerts_lead_to_where_their_runbooks_are_served_and_jobs_are_called_as_rules_know_them() -> None:
    objects = render("everything", extra="kubernetes: {monitoring: {rules: true, runbooks: 'https://runbooks.test/'}}")
    groups = [group for each in of_kind(objects, "PrometheusRule") for group in each["spec"]["groups"]]
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert alerts
    for alert in alerts:
        assert alert["annotations"]["runbook_url"].startswith("https://runbooks.test/alerting.md#penstock")
    monitors = [*of_kind(objects, "ServiceMonitor"), *of_kind(objects, "PodMonitor")]
    ends = [end for each in monitors for end in each["spec"].get("endpoints", each["spec"].get("podMetricsEndpoints"))]
    jobs = {end["relabelings"][0]["replacement"] for end in ends}
    streams = {"penstock-$1"}  # the collector's two, by the label of their pods
    assert jobs - streams == {
        f"penstock-{name}" for name in ("api", "gateway", "keeper", "worker", "executor", "model")
    }
