"""A whole plan as it is told: the table, the page and the picture are made of this, so that they say the same."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.planning.forecasting.choosing import Choice
from penstock.planning.forecasting.loads import SECOND_US
from penstock.planning.forecasting.outcomes import Objective, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was asked, what came of it, what is recommended.

    Args:
        title: One line.
        facts: Of load, server and objective, each with a name.
        server: The simulated server's parameters, for programs.
    """

    title: str
    model: str
    lane: str
    seed: int
    requests: int
    tokens: int
    facts: tuple[tuple[str, str], ...]
    server: dict[str, float]
    objective: Objective
    outcomes: tuple[Outcome, ...]
    choice: Choice


def moment(time_us: int) -> str:
    """A time, short.

    Example:
        >>> moment(1_500), moment(320_000), moment(74_250_000), moment(3_700_000_000)
        ('1.5 ms', '320 ms', '74.2 s', '1 h 02 min')
    """
    seconds = time_us / SECOND_US
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 600:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def usd(amount: float) -> str:
    """Dollars.

    Example:
        >>> usd(1234.5), usd(0.0523)
        ('$1,234.50', '$0.052')
    """
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.2g}"
