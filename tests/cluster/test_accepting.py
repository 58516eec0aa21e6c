"""What the chart makes of values, whatever they are, is accepted by the API server; and the API server does look."""

from __future__ import annotations

import pytest

from tests.chart.rendering import MATRIX, template
from tests.cluster.simulated_cluster import SimulatedCluster

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(1200)]
NAMESPACE = "penstock"
SWITCHES = {
    "as it is": "",
    "a single replica of each": "kubernetes: {api: {replicas: {min: 1, max: 1}}, gateway: {replicas: {min: 1}}}",
    "no drain": "kubernetes: {drain: 0s}",
    "short deadlines": "queue: {deadline: 30s}\nserver: {shutdown: 1s}",
    "other ports": "server: {port: 9000, operations_port: 9001}",
    "a model of an awkward name": (
        "models: {'Org.Example/A_Very-Long-Name-Of-A-Model.v1.2:q4': {upstream: 'http://m:8000', context: 4096}}"
    ),
    "a model server of one's own": (
        "models: {served: {context: 4096, deploy: {image: 'registry.example/server:1', gpu: 1, port: 9009, "
        "cache: {size: 10Gi}}}}"
    ),
    "no policies": "kubernetes: {network_policies: {enabled: false}}",
    "no KEDA": "kubernetes: {keda: {enabled: false}}",
    "all monitoring": "kubernetes: {monitoring: {service_monitors: true, rules: true, dashboards: true}}",
}


def dry_run(cluster: SimulatedCluster, manifests: str) -> str:
    """What the API server says of objects that it would store; nothing: it is content, and warns of nothing."""
    done = cluster.try_kubectl(
        "apply", "--server-side", "--dry-run=server", "--warnings-as-errors", "--namespace", NAMESPACE, "-f", "-",
        text=manifests,
    )  # fmt: skip
    return done.stderr if done.returncode else ""


@pytest.fixture(scope="module", autouse=True)
def _namespace(cluster: SimulatedCluster) -> None:
    cluster.make_namespace(NAMESPACE)


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("name", MATRIX)
def test_the_api_server_accepts_every_object(cluster: SimulatedCluster, name: str, switch: str) -> None:
    made = template(MATRIX[name], extra=SWITCHES[switch])
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("kind: ") > 30
    assert dry_run(cluster, made.stdout) == ""


WRONG = {
    "a selector that does not match": ("app.kubernetes.io/component: api\n  template", "a: b\n  template", "selector"),
    "a container with rights": ("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true", "PodSecurity"),
    "a mount without its volume": ("name: data, mountPath: /var/lib", "name: date, mountPath: /var/lib", "Not found"),
    "a trigger's field that KEDA does not know": ("cooldownPeriod", "cooldownPeriods", "cooldownPeriods"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_the_api_server_would_refuse_a_wrong_one(cluster: SimulatedCluster, mistake: str) -> None:
    """The test above can fail."""
    right, wrong, said = WRONG[mistake]
    made = template(MATRIX["everything"]).stdout
    if mistake.startswith("a selector"):
        right = "      app.kubernetes.io/component: api\n  template:"
        wrong = "      app.kubernetes.io/component: other\n  template:"
    assert right in made
    assert said in dry_run(cluster, made.replace(right, wrong))
