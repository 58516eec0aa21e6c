"""What goes on, on one screen: lanes, models with their queues, organisations; 80 columns, with or without colours."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from penstock.lanes.activity import Activity, Rates
from penstock.lanes.waiting import Waiting

COLUMNS = 80
_FIRST_LINES = 11  # everything but the rows of models and organisations
_NAME_COLUMNS = 22


def top_screen(activity: Activity, *, clock: str, rows_max: int | None = None) -> Group:
    """The whole screen.

    Args:
        clock: The time, as it is shown.
        rows_max: Lines that there are; more models or organisations are only counted. None: all are shown.
    """
    left = None if rows_max is None else max(2, rows_max - _FIRST_LINES - len(activity.unseen))
    models, tenants = len(activity.models), len(activity.tenants)
    models_max = models if left is None else min(models, max(1, left // 2, left - tenants))
    tenants_max = tenants if left is None else min(tenants, max(1, left - models_max))
    title = Text.assemble(
        ("penstock top", "bold"),
        f"  {clock} UTC, the last {activity.seconds:.1f} s, ",
        f"{activity.in_flight} in flight",
    )
    notes = [Text(f"! {each}", style="bold yellow", no_wrap=True, overflow="ellipsis") for each in activity.unseen]
    return Group(
        title,
        Text(),
        _lanes(activity),
        Text(),
        _models(activity, models_max),
        Text(),
        _tenants(activity, tenants_max),
        *notes,
    )


def _lanes(activity: Activity) -> RenderableType:
    table = _table("lane", "req/s", "refused/s", "failed/s", "tokens/s", "first token", "95 % in")
    for rates in activity.lanes:
        table.add_row(_name(rates.name), _rate(rates.requests), *_trouble(rates), _rate(rates.tokens), *_first(rates))
    return table


def _models(activity: Activity, most: int) -> RenderableType:
    table = _table("model", "req/s", "tokens/s", "first token", "up", "waiting", "runs", "oldest")
    for rates in activity.models[:most]:
        queue = activity.queues.get(rates.name, Waiting())
        up, of = activity.healthy.get(rates.name, (0, 0))
        healthy = Text(f"{up}/{of}" if of else "-", style="bold red" if up < of else "")
        first, _ = _first(rates)
        oldest = _duration(queue.oldest_age_ms / 1000) if queue.waiting_jobs else "-"
        counts = (_count(queue.waiting_jobs), _count(queue.running_jobs))
        table.add_row(_name(rates.name), _rate(rates.requests), _rate(rates.tokens), first, healthy, *counts, oldest)
    return _with_rest(table, len(activity.models) - most)


def _tenants(activity: Activity, most: int) -> RenderableType:
    table = _table("organisation", "req/s", "refused/s", "failed/s", "tokens/s", "usd/h", "open", "held")
    for rates in activity.tenants[:most]:
        requests, tokens = activity.held.get(rates.name, (0, 0))
        amounts = (_rate(rates.tokens), _rate(rates.usd * 3600), _count(requests), _count(tokens))
        table.add_row(_name(rates.name), _rate(rates.requests), *_trouble(rates), *amounts)
    return _with_rest(table, len(activity.tenants) - most)


def _table(name: str, *headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold reverse", padding=(0, 1, 0, 0), width=COLUMNS)
    table.add_column(name, ratio=1, no_wrap=True, overflow="ellipsis")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True, min_width=6)  # as wide as any value: nothing jumps
    return table


def _with_rest(table: Table, rest: int) -> RenderableType:
    return Group(table, Text(f"and {rest} more", style="dim")) if rest > 0 else table


def _name(name: str) -> str:
    return name if len(name) <= _NAME_COLUMNS else f"{name[: _NAME_COLUMNS - 1]}…"


def _trouble(rates: Rates) -> tuple[Text, Text]:
    return (
        Text(_rate(rates.refused), style="yellow" if rates.refused else ""),
        Text(_rate(rates.failed), style="bold red" if rates.failed else ""),
    )


def _first(rates: Rates) -> tuple[str, str]:
    if rates.first_s is None:
        return "-", "-"
    median, most = rates.first_s
    return _duration(median), _duration(most)


def _rate(number: float) -> str:
    """At most six characters.

    Example:
        >>> _rate(0), _rate(0.31), _rate(12.34), _rate(1234.5), _rate(2_500_000)
        ('0', '0.3', '12.3', '1.2k', '2.5M')
    """
    if not number:
        return "0"
    return f"{number:.1f}" if number < 1000 else _count(round(number))


def _count(number: int) -> str:
    """At most six characters.

    Example:
        >>> _count(999), _count(1000), _count(123_456), _count(7_200_000_000)
        ('999', '1.0k', '123.5k', '7.2G')
    """
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def _duration(seconds: float) -> str:
    """At most six characters.

    Example:
        >>> _duration(0.0123), _duration(2.34), _duration(95), _duration(7300)
        ('12ms', '2.3s', '1m35s', '2h1m')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60}m"
