"""The shape of penstock.yaml: what every setting is called, what it defaults to, and what it means.

The structs are the single source: the reader, the JSON schema and the reference page follow from them, and each
description below is printed there. Values are parsed: durations in milliseconds, prices in integer pico-dollars,
limits as ``Term``. A field's name carries its unit, the key in the file does not (``drain_ms`` is written ``drain``).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta, field

from penstock.config.identity_settings import Auth
from penstock.config.kubernetes_settings import Deploy, Kubernetes, ScaleTarget
from penstock.config.observing_settings import Tracing
from penstock.config.store_settings import Stores
from penstock.config.values import (
    Amount,
    FileReference,
    LimitTerm,
    Milliseconds,
    PicosPerRequest,
    PicosPerToken,
    Port,
    PositiveAmount,
    PositiveNumber,
    Replicas,
    Secret,
    Setting,
    SmallAmount,
    Url,
)
from penstock.quota.definitions import Overrun, ReservePolicy

LOCAL = "local"  # the upstream that is the bundled small model


class ModelKind(StrEnum):
    """Which protocol a model's upstream speaks."""

    OPENAI = "openai"
    KSERVE_V2 = "kserve-v2"


class ManagedBy(StrEnum):
    """Who changes an organisation, or a price, after the first start."""

    FILE = "file"
    API = "api"


class Upstream(Setting, frozen=True, kw_only=True):
    """One model server.

    Args:
        url: Base address without `/v1`, `http://` or `https://`; `local` for the bundled small model.
        credential: Sent as `Authorization: Bearer`.
        ca: Certificates (PEM) that vouch for the server instead of the system's.
        weight: Its share of the requests beside the model's other upstreams, when all are equally busy.
    """

    url: Url
    credential: Secret | None = None
    ca: FileReference | None = None
    weight: PositiveAmount = 1


class Price(Setting, frozen=True, kw_only=True):
    """What a model costs, in US dollars per million tokens. Parsed exactly; at most 6 decimals.

    Args:
        input: A million prompt tokens.
        cached_input: A million prompt tokens that the server had in its cache; as `input` if not given.
        output: A million completion tokens.
        request: One request, in dollars, at most 12 decimals.
    """

    input_picos: PicosPerToken = field(name="input", default=0)
    cached_input_picos: PicosPerToken | None = field(name="cached_input", default=None)
    output_picos: PicosPerToken = field(name="output", default=0)
    request_picos: PicosPerRequest = field(name="request", default=0)


class Capacity(Setting, frozen=True, kw_only=True):
    """What one replica of the model server can do; scaling is computed from it.

    Args:
        tokens_per_second: Completion tokens per second over all its requests.
        concurrency: Requests that it works on at once.
        cold_start: From asking for a replica until it answers: image, weights, warming up.
    """

    tokens_per_second: PositiveAmount
    concurrency: PositiveAmount
    cold_start_ms: Milliseconds = field(name="cold_start", default=60_000)


class Objective(Setting, frozen=True, kw_only=True):
    """What scaling aims at.

    Args:
        drain: How soon the waiting work should be done.
        first_token: How soon a realtime request should see its first token.
    """

    drain_ms: Milliseconds = field(name="drain", default=60_000)
    first_token_ms: Milliseconds = field(name="first_token", default=500)


class Timeouts(Setting, frozen=True, kw_only=True):
    """Bounds on a call to an upstream.

    Args:
        connect: Until the connection stands.
        first_byte: From the request's last byte until the answer's first.
        between_chunks: Silence within an answer.
        total: The whole call.
    """

    connect_ms: Milliseconds = field(name="connect", default=5_000)
    first_byte_ms: Milliseconds = field(name="first_byte", default=60_000)
    between_chunks_ms: Milliseconds = field(name="between_chunks", default=30_000)
    total_ms: Milliseconds = field(name="total", default=600_000)


Upstreams = Annotated[tuple[Upstream, ...], Meta(extra={"notation": "upstreams"})]


class Model(Setting, frozen=True, kw_only=True):
    """A model that clients can name.

    Args:
        upstream: Where it runs: a URL, a mapping with `url`, a list of these (least busy first), or `local`. Left out
            only where the chart deploys its server, see `deploy`.
        kind: The protocol of its upstream.
        units: Of a `kserve-v2` model, what limits and prices count in place of tokens: `request`, `byte` of the body,
            `element of INPUT`, or `usage`, which the answer tells in its parameter `units`.
        upstream_model: What the upstream calls it; the name here if not given.
        context: Tokens that one prompt and its completion may have together.
        max_tokens: Completion tokens of one output when the client does not say; written upstream.
        template_tokens: The most that the chat template adds to a prompt; held on top of the prompt.
        tokens_per_byte_max: More than 1 only for a tokenizer that makes several tokens of one byte of text.
        bytes_per_token: For counting here when the upstream reports no usage.
        running_usage: The upstream can report usage in every event (`continuous_usage_stats` of vLLM); then a stream
            that breaks off is charged by its count.
        price: In US dollars.
        capacity: Of one replica.
        objective: What scaling aims at.
        timeouts: Bounds on calls to the upstream.
        managed_by: `file`: this file owns the price, and the admin API refuses to change it; `api`: this file only
            seeds it.
        replicas: Of its server, and so the bounds of its scaling.
        workers: Of the queue lane's workers for it.
        deploy: Have the chart deploy its server, and use that instead of `upstream`.
        scale_target: What is scaled in place of a server that the chart deploys.
    """

    upstreams: Upstreams = field(name="upstream", default=())
    context: PositiveAmount
    kind: ModelKind = ModelKind.OPENAI
    units: str = "request"
    upstream_model: str | None = None
    max_tokens: PositiveAmount = 1_024
    template_tokens: Amount = 64
    tokens_per_byte_max: SmallAmount = 1
    bytes_per_token: PositiveNumber = 4.0
    running_usage: bool = False
    price: Price = Price()
    capacity: Capacity | None = None
    objective: Objective = Objective()
    timeouts: Timeouts = Timeouts()
    managed_by: ManagedBy = ManagedBy.FILE
    replicas: Replicas = Replicas()
    workers: Replicas = Replicas(min=0)
    deploy: Deploy | None = None
    scale_target: ScaleTarget | None = None

    @property
    def is_local(self) -> bool:
        """It is the bundled small model."""
        return any(upstream.url == LOCAL for upstream in self.upstreams)


class Plan(Setting, frozen=True, kw_only=True):
    """Limits that many organisations share.

    Args:
        limits: Sentences such as `200k tokens/minute`, `50M tokens/month`, `300 usd/month` or `32 concurrent`.
        reserve: How much a request holds until it is done: `strict`, the most that it can use (no budget is ever
            overshot), or `learned`, what 95 of 100 requests like it used.
        overrun: What a stream does that outgrows a learned hold and finds no more: `stop`, or `debt`.
    """

    limits: tuple[LimitTerm, ...] = ()
    reserve: ReservePolicy = ReservePolicy.STRICT
    overrun: Overrun = Overrun.STOP


class Team(Setting, frozen=True, kw_only=True):
    """A part of an organisation, with limits of its own below the organisation's.

    Args:
        limits: On what the team's keys use together.
    """

    limits: tuple[LimitTerm, ...] = ()


class ModelLimits(Setting, frozen=True, kw_only=True):
    """Limits of an organisation on one model.

    Args:
        limits: On what the organisation uses of this model.
    """

    limits: tuple[LimitTerm, ...] = ()


class Retention(Setting, frozen=True, kw_only=True):
    """How long an organisation's stored texts are kept. Prompts go when their job ends.

    Args:
        results: Of jobs; as `queue.results` if not given.
        answers: Kept for idempotency keys; as `queue.answers` if not given.
    """

    results_ms: Milliseconds | None = field(name="results", default=None)
    answers_ms: Milliseconds | None = field(name="answers", default=None)


class Organisation(Setting, frozen=True, kw_only=True):
    """Who is served, metered and billed.

    Args:
        plan: Name of its plan.
        limits: On top of the plan's.
        models: Limits on single models, by the model's name.
        teams: Parts with limits of their own, by name.
        retention: How long its stored texts are kept.
        managed_by: `file`: this file owns plan, teams, limits and retention, and the admin API refuses to change
            them; `api`: this file only seeds them.
    """

    plan: str
    limits: tuple[LimitTerm, ...] = ()
    models: dict[str, ModelLimits] = field(default_factory=dict)
    teams: dict[str, Team] = field(default_factory=dict)
    retention: Retention = Retention()
    managed_by: ManagedBy = ManagedBy.FILE


class Server(Setting, frozen=True, kw_only=True):
    """Where and how `penstock serve` listens.

    Args:
        host: Address of the public API; `0.0.0.0` for every interface.
        port: Of the public API.
        operations_host: Address for metrics, health and readiness; keep it inside.
        operations_port: For metrics, health and readiness.
        data_directory: Where the embedded default keeps its database, and every mode its spool. `--data` and the
            variable `PENSTOCK_DATA` come first; without any of the three it is `~/.local/state/penstock`.
        body_bytes_max: The largest request body that is read.
        header_bytes_max: The largest block of request headers.
        json_depth_max: The deepest nesting of a JSON body.
        shutdown: How long running requests may take to end when the service stops.
    """

    host: str = "127.0.0.1"
    port: Port = 8080
    operations_host: str = "127.0.0.1"
    operations_port: Port = 8081
    data_directory: str | None = None
    body_bytes_max: PositiveAmount = 8_000_000
    header_bytes_max: PositiveAmount = 16_000
    json_depth_max: PositiveAmount = 64
    shutdown_ms: Milliseconds = field(name="shutdown", default=30_000)


class Queue(Setting, frozen=True, kw_only=True):
    """Requests that are answered later: `Prefer: respond-async`.

    Args:
        gateway: Address of the gateway that the API service forwards to; only with stores.
        deadline: How long after its acceptance a job may still begin and end.
        results: How long a result is kept for its client; an organisation may have its own `retention`.
        answers: How long the answer to a request with an Idempotency-Key is kept; the same.
        concurrency: Jobs that one process works on at once: the embedded default, and each worker.
        shards: Work queues of each model, at most 256: so many organisations wait apart from each other. Only with
            stores.
        ready_bytes_max: Bytes that may wait in one queue of the broker; more is refused with 503.
        deliveries: How often a job is delivered at most, before it is given up as a dead letter.
    """

    gateway: Url = "http://127.0.0.1:4195"
    deadline_ms: Milliseconds = field(name="deadline", default=3_600_000)
    results_ms: Milliseconds = field(name="results", default=86_400_000)
    answers_ms: Milliseconds = field(name="answers", default=86_400_000)
    concurrency: PositiveAmount = 4
    shards: PositiveAmount = 16
    ready_bytes_max: PositiveAmount = 500_000_000
    deliveries: PositiveAmount = 20


class Configuration(Setting, frozen=True, kw_only=True):
    """All of penstock.yaml.

    Args:
        models: What clients can name, by name: `chat-small`, `meta-llama/Llama-3.1-8B-Instruct`, `qwen2.5:7b`.
        plans: Limits by name of the plan.
        organisations: Who is served, by name: small letters, digits and hyphens.
        server: Addresses and bounds.
        auth: API keys.
        stores: Redis, PostgreSQL and RabbitMQ; without it everything is embedded.
        queue: Requests that are answered later.
        tracing: Traces for OpenTelemetry.
        kubernetes: What only a cluster needs (replicas, resources, ingress), read by the chart.
        global: Helm's own section for subcharts, free-form.
    """

    models: dict[str, Model] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    organisations: dict[str, Organisation] = field(default_factory=dict)
    server: Server = Server()
    auth: Auth = Auth()
    stores: Stores | None = None
    queue: Queue = Queue()
    tracing: Tracing = Tracing()
    kubernetes: Kubernetes = Kubernetes()
    helm_global: dict[str, Any] = field(name="global", default_factory=dict)
