"""What ``penstock check --explain-scaling`` prints: each model's scaling in numbers that a person can check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from penstock.config.notation import format_amount, format_duration
from penstock.planning.scaling import PERMILLE, USED_PERMILLE, Due, Load, Pool, decide

_FAR_MS: Final = 10**9
_MULTIPLES: Final = (0, 1, 2, 5, 10, 100)
"""Of what one replica drains in time."""


def scaling_report(pools: Mapping[str, Pool], without: tuple[str, ...]) -> Group:
    """Tables, one for each model.

    Args:
        without: Models that do not say their capacity.
    """
    parts: list[RenderableType] = []
    for name, pool in pools.items():
        parts += [_inputs(name, pool), _backlogs(pool), Text()]
    for name in without:
        parts.append(Text(f"{name}: is not scaled by tokens, since it does not say its `capacity`", style="yellow"))
    return Group(*parts)


def _inputs(name: str, pool: Pool) -> Text:
    counted = pool.tokens_per_second * USED_PERMILLE // PERMILLE
    drained = counted * pool.drain_ms // 1_000
    lines: list[str | tuple[str, str]] = [
        (f"Scaling of {name}\n", "bold cyan"),
        f"  one replica       {pool.tokens_per_second:_} tokens/s, counted at 0.8: {counted:_} tokens/s\n",
        f"  replicas          {pool.replicas_min} to {pool.replicas_max}\n",
        f"  cold start        {format_duration(pool.cold_start_ms)}\n",
        f"  objective         a job is done {format_duration(pool.drain_ms)} after its acceptance\n",
        f"  queue lane        R1 = tokens due / ({counted:_} tokens/s x seconds until due)\n",
        f"                    one replica drains {drained:_} tokens in time\n",
        f"  realtime lane     R2 = (tokens/s arriving + 2 x deviation) / {counted:_} tokens/s\n",
        "  KV-cache          R3 = replicas x use / 0.8\n",
        "  wanted            max(ceil(R1 + R2), ceil(R3))\n",
        "  scale in          one less at a time, and only if the load then fits at 0.7",
    ]
    return Text.assemble(*lines)


def _backlogs(pool: Pool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for heading in ("backlog, all new", "replicas", "because of", "dues will be met"):
        table.add_column(heading, justify="right" if heading != "because of" else "left")
    drained = pool.tokens_per_second * USED_PERMILLE // PERMILLE * pool.drain_ms // 1_000
    for multiple in _MULTIPLES:
        due = Due(tokens=multiple * drained, objective_in_ms=pool.drain_ms, deadline_in_ms=_FAR_MS)
        decision = decide(pool, Load(backlog=(due,) if multiple else ()), replicas=0)
        table.add_row(
            f"{format_amount(due.tokens)} tokens",
            str(decision.replicas),
            str(decision.cause),
            f"no, {decision.wanted} would" if decision.is_short else "yes",
        )
    return table
