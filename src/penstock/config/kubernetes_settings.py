"""What only a cluster needs: the settings that the chart reads, in the same file and checked by the same code.

``penstock serve`` and its like take nothing from here but the numbers that scaling is computed from.
"""

from __future__ import annotations

from typing import Any

from msgspec import field

from penstock.config.values import Amount, Milliseconds, Port, PositiveAmount, Replicas, Secret, Setting, Size, Url


class Cache(Setting, frozen=True, kw_only=True):
    """A volume for a model's weights, shared by its replicas and kept between their starts.

    Args:
        size: Such as `100Gi`.
        storage_class: The cluster's default if not given; one that can be written by many, for more than one replica.
        path: Where the server sees it.
    """

    size: Size
    storage_class: str | None = None
    path: str = "/root/.cache/huggingface"


class Deploy(Setting, frozen=True, kw_only=True):
    """A model server that the chart deploys.

    Args:
        image: With its tag or digest.
        command: In place of the image's own.
        args: Arguments, one by one.
        port: That it serves the API on.
        health: Path that answers 200 once the model is loaded.
        startup: How long loading may take before the server is started anew.
        gpu: Whole GPUs of one replica.
        gpu_resource: What the cluster calls them.
        cache: A volume for the weights.
        environment: Variables, values as they are; secrets by `secrets`.
        secrets: Variables whose values come from Secrets.
        resources: Of Kubernetes; GPUs are added to it.
        node_selector: Of Kubernetes.
        tolerations: Of Kubernetes; one for the GPU's taint is added to it.
        run_as_user: Account in the container; not root.
    """

    image: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    port: Port = 8000
    health: str = "/health"
    startup_ms: Milliseconds = field(name="startup", default=1_200_000)
    gpu: Amount = 0
    gpu_resource: str = "nvidia.com/gpu"
    cache: Cache | None = None
    environment: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, Secret] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)
    node_selector: dict[str, Any] = field(default_factory=dict)
    tolerations: list[Any] = field(default_factory=list)
    run_as_user: PositiveAmount = 65_532


class ScaleTarget(Setting, frozen=True, kw_only=True):
    """What KEDA scales for a model whose server is deployed by somebody else.

    Args:
        kind: Something with a `scale` subresource.
        name: In the release's namespace.
        api_version: Of the kind.
    """

    name: str
    kind: str = "Deployment"
    api_version: str = "apps/v1"


class Image(Setting, frozen=True, kw_only=True):
    """A container image.

    Args:
        repository: With its registry.
        tag: Tag, or `sha256:...` for a digest; the chart's version if not given.
    """

    repository: str
    tag: str | None = None


class Images(Setting, frozen=True, kw_only=True):
    """Where the images are; they are built from `manifests/images`.

    Args:
        penstock: API service, keeper, executors, setup.
        bento: Gateway, workers, collector.
        local: `penstock` with the bundled small model in it, for `upstream: local`.
        pull_policy: Of Kubernetes.
        pull_secrets: Names of Secrets for the registry.
    """

    penstock: Image = Image(repository="penstock")
    bento: Image = Image(repository="penstock-bento")
    local: Image = Image(repository="penstock-local")
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()


class Component(Setting, frozen=True, kw_only=True):
    """How one kind of pod runs.

    Args:
        replicas: How many.
        resources: Requests and limits of its main container.
        annotations: Of the pods.
        node_selector: Of Kubernetes.
        tolerations: Of Kubernetes.
        priority_class: Of Kubernetes.
    """

    replicas: Replicas = Replicas(min=2, max=10)
    resources: dict[str, Any] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    node_selector: dict[str, Any] = field(default_factory=dict)
    tolerations: list[Any] = field(default_factory=list)
    priority_class: str | None = None


class Ingress(Setting, frozen=True, kw_only=True):
    """An Ingress in front of the API service.

    Args:
        host: Name that clients use.
        class: Of the ingress controller; the cluster's default if not given.
        tls_secret: Name of the Secret with the certificate.
        annotations: Of the Ingress; buffering of answers must be off, or streams arrive whole.
    """

    host: str
    ingress_class: str | None = field(name="class", default=None)
    tls_secret: str | None = None
    annotations: dict[str, str] = field(default_factory=dict)


class Route(Setting, frozen=True, kw_only=True):
    """An HTTPRoute of the Gateway API in front of the API service.

    Args:
        gateway: Name of the Gateway.
        namespace: Of the Gateway; the release's if not given.
        section: Listener of the Gateway; all of them if not given.
        hosts: Names that clients use.
    """

    gateway: str
    namespace: str | None = None
    section: str | None = None
    hosts: tuple[str, ...] = ()


class NetworkPolicies(Setting, frozen=True, kw_only=True):
    """Who may speak to whom. All that is not named is denied.

    Args:
        enabled: Write them.
        clients: Peers that may reach the API service (`from` of a NetworkPolicy); everybody if empty.
        monitoring: Peers that may read metrics; everybody in the cluster if empty.
        scaling: Peers that may ask the keeper for scaling figures; the namespace `keda` if empty.
    """

    enabled: bool = True
    clients: list[Any] = field(default_factory=list)
    monitoring: list[Any] = field(default_factory=list)
    scaling: list[Any] = field(default_factory=list)


class Monitoring(Setting, frozen=True, kw_only=True):
    """Objects for the Prometheus operator and for Grafana's sidecar.

    Args:
        service_monitors: Have every process scraped.
        rules: Recording rules and alerts.
        runbooks: What each alert's `runbook_url` begins with: where the pages of docs/04-operations are served, with a
            slash at the end.
        dashboards: As ConfigMaps that Grafana's sidecar collects.
        labels: Put on all of them, for operators that select by label.
        interval: Between two scrapes.
    """

    service_monitors: bool = False
    rules: bool = False
    runbooks: str = "docs/04-operations/"
    dashboards: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    interval_ms: Milliseconds = field(name="interval", default=15_000)


class Keda(Setting, frozen=True, kw_only=True):
    """Autoscaling. KEDA itself is installed by its own chart.

    Args:
        enabled: Write ScaledObjects; without them every component has its `replicas.min`, workers and model servers
            at least 1.
        prometheus: Address of a Prometheus that scrapes this release. The token figure is then taken from there, not
            from the keeper's own page, and the API service is scaled by its requests in flight too.
        polling: How often KEDA looks.
        cooldown: How long nothing must wait before the last replica goes.
        servers_by_queue: Model servers that say their `capacity` follow the queue's length beside the token figure, and
            whichever asks for more counts; without it, the token figure alone. `penstock plan` says what each costs.
        jobs_per_worker: Waiting and running jobs that are worth one more worker; twice `queue.concurrency` if not
            given.
        requests_per_api: Requests in flight that are worth one more API pod; needs `prometheus`.
        cpu_percent: Of its request, at which a component gets one more pod.
        memory_percent: Of its request, at which a component gets one more pod.
        fallback_failures: Failed looks after which the fallback is taken.
        fallback_replicas: What a worker or model server has while the figures are lost; never 0.
        scale_in_window: How long fewer must be enough before one goes.
    """

    enabled: bool = True
    prometheus: Url | None = None
    polling_ms: Milliseconds = field(name="polling", default=15_000)
    cooldown_ms: Milliseconds = field(name="cooldown", default=300_000)
    servers_by_queue: bool = True
    jobs_per_worker: PositiveAmount | None = None
    requests_per_api: PositiveAmount = 100
    cpu_percent: PositiveAmount = 75
    memory_percent: PositiveAmount = 85
    fallback_failures: PositiveAmount = 4
    fallback_replicas: PositiveAmount = 1
    scale_in_window_ms: Milliseconds = field(name="scale_in_window", default=300_000)


class BundledStorage(Setting, frozen=True, kw_only=True):
    """Volumes of the bundled services.

    Args:
        redis: Size.
        postgresql: Size.
        rabbitmq: Size.
        storage_class: The cluster's default if not given.
    """

    redis: Size = "2Gi"
    postgresql: Size = "10Gi"
    rabbitmq: Size = "5Gi"
    storage_class: str | None = None


class BundledImages(Setting, frozen=True, kw_only=True):
    """Images of the bundled services.

    Args:
        redis: 7.0 or later.
        postgresql: 15 or later.
        rabbitmq: 3.13 or later, with its management plugin.
    """

    redis: str = "redis:7.4"
    postgresql: str = "postgres:17"
    rabbitmq: str = "rabbitmq:4.1-management"


class Dependencies(Setting, frozen=True, kw_only=True):
    """Redis, PostgreSQL and RabbitMQ, one pod each, to try Penstock. Not for what must not be lost.

    Args:
        bundled: Deploy them, in place of `stores`.
        secret: Name of an existing Secret with the keys `redis`, `postgresql`, `rabbitmq` and `pepper`; made at random
            by the chart if not given.
        storage: Volumes.
        images: Where they come from.
    """

    bundled: bool = False
    secret: str | None = None
    storage: BundledStorage = BundledStorage()
    images: BundledImages = BundledImages()


class ExternalSecrets(Setting, frozen=True, kw_only=True):
    """Secrets that the External Secrets operator fetches.

    Args:
        store: Name of the store.
        kind: `ClusterSecretStore` or `SecretStore`.
        refresh: How often they are fetched again.
        secrets: By name of the Secret: by key, where it is in the store.
    """

    store: str
    kind: str = "ClusterSecretStore"
    refresh_ms: Milliseconds = field(name="refresh", default=3_600_000)
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)


def _resources(cpu: str, memory: str, memory_max: str) -> dict[str, Any]:
    """A bound on memory and none on CPU: a process that is throttled answers late, and says so to nobody."""
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory_max}}


class Kubernetes(Setting, frozen=True, kw_only=True):
    """What only a cluster needs; read by the chart in `manifests/chart`.

    Args:
        images: Where the images are.
        api: Pods of the API service.
        gateway: Pods of the queue lane's gateway.
        keeper: Pods of the keeper; one works, the others stand by.
        collector: Pods of the results collector.
        worker: Pods of the queue lane's workers; how many is said by each model's `workers`.
        ingress: An Ingress; leave it out for none.
        route: An HTTPRoute of the Gateway API; leave it out for none.
        network_policies: Who may speak to whom.
        monitoring: For the Prometheus operator and Grafana.
        keda: Autoscaling.
        dependencies: Redis, PostgreSQL and RabbitMQ, bundled to try.
        external_secrets: Secrets that another operator fetches.
        drain: How long a pod that is to end still takes connections, while its address is withdrawn.
    """

    images: Images = Images()
    api: Component = Component(resources=_resources("250m", "256Mi", "512Mi"))
    gateway: Component = Component(resources=_resources("250m", "128Mi", "512Mi"))
    keeper: Component = Component(replicas=Replicas(min=2, max=2), resources=_resources("100m", "192Mi", "512Mi"))
    collector: Component = Component(resources=_resources("100m", "128Mi", "512Mi"))
    worker: Component = Component(resources=_resources("100m", "192Mi", "512Mi"))
    ingress: Ingress | None = None
    route: Route | None = None
    network_policies: NetworkPolicies = NetworkPolicies()
    monitoring: Monitoring = Monitoring()
    keda: Keda = Keda()
    dependencies: Dependencies = Dependencies()
    external_secrets: ExternalSecrets | None = None
    drain_ms: Milliseconds = field(name="drain", default=5_000)
