"""What no single setting shows: names that must exist, sums that must fit, and what will surprise.

Problems keep the service from starting. Warnings do not: ``penstock check`` prints them.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from penstock.config.checking_tls import tls_problems, tls_warnings
from penstock.config.compiling import price, team_owner
from penstock.config.notation import (
    NANOS_PER_USD,
    NotationError,
    Term,
    format_amount,
    format_duration,
    format_limit,
    format_period,
    format_usd,
    parse_units,
)
from penstock.config.reading import Location, Problem, Tree, path_text
from penstock.config.settings import LOCAL, Configuration, Model, ModelKind
from penstock.config.walking import REDIS_SCHEMES, Walked, nearest
from penstock.quota.definitions import Kind, Metric
from penstock.quota.plans import LIMITS_MAX
from penstock.quota.pricing import cost_nanos_max

LOCAL_CONTEXT_MAX = 8_192  # max_position_embeddings in SmolLM2's own config.json
SHARDS_MOST = 256  # a quorum queue costs the broker a Raft group, and each worker a connection
SCHEMES = {"redis": REDIS_SCHEMES, "postgresql": ("postgresql",), "rabbitmq": ("amqp", "amqps")}
Found = Iterator[tuple[Location, str]]


def full_request_tokens(model: Model) -> int:
    """What a strict reservation of the largest prompt and one output of the default length holds."""
    return model.context + model.template_tokens + model.max_tokens


def full_request_nanos(model: Model) -> int:
    """What such a request costs at most, in nano-dollars."""
    return cost_nanos_max(price(model.price), model.context + model.template_tokens, model.max_tokens)


def problems(walked: Walked, tree: Tree) -> list[Problem]:
    """What is wrong between settings that are each well-formed."""
    check = _Check(walked, tree)
    found = [*check.models(), *check.plans(), *check.organisations(), *check.services(), *check.queue()]
    return [Problem(location, message, tree.place(location)) for location, message in found]


def warnings(configuration: Configuration, tree: Tree) -> list[Problem]:
    """What is allowed and will surprise; for a configuration without problems."""
    found = [*_too_small(configuration), *_without_effect(configuration)]
    if configuration.stores is not None:
        found += tls_warnings(configuration.stores)
    return [Problem(location, message, tree.place(location)) for location, message in found]


class _Check:
    """Looks across what a walk found sound."""

    def __init__(self, walked: Walked, tree: Tree) -> None:
        self._configuration = walked.configuration
        self._broken = walked.broken
        self._tree = tree

    def _sound(self, *locations: Location) -> bool:
        return not any(location in self._broken for location in locations)

    def _names(self, section: str) -> set[str]:
        """The names that the file has, whether or not what is below them is sound."""
        named = self._tree.values.get(section)
        return set(named) if isinstance(named, dict) else set()

    def _terms(self, terms: tuple[Term, ...], location: Location) -> list[tuple[Location, Term]]:
        """Terms with the position that they have in the file: unsound ones were left out."""
        count = len(terms) + sum(1 for broken in self._broken if broken[:-1] == location)
        positions = [(*location, position) for position in range(count) if (*location, position) not in self._broken]
        return list(zip(positions, terms, strict=False))

    def models(self) -> Found:
        if not self._names("models") and self._sound(("models",)):
            yield (
                ("models",),
                "missing, wanted at least one model; write `models: {smollm2-135m: {upstream: local, ...}}`",
            )
        for name, model in self._configuration.models.items():
            yield from self._model(("models", name), model)

    def _model(self, at: Location, model: Model) -> Found:
        output, context = (*at, "max_tokens"), (*at, "context")
        if self._sound(output, context) and model.max_tokens > model.context:
            given = output in self._tree.places
            found = f"{model.max_tokens} is" if given else f"its default {model.max_tokens} is"
            yield output, f"{found} more than context ({model.context}); {'lower' if given else 'set'} it"
        if self._sound((*at, "template_tokens"), context) and model.template_tokens >= model.context:
            message = f"{model.template_tokens} leaves nothing of context ({model.context}); lower it"
            yield (*at, "template_tokens"), message
        yield from self._scaling(at, model)
        if model.is_local:
            yield from self._local(at, model)
        elif model.kind is ModelKind.KSERVE_V2:
            try:
                parse_units(model.units)
            except NotationError as error:
                yield (*at, "units"), str(error)
        elif model.units != "request":
            yield (*at, "units"), "found beside a model that speaks openai, which has tokens; add `kind: kserve-v2`"

    def _scaling(self, at: Location, model: Model) -> Found:
        for pods, found in (("replicas", model.replicas), ("workers", model.workers)):
            if self._sound((*at, pods, "min"), (*at, pods, "max"), (*at, pods)) and found.min > found.max:
                yield (*at, pods, "min"), f"{found.min} is more than max ({found.max}); lower it"
        if model.deploy is not None and model.scale_target is not None:
            message = "found beside `deploy`, whose server is scaled already; remove one of the two"
            yield (*at, "scale_target"), message
        drain, capacity = (*at, "objective", "drain"), (*at, "capacity")
        parts = ((*capacity, name) for name in ("tokens_per_second", "concurrency", "cold_start"))
        if model.capacity is None or not self._sound(drain, (*at, "objective"), capacity, (*at, "max_tokens"), *parts):
            return
        drain_ms, cold_start_ms = model.objective.drain_ms, model.capacity.cold_start_ms
        output_ms = -(-model.max_tokens * model.capacity.concurrency * 1_000 // model.capacity.tokens_per_second)
        if output_ms > drain_ms:
            what = f"one output of max_tokens ({model.max_tokens}) alone takes {format_duration(output_ms)} at capacity"
            yield drain, f"{format_duration(drain_ms)} can be met by no number of replicas: {what}; raise it"
        elif model.replicas.min == 0 and cold_start_ms >= drain_ms:
            what = f"a replica needs {format_duration(cold_start_ms)} to start (capacity.cold_start), from none at all"
            fix = "raise it, or keep one replica: `replicas: {min: 1}`"
            yield drain, f"{format_duration(drain_ms)} can be met by no number of replicas: {what}; {fix}"

    def _local(self, at: Location, model: Model) -> Found:
        if len(model.upstreams) > 1:
            yield (*at, "upstream"), f"found `{LOCAL}` beside other upstreams, wanted it alone; make two models of them"
        if model.kind is not ModelKind.OPENAI:
            yield (*at, "kind"), f"found {model.kind.value}, but the bundled model speaks openai; remove this line"
        if self._sound((*at, "context")) and model.context > LOCAL_CONTEXT_MAX:
            message = f"{model.context} is more than the bundled model reads ({LOCAL_CONTEXT_MAX}); lower it"
            yield (*at, "context"), message

    def queue(self) -> Found:
        shards: Location = ("queue", "shards")
        if self._sound(shards) and self._configuration.queue.shards > SHARDS_MOST:
            yield shards, f"{self._configuration.queue.shards} is more than a broker bears ({SHARDS_MOST}); lower it"

    def plans(self) -> Found:
        for name, plan in self._configuration.plans.items():
            yield from _twice(self._terms(plan.limits, ("plans", name, "limits")), {}, "")

    def organisations(self) -> Found:
        for name, organisation in self._configuration.organisations.items():
            at: Location = ("organisations", name)
            plan = self._configuration.plans.get(organisation.plan)
            if organisation.plan not in self._names("plans") and self._sound((*at, "plan"), ("plans",)):
                names = self._names("plans")
                yield (
                    (*at, "plan"),
                    f"found {organisation.plan!r}, which is no plan; {nearest(organisation.plan, names)}",
                )
            inherited = {_identity(term): format_limit(term) for term in plan.limits} if plan else {}
            own = self._terms(organisation.limits, (*at, "limits"))
            yield from _twice(own, inherited, f"plan {organisation.plan} has ")
            below = [0]
            for model, limited in organisation.models.items():
                here = (*at, "models", model)
                if model not in self._names("models") and self._sound(("models",), here):
                    yield here, f"found {model!r}, which is no model; {nearest(model, self._names('models'))}"
                yield from _twice(self._terms(limited.limits, (*here, "limits")), {}, "")
                below.append(len(limited.limits))
            teams = [0]
            for team, part in organisation.teams.items():
                yield from _twice(self._terms(part.limits, (*at, "teams", team, "limits")), {}, "")
                teams.append(len(part.limits))
            count = len(plan.limits if plan else ()) + len(own) + max(below) + max(teams)
            if count > LIMITS_MAX:
                message = f"{count} limits can meet on one request, wanted at most {LIMITS_MAX}; remove some"
                yield at, message

    def services(self) -> Found:
        server = self._configuration.server
        same_port = server.port == server.operations_port != 0
        if same_port and self._sound(("server", "port"), ("server", "operations_port")):
            yield ("server", "operations_port"), f"{server.port} is the public port too; choose another, such as 8081"
        auth = self._configuration.auth
        if auth.pepper_previous and not auth.pepper and self._sound(("auth", "pepper")):
            yield ("auth", "pepper_previous"), "found it without pepper; write the new one as `pepper: {env: NAME}`"
        yield from self._issuers()
        stores = self._configuration.stores
        if stores:
            found = tls_problems(stores)
            yield from ((at, said) for at, said in found if self._sound(at, at[:2], (*at[:2], "url")))
        for name, schemes in SCHEMES.items() if stores else ():
            scheme = getattr(stores, name).url.partition(":")[0]
            if scheme not in schemes and self._sound(("stores", name), ("stores", name, "url")):
                wanted = " or ".join(f"{scheme}://" for scheme in schemes)
                yield ("stores", name, "url"), f"found {scheme}://, wanted {wanted}; check which service this is"
            elif scheme.endswith("+sentinel") and not urlsplit(getattr(stores, name).url).path.strip("/"):
                yield ("stores", name, "url"), "names no service; end it with what the sentinels call it: `/mymaster`"

    def _issuers(self) -> Found:
        urls: dict[str, str] = {}
        for name, each in self._configuration.auth.issuers.items():
            at: Location = ("auth", "issuers", name)
            if self._sound((*at, "issuer")) and urls.setdefault(each.issuer, name) != name:
                yield (
                    (*at, "issuer"),
                    f"{urls[each.issuer]} has the same one; its tokens could not be told apart, keep one",
                )
            if not each.algorithms and self._sound((*at, "algorithms")):
                yield (
                    (*at, "algorithms"),
                    "found an empty list, wanted at least one; write `[RS256]`, or remove the line",
                )
            if not each.organisations and self._sound((*at, "organisations")):
                yield (*at, "organisations"), "found an empty list, wanted at least one organisation; name it"
            if len(each.organisations) > 1 and each.organisation_claim is None:
                message = f"missing, and the issuer speaks for {len(each.organisations)} organisations"
                yield (*at, "organisation_claim"), f"{message}; name the claim that says which"
            known = {"organisations": (each.organisations, "organisation"), "models": (each.models, "model")}
            for section, (names, what) in known.items():
                for found in names if self._sound((section,)) else ():
                    if found not in self._names(section):
                        message = f"found {found!r}, which is no {what}; {nearest(found, self._names(section))}"
                        yield (*at, section), message


def _identity(term: Term) -> tuple[str, str, int, int]:
    return (term.metric, term.kind, term.period_ms, term.anchor_ms)


def _twice(terms: list[tuple[Location, Term]], inherited: dict[tuple[str, str, int, int], str], whose: str) -> Found:
    """Limits that differ in nothing but their cap: counters could not tell them apart."""
    seen = {identity: f"{whose}{sentence}" for identity, sentence in inherited.items()}
    for location, term in terms:
        identity = _identity(term)
        if identity in seen:
            yield location, f"{format_limit(term)} limits the same as another ({seen[identity]}); keep one"
        seen.setdefault(identity, f"{path_text(location[-2:])} is {format_limit(term)}")


def _every_limit(configuration: Configuration) -> Iterator[tuple[Location, Term, list[str]]]:
    """Each written limit once, with the models that it holds for."""
    every = list(configuration.models)
    for name, plan in configuration.plans.items():
        for position, term in enumerate(plan.limits):
            yield ("plans", name, "limits", position), term, every
    for name, organisation in configuration.organisations.items():
        for position, term in enumerate(organisation.limits):
            yield ("organisations", name, "limits", position), term, every
        for model, limited in organisation.models.items():
            for position, term in enumerate(limited.limits):
                yield ("organisations", name, "models", model, "limits", position), term, [model]
        for team, part in organisation.teams.items():
            for position, term in enumerate(part.limits):
                yield ("organisations", name, "teams", team, "limits", position), term, every


def _too_small(configuration: Configuration) -> Found:
    """Limits that one full request exceeds: it would never fit."""
    for location, term, names in _every_limit(configuration):
        need = {Metric.TOKENS: full_request_tokens, Metric.COST: full_request_nanos}.get(term.metric)
        if need is None:
            continue
        over = [name for name in names if need(configuration.models[name]) > term.cap]
        if not over:
            continue
        worst = max(over, key=lambda name: need(configuration.models[name]))
        amount = need(configuration.models[worst])
        if term.metric is Metric.COST:
            text = f"costs up to {format_usd(amount, per_usd=NANOS_PER_USD)} usd"
        else:
            text = f"holds up to {amount:_} tokens"
        yield (
            location,
            f"a full request of {worst} {text}, more than {format_limit(term)} ever admits; "
            f"raise the limit, or lower context or max_tokens",
        )


def _without_effect(configuration: Configuration) -> Found:
    """Settings that bound nothing, or that nobody uses."""
    used = {organisation.plan for organisation in configuration.organisations.values()}
    for name in configuration.plans:
        if name not in used:
            yield ("plans", name), "no organisation has this plan; assign it, or remove it"
    if not configuration.organisations:
        yield ("organisations",), "there is none, so no request can be served; add one"
    spends = any(term.metric is Metric.COST for _, term, _ in _every_limit(configuration))
    for name, model in configuration.models.items():
        if spends and full_request_nanos(model) == 0:
            yield ("models", name, "price"), "is 0, so no limit in usd bounds this model; give it a price"
        longest_ms = max(model.timeouts.first_byte_ms, model.timeouts.between_chunks_ms, model.timeouts.connect_ms)
        if longest_ms > model.timeouts.total_ms:
            yield ("models", name, "timeouts", "total"), "is below another bound, which it cuts off; raise it"
    for name, organisation in configuration.organisations.items():
        upper = {_identity(term): term for term in configuration.plans[organisation.plan].limits + organisation.limits}
        if not upper:
            yield ("organisations", name), "nothing limits it; give its plan limits"
        for team, part in organisation.teams.items():
            for position, term in enumerate(part.limits):
                above = upper.get(_identity(term))
                if above is not None and above.cap <= term.cap:
                    owner = team_owner(name, team)
                    has_period = term.kind not in (Kind.CONCURRENCY, Kind.ENQUEUED)
                    period = f" per {format_period(term)}" if has_period else ""
                    message = (
                        f"{owner} may use {_cap_text(term)}{period}, but {name} as a whole only {_cap_text(above)}; "
                        f"lower this one, or it never bounds"
                    )
                    yield ("organisations", name, "teams", team, "limits", position), message


def _cap_text(term: Term) -> str:
    if term.metric is Metric.COST:
        return f"{format_usd(term.cap, per_usd=NANOS_PER_USD)} usd"
    return f"{format_amount(term.cap)} {term.metric.value}"
