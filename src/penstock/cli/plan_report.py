"""What ``penstock plan`` prints: the load, a line for each setting, and what it recommends; or all of it as JSON."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from penstock.config.notation import format_duration
from penstock.planning.forecasting.autoscaler import Trigger
from penstock.planning.forecasting.loads import MILLISECOND_US, SECOND_US
from penstock.planning.forecasting.outcomes import Outcome
from penstock.planning.forecasting.telling import Plan, moment, usd
from penstock.quota.operations import Lane


def plan_report(plan: Plan) -> Group:
    """For people."""
    return Group(_head(plan), _table(plan), _recommendation(plan))


def _head(plan: Plan) -> Text:
    lines: list[str | tuple[str, str]] = [(f"{plan.title}\n", "bold cyan")]
    lines += [f"  {name:<17} {said}\n" for name, said in plan.facts]
    return Text.assemble(*lines)


def _table(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column("\nsetting")
    headings = (
        "replicas\nmean", "\nmost", "waiting\nmost",
        "first token\np50", "\np95", "\np99", "done\np50", "\np95", "\np99",
        "GPU\nhours", "\ncost",
    )  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="right")
    table.add_column("\nobjective")
    for index, each in enumerate(plan.outcomes):
        is_chosen = index == plan.choice.chosen
        table.add_row(
            f"{'> ' if is_chosen else '  '}{each.setting.name}",
            f"{each.replicas_mean:.2f}",
            str(each.replicas_max),
            f"{each.waiting_max:,}",
            *(moment(each.first_token_us[percent]) for percent in (50, 95, 99)),
            *(moment(each.drain_us[percent]) for percent in (50, 95, 99)),
            f"{each.gpu_hours:,.2f}",
            usd(each.cost_usd),
            "kept" if each.is_met else "missed",
            style="bold" if is_chosen else "",
        )
    return table


def _recommendation(plan: Plan) -> Text:
    chosen = plan.outcomes[plan.choice.chosen]
    colour = "green" if plan.choice.is_met else "yellow"
    head = "Recommended: " if plan.choice.is_met else "Nearest: "
    told = [*plan.choice.reasons, *_to_write(plan, chosen)]
    return Text.assemble((f"{head}{chosen.setting.name}", f"bold {colour}"), *(f"\n  {line}" for line in told))


def _to_write(plan: Plan, chosen: Outcome) -> list[str]:
    """The settings of penstock.yaml that make it so."""
    setting = chosen.setting
    said = [f"models.{plan.model}.replicas: {{min: {setting.replicas_min}, max: {setting.replicas_max}}}"]
    if not setting.is_fixed:
        polling, cooldown, window = (
            format_duration(time_us // MILLISECOND_US)
            for time_us in (setting.polling_us, setting.cooldown_us, setting.window_us)
        )
        times = f"polling: {polling}, cooldown: {cooldown}, scale_in_window: {window}"
        if plan.lane == Lane.QUEUE and Trigger.TOKENS in setting.triggers:
            times += f", servers_by_queue: {str(Trigger.QUEUE in setting.triggers).lower()}"
        said.append(f"kubernetes.keda: {{{times}}}")
    return ["In penstock.yaml:", *(f"  {line}" for line in said)]


def plan_json(plan: Plan) -> dict[str, Any]:
    """For programs; times in seconds."""
    return {
        "model": plan.model,
        "lane": plan.lane,
        "seed": plan.seed,
        "requests": plan.requests,
        "tokens": plan.tokens,
        "objective": {
            "percentile": plan.objective.percentile,
            "within_s": plan.objective.within_us / SECOND_US,
        },
        "server": plan.server,
        "settings": [_outcome_json(each) for each in plan.outcomes],
        "recommended": plan.outcomes[plan.choice.chosen].setting.name if plan.choice.is_met else None,
        "nearest": plan.outcomes[plan.choice.chosen].setting.name,
        "reasons": plan.choice.reasons,
    }


def _outcome_json(each: Outcome) -> dict[str, Any]:
    setting = each.setting
    return {
        "name": setting.name,
        "triggers": setting.triggers,
        "replicas_min": setting.replicas_min,
        "replicas_max": setting.replicas_max,
        "polling_s": setting.polling_us / SECOND_US,
        "cooldown_s": setting.cooldown_us / SECOND_US,
        "window_s": setting.window_us / SECOND_US,
        "requests": each.requests,
        "first_token_s": {f"p{percent}": time_us / SECOND_US for percent, time_us in each.first_token_us.items()},
        "done_s": {f"p{percent}": time_us / SECOND_US for percent, time_us in each.drain_us.items()},
        "objective_is_kept": each.is_met,
        "replicas_mean": round(each.replicas_mean, 4),
        "replicas_most": each.replicas_max,
        "waiting_most": each.waiting_max,
        "gpu_hours": round(each.gpu_hours, 6),
        "cost_usd": round(each.cost_usd, 6),
        "lasted_s": each.lasted_us / SECOND_US,
        "samples": [
            [sample.at_us / SECOND_US, sample.replicas, sample.serving, sample.waiting, sample.running]
            for sample in each.samples
        ],
    }
