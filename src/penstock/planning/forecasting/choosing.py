"""Which settings are compared, and which of them is recommended, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from penstock.planning.forecasting.autoscaler import Setting, Trigger
from penstock.planning.forecasting.loads import SECOND_US
from penstock.planning.forecasting.outcomes import Objective, Outcome, Times
from penstock.planning.forecasting.simulation import World

QUICK_US = 60 * SECOND_US
QUICK_POLLING_US = 5 * SECOND_US


def alternatives(configured: Setting, world: World) -> list[Setting]:
    """What is worth comparing with what is configured: each differs from it in one thing.

    The realtime lane never goes to zero: nothing would answer.
    """
    found = [configured]
    if len(configured.triggers) > 1:
        found.append(replace(configured, name="by tokens alone", triggers=(Trigger.TOKENS,)))
    least = configured.replicas_min
    if world.is_queued and least > 0:
        found.append(replace(configured, name="down to zero", replicas_min=0))
    if least < configured.replicas_max:
        found.append(replace(configured, name=f"{least + 1} kept warm", replicas_min=least + 1))
    found.append(
        replace(
            configured,
            name="quick to go",
            polling_us=min(QUICK_POLLING_US, configured.polling_us),
            cooldown_us=min(QUICK_US, configured.cooldown_us),
            window_us=min(QUICK_US, configured.window_us),
        )
    )
    mean = mean_replicas(world)
    found += [
        fixed(configured, replicas)
        for replicas in sorted({min(mean, configured.replicas_max), configured.replicas_max})
    ]
    return found


def fixed(like: Setting, replicas: int) -> Setting:
    """So many replicas, always."""
    return replace(like, name=f"always {replicas}", triggers=(), replicas_min=replicas, replicas_max=replicas)


def mean_replicas(world: World) -> int:
    """Enough for the load as if it came evenly."""
    lasts_us = max(1, world.load.at_us[-1], max(world.whole_us))
    return max(1, -(-sum(world.whole_us) // (lasts_us * world.server.concurrency)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is recommended.

    Args:
        chosen: Position among the outcomes.
        is_met: It keeps the objective.
        reasons: Sentences.
    """

    chosen: int
    is_met: bool
    reasons: tuple[str, ...]


def choose(outcomes: Sequence[Outcome], objective: Objective, world: World) -> Choice:
    """The cheapest that keeps the objective; if none does, the one that comes nearest to it."""
    aim = f"{objective.percentile} of 100 {'jobs done' if world.is_queued else 'first tokens'} within"
    aim += f" {_seconds(objective.within_us)}"
    met = [index for index, each in enumerate(outcomes) if each.is_met]
    if not met:
        best = min(range(len(outcomes)), key=lambda index: (outcomes[index].judged_us, outcomes[index].cost_usd))
        return Choice(chosen=best, is_met=False, reasons=_missed(outcomes, best, aim, objective, world))
    best = min(met, key=lambda index: (outcomes[index].cost_usd, index))
    chosen = outcomes[best]
    reasons = [f"It keeps the objective, {aim}: {_seconds(chosen.judged_us)}."]
    cheaper = [each for each in outcomes if each.cost_usd < chosen.cost_usd]
    if cheaper:
        told = ", ".join(f"{each.setting.name} ({_seconds(each.judged_us)})" for each in cheaper)
        reasons.append(f"Cheaper ones miss it: {told}.")
    others = sorted((outcomes[index] for index in met if index != best), key=lambda each: each.cost_usd)
    if others:
        more = (others[0].cost_usd / chosen.cost_usd - 1) * 100 if chosen.cost_usd else 0.0
        reasons.append(f"The next that keeps it, {others[0].setting.name}, costs {more:.0f} % more.")
    else:
        reasons.append("No other keeps it.")
    return Choice(chosen=best, is_met=True, reasons=tuple(reasons))


def _missed(outcomes: Sequence[Outcome], best: int, aim: str, objective: Objective, world: World) -> tuple[str, ...]:
    nearest = outcomes[best]
    first = f"None keeps the objective, {aim}; this comes nearest, with {_seconds(nearest.judged_us)}."
    alone_us = Times(world.whole_us if world.is_queued else world.first_us).percentile(objective.percentile)
    if alone_us > objective.within_us:
        alone = f"With a place at once it is {_seconds(alone_us)}, so no number of replicas keeps it:"
        return (first, f"{alone} make the servers faster, or the objective longer.")
    at_once = world.server.at_once
    if at_once is not None and at_once < nearest.setting.replicas_max * world.server.concurrency:
        bound = (
            f"The workers hand over {at_once} jobs at once, fewer than {nearest.setting.replicas_max} replicas take:"
        )
        return (first, f"{bound} raise their `max`, or `queue.concurrency`.")
    if nearest.setting.is_fixed and nearest.setting.replicas_max == max(e.setting.replicas_max for e in outcomes):
        return (first, "Even with all replicas from the start it is missed: allow more of them, or a longer objective.")
    return (first, "What is missing is speed of reaction: keep more replicas warm, or shorten the cold start.")


def _seconds(time_us: int) -> str:
    return f"{time_us / SECOND_US:.3g} s" if time_us < 1_000 * SECOND_US else f"{time_us / SECOND_US:,.0f} s"
