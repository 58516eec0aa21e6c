"""A plan as a picture (PNG), with matplotlib, which the ``plan`` extra brings."""

from __future__ import annotations

from pathlib import Path

from penstock.errors import ConfigurationError
from penstock.planning.forecasting.page import CHARTS, COLOURS, clock, grid, time_step_us
from penstock.planning.forecasting.telling import Plan, moment, usd


def draw(plan: Plan, file: Path) -> None:
    """Write the picture: replicas and waiting requests over time, and what each setting costs and keeps.

    Raises:
        ConfigurationError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from numpy import log10
    except ImportError as error:
        fix = "pip install 'penstock[plan]', or take --html, which needs nothing"
        raise ConfigurationError((f"--png: needs matplotlib, which is not installed; {fix}",)) from error
    figure = Figure(figsize=(11, 9), dpi=110, layout=ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.12))
    FigureCanvasAgg(figure)
    bars, *charts = figure.subplots(1 + len(CHARTS), 1, height_ratios=[0.42 * len(plan.outcomes) + 0.8, 3, 3])
    figure.suptitle(plan.title, fontsize=13, fontweight="bold")
    until_us = max(each.samples[-1].at_us for each in plan.outcomes) or 1
    for axes, chart in zip(charts, CHARTS, strict=True):
        for index, each in enumerate(plan.outcomes):
            times = [sample.at_us for sample in each.samples]
            values = [chart.read(sample) for sample in each.samples]
            is_chosen = index == plan.choice.chosen
            axes.step(
                times, values, where="post", linewidth=2.2 if is_chosen else 1.1, zorder=3 if is_chosen else 2,
                color=COLOURS[index % len(COLOURS)],
            )  # fmt: skip
        axes.set_title(chart.title, loc="left", fontsize=10)
        if chart.is_logarithmic:
            axes.set_yscale("function", functions=(lambda value: log10(1 + value), lambda value: 10**value - 1))
        lines = grid(int(axes.dataLim.ymax), is_logarithmic=chart.is_logarithmic)
        axes.set_yticks(lines, [f"{value:,}" for value in lines])
        axes.set_ylim(0, lines[-1])
        axes.set_xlim(0, until_us)
        times = list(range(0, until_us + 1, time_step_us(until_us)))
        axes.set_xticks(times, [clock(at_us) for at_us in times])
    _costs(plan, bars)
    for axes in (bars, *charts):
        axes.grid(visible=True, color="#e3e8ed", axis="x" if axes is bars else "both")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, format="png", metadata={"Software": None})


def _costs(plan: Plan, axes: object) -> None:
    """A bar for each setting: its cost, and at its end what the objective looks at."""
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    costs = [each.cost_usd for each in plan.outcomes]
    names = [
        f"{'> ' if index == plan.choice.chosen else ''}{each.setting.name}" for index, each in enumerate(plan.outcomes)
    ]
    places = range(len(costs))
    axes.barh(places, costs, color=[COLOURS[index % len(COLOURS)] for index in places], height=0.62)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    for index, each in enumerate(plan.outcomes):
        told = f"  {usd(each.cost_usd)}, p{plan.objective.percentile} {moment(each.judged_us)}"
        axes.text(
            costs[index], index, told + ("" if each.is_met else ", missed"), va="center", fontsize=9,
            color="#1c2733" if each.is_met else "#b3421b",
            fontweight="bold" if index == plan.choice.chosen else "normal",
        )  # fmt: skip
    axes.set_xlim(0, max(*costs, 0.01) * 1.3)
    axes.set_title("Cost in US dollars, and what the objective looks at", loc="left", fontsize=10)
