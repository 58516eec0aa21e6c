"""The few forms that every dashboard is made of: a figure, a graph, a table, a row of them, and what can be chosen.

One place decides how each looks, so that a colour or a unit means the same on every dashboard. Panels are built by
Grafana's foundation SDK, which is typed by Grafana's own schema.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Panel = stat.Panel | timeseries.Panel | table.Panel

TAG: Final = "penstock"
COLUMNS: Final = 24
SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
CHOICES: Final = {
    "organisation": "label_values(penstock_requests_total, organisation)",
    "model": "label_values(penstock_requests_total, model)",
}
"""What can be chosen at the top of a dashboard: one, several or all of a label's values."""


def figure(
    title: str, unit: str, query: str, *, says: str, warn: float | None = None, bad: float | None = None
) -> Panel:
    """One number now: green, from ``warn`` on orange, from ``bad`` on red."""
    steps = [Threshold(value=None, color="green")]
    steps += [Threshold(value=at, color=colour) for at, colour in ((warn, "orange"), (bad, "red")) if at is not None]
    thresholds = dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
    panel = stat.Panel().title(title).description(says).unit(unit).datasource(SOURCE).thresholds(thresholds)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.with_target(_query(0, query, "")).span(4).height(4)


def graph(
    title: str, unit: str, queries: dict[str, str], *, says: str, span: int = 8, is_stacked: bool = False
) -> Panel:
    """Lines over time; ``queries`` by the legend of their lines, in which ``{{label}}`` is a label's value."""
    legend = common.VizLegendOptions().show_legend(True).placement(common_models.LegendPlacement.BOTTOM)
    legend.display_mode(common_models.LegendDisplayMode.LIST).calcs([])
    several = common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI)
    panel = timeseries.Panel().title(title).description(says).unit(unit).datasource(SOURCE).min(0)
    panel.legend(legend).tooltip(several).fill_opacity(30 if is_stacked else 8).span(span).height(8)
    if is_stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    for number, (name, query) in enumerate(queries.items()):
        panel.with_target(_query(number, query, name))
    return panel


def listing(title: str, unit: str, query: str, *, says: str, span: int = 8) -> Panel:
    """A table of what ``query`` gives now, a row for each of its series."""
    panel = table.Panel().title(title).description(says).unit(unit).datasource(SOURCE).span(span).height(8)
    panel.with_target(_query(0, query, "").instant().format(PromQueryFormat.TABLE))
    hidden = DataTransformerConfig(id_val="organize", options={"excludeByName": {"Time": True}})
    return panel.with_transformation(hidden)


def _query(number: int, query: str, legend: str) -> prometheus.Dataquery:
    built = prometheus.Dataquery().expr(query).ref_id("ABCDEFGH"[number]).datasource(SOURCE)
    return built.legend_format(legend) if legend else built


def board(
    name: str, title: str, says: str, rows: Mapping[str, Sequence[Panel]], *, choices: Sequence[str] = ()
) -> dashboard.Dashboard:
    """A dashboard of ``rows`` by their headings, linked with all others of Penstock."""
    others = dashboard.DashboardLink("Penstock").type(DashboardLinkType.DASHBOARDS).tags([TAG]).as_dropdown(True)
    made = dashboard.Dashboard(f"Penstock: {title}").uid(f"penstock-{name}").description(says).tags([TAG])
    made.tooltip(DashboardCursorSync.CROSSHAIR).timezone("browser").time("now-6h", "now").refresh("30s").readonly()
    made.link(others.keep_time(True).include_vars(True))
    made.with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    for choice in choices:
        made.with_variable(_choice(choice))
    for heading, panels in rows.items():
        made.with_row(dashboard.Row(heading))
        for panel in panels:
            made.with_panel(panel)
    return made


def _choice(label: str) -> dashboard.QueryVariable:
    everything = VariableOption(selected=True, text="All", value="$__all")
    choice = dashboard.QueryVariable(label).label(label.capitalize()).query(CHOICES[label]).datasource(SOURCE)
    choice.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    return choice.multi(True).include_all(True).current(everything)
