"""From the settings to what the quota understands: limits with owners, models with prices.

Keys are not in the file: they come from the key store, and are put in with ``dataclasses.replace``.
"""

from __future__ import annotations

from penstock.config import settings
from penstock.quota.definitions import Definitions, Limit, Model, Price


def team_owner(organisation: str, team: str) -> str:
    """The owner of a team's limits.

    Example:
        >>> team_owner('acme', 'search')
        'acme:team:search'
    """
    return f"{organisation}:team:{team}"


def price(written: settings.Price) -> Price:
    """What the quota charges; cached prompt tokens cost as much as others if nothing else is written."""
    cached_picos = written.cached_input_picos
    return Price(
        prompt_picos=written.input_picos,
        cached_picos=written.input_picos if cached_picos is None else cached_picos,
        completion_picos=written.output_picos,
        request_picos=written.request_picos,
    )


def model(name: str, written: settings.Model) -> Model:
    """What the quota must know of a model."""
    return Model(
        name=name,
        context=written.context,
        template_tokens=written.template_tokens,
        tokens_per_byte_max=written.tokens_per_byte_max,
        price=price(written.price),
    )


def limits(configuration: settings.Configuration, organisation: str) -> tuple[Limit, ...]:
    """Every limit of an organisation: the plan's, its own, those on models, those of its teams."""
    written = configuration.organisations[organisation]
    plan = configuration.plans[written.plan]
    found = [term.limit(owner=organisation) for term in plan.limits + written.limits]
    for name, below in written.models.items():
        found += [term.limit(owner=organisation, model=name) for term in below.limits]
    for name, team in written.teams.items():
        found += [term.limit(owner=team_owner(organisation, name)) for term in team.limits]
    return tuple(found)


def definitions(configuration: settings.Configuration, organisation: str) -> Definitions:
    """All that governs one organisation, without its keys.

    Raises:
        KeyError: The configuration has no such organisation.
    """
    plan = configuration.plans[configuration.organisations[organisation].plan]
    return Definitions(
        limits=limits(configuration, organisation),
        models={name: model(name, written) for name, written in configuration.models.items()},
        reserve=plan.reserve,
        overrun=plan.overrun,
    )
