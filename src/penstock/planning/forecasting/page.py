"""A plan as one HTML page that needs nothing else: no script, no address, the charts as SVG in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from math import log10
from typing import Final

from penstock.planning.forecasting.loads import SECOND_US
from penstock.planning.forecasting.outcomes import SHOWN
from penstock.planning.forecasting.simulation import Sample
from penstock.planning.forecasting.telling import Plan, moment, usd

COLOURS: Final = ("#2a78d6", "#eb6834", "#1baa82", "#8a63d2", "#c7950c", "#d14f8b", "#5b7083", "#9a4f2a")
"""Of the settings, in their order; the picture has the same."""
WIDTH: Final = 920
HEIGHT: Final = 240
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 34

_STYLE: Final = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,sans-serif;color:#1c2733;background:#fff;max-width:1240px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0 0 .5rem}h2{font-size:1.1rem;margin:2rem 0 .3rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:0}dt{color:#5b6b7b}dd{margin:0}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .5rem;text-align:right;white-space:nowrap;border-bottom:1px solid #e3e8ed}
th{color:#5b6b7b;font-weight:500}th:first-child,td:first-child{text-align:left}
th.group{border:0;padding-bottom:0;text-align:center}
tr.chosen td{background:#eef5fd;font-weight:600}.missed{color:#b3421b}.kept{color:#16794f}
.advice{border-left:4px solid #2a78d6;background:#f4f8fc;padding:.7rem 1rem;margin:1.2rem 0}
.advice.none{border-color:#c7950c;background:#fdf8ec}.advice p{margin:.2rem 0}
.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.45em}
svg{width:100%;height:auto;display:block}svg text{font:12px system-ui,sans-serif;fill:#5b6b7b}
""".strip()


def page(plan: Plan) -> str:
    """The whole page."""
    chosen = plan.outcomes[plan.choice.chosen].setting.name
    head = "Recommended" if plan.choice.is_met else "None keeps the objective; nearest"
    reasons = "".join(f"<p>{escape(reason)}</p>" for reason in plan.choice.reasons)
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(said)}</dd>" for name, said in plan.facts)
    return "\n".join(
        (
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(plan.title)}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{escape(plan.title)}</h1><dl>{facts}</dl>",
            f'<div class="{"advice" if plan.choice.is_met else "advice none"}">',
            f"<p><b>{head}: {escape(chosen)}</b></p>{reasons}</div>",
            _table(plan),
            *(f"<h2>{escape(chart.title)}</h2>{_chart(plan, chart)}" for chart in CHARTS),
            "</body></html>\n",
        )
    )


@dataclass(frozen=True, slots=True)
class Chart:
    """One figure over time.

    Args:
        is_logarithmic: Each grid line is ten times the one below, or one setting that fails would hide all others.
    """

    title: str
    read: Callable[[Sample], int]
    is_logarithmic: bool = False


CHARTS: Final = (
    Chart("Replicas asked for", lambda sample: sample.replicas),
    Chart("Requests that wait (each line is ten times the one below)", lambda sample: sample.waiting, True),
)
TIME_STEPS_S: Final = (1, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400)


def _table(plan: Plan) -> str:
    groups = (("", 1), ("replicas", 2), ("waiting", 1), ("first token", 3), ("done", 3), ("", 3))
    percents = [f"p{percent}" for percent in SHOWN]
    heads = ["setting", "mean", "most", "most", *percents, *percents, "GPU hours", "cost", "objective"]
    rows = []
    for index, each in enumerate(plan.outcomes):
        cells = [f"{each.replicas_mean:.2f}", str(each.replicas_max), f"{each.waiting_max:,}"]
        cells += [moment(each.first_token_us[percent]) for percent in SHOWN]
        cells += [moment(each.drain_us[percent]) for percent in SHOWN]
        cells += [f"{each.gpu_hours:,.2f}", usd(each.cost_usd)]
        colour = COLOURS[index % len(COLOURS)]
        name = f'<td><span class="key" style="background:{colour}"></span>{escape(each.setting.name)}</td>'
        met = "kept" if each.is_met else "missed"
        plain = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        marked = ' class="chosen"' if index == plan.choice.chosen else ""
        rows.append(f'<tr{marked}>{name}{plain}<td class="{met}">{met}</td></tr>')
    head = "".join(f"<th>{head}</th>" for head in heads)
    over = "".join(f'<th class="group" colspan="{columns}">{name}</th>' for name, columns in groups)
    return f'<div class="scroll"><table><tr>{over}</tr><tr>{head}</tr>{"".join(rows)}</table></div>'


def _chart(plan: Plan, chart: Chart) -> str:
    """Steps over time, one line for each setting, all on one scale; the chosen one is drawn last, and thicker."""
    until_us = max(each.samples[-1].at_us for each in plan.outcomes) or 1
    top = max(1, *(chart.read(sample) for each in plan.outcomes for sample in each.samples))
    lines = grid(top, is_logarithmic=chart.is_logarithmic)
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(at_us: int) -> float:
        return LEFT + wide * at_us / until_us

    def y(value: int) -> float:
        share = log10(1 + value) / log10(1 + lines[-1]) if chart.is_logarithmic else value / lines[-1]
        return TOP + high * (1 - share)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">']
    for value in lines:
        parts.append(f'<path d="M{LEFT} {y(value):.1f}h{wide}" stroke="#e3e8ed"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:,}</text>')
    for at_us in range(0, until_us + 1, time_step_us(until_us)):
        parts.append(f'<text x="{x(at_us):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{clock(at_us)}</text>')
    order = sorted(range(len(plan.outcomes)), key=lambda index: index == plan.choice.chosen)
    for index in order:
        samples, is_chosen = plan.outcomes[index].samples, index == plan.choice.chosen
        points = [f"M{x(samples[0].at_us):.1f} {y(chart.read(samples[0])):.1f}"]
        points += [f"H{x(sample.at_us):.1f}V{y(chart.read(sample)):.1f}" for sample in samples[1:]]
        drawn = f'stroke="{COLOURS[index % len(COLOURS)]}" stroke-width="{2.2 if is_chosen else 1.2}"'
        name = escape(plan.outcomes[index].setting.name)
        parts.append(f'<path d="{"".join(points)}" fill="none" {drawn}><title>{name}</title></path>')
    return "".join([*parts, "</svg>"])


def grid(top: int, *, is_logarithmic: bool) -> list[int]:
    """Where the lines of a scale from 0 to ``top`` or a little more are.

    Example:
        >>> grid(23, is_logarithmic=False), grid(300, is_logarithmic=True)
        ([0, 5, 10, 15, 20, 25], [0, 1, 10, 100, 1000])
    """
    if not is_logarithmic:
        step = nice_step(top)
        return list(range(0, top + step, step))
    lines = [0, 1]
    while lines[-1] < top:
        lines.append(lines[-1] * 10)
    return lines


def time_step_us(until_us: int) -> int:
    """Between two times of an axis, for at most eight of them.

    Example:
        >>> time_step_us(75_000_000_000) // SECOND_US
        10800
    """
    days = -(-until_us // (8 * 86_400 * SECOND_US))
    return next(
        (step * SECOND_US for step in TIME_STEPS_S if step * SECOND_US * 8 >= until_us), days * 86_400 * SECOND_US
    )


def nice_step(top: int) -> int:
    """Between grid lines: 1, 2 or 5 times a power of ten, for at most six of them.

    Example:
        >>> nice_step(4), nice_step(23), nice_step(160_000)
        (1, 5, 50000)
    """
    step = 1
    while True:
        for factor in (1, 2, 5):
            if step * factor * 5 >= top:
                return step * factor
        step *= 10


def clock(at_us: int) -> str:
    """A time since the start, for an axis.

    Example:
        >>> clock(0), clock(30_000_000), clock(90_000_000), clock(5_400_000_000), clock(172_800_000_000)
        ('0', '30 s', '1:30 min', '1:30 h', '2 d')
    """
    seconds = at_us // SECOND_US
    if seconds < 60:
        return f"{seconds} s" if seconds else "0"
    if seconds < 3_600:
        return f"{seconds // 60} min" if seconds % 60 == 0 else f"{seconds // 60}:{seconds % 60:02d} min"
    if seconds % 86_400 == 0:
        return f"{seconds // 86_400} d"
    hours, minutes = seconds // 3_600, seconds % 3_600 // 60
    return f"{hours} h" if minutes == 0 else f"{hours}:{minutes:02d} h"
