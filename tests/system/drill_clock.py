"""Rules for a drill, in which time passes faster: each duration divided by one factor, and none too short to measure.

Pure: a file of rules as it was read goes in, one to be written comes out.
"""

from __future__ import annotations

import re
from typing import Any, Final

WINDOW_MIN_S: Final = 5.0
"""A window of a rate needs several scrapes, and a threshold several looks of whoever gives the figure."""
FOR_MIN_S: Final = 2.0

_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "y": 31536000.0}
_PART: Final = re.compile(r"(\d+)(ms|[smhdwy])")
_WINDOW: Final = re.compile(r"\[((?:\d+(?:ms|[smhdwy]))+)\]")
_THRESHOLD: Final = re.compile(r"(\d+)(?=[^\n\d]*# s$)", re.MULTILINE)


def seconds_of(duration: str) -> float:
    """Of a duration as Prometheus writes it, such as ``1h30m``."""
    parts = _PART.findall(duration)
    if not parts or "".join(count + unit for count, unit in parts) != duration:
        raise ValueError(f"{duration!r} is no duration such as 5m or 1h30m")
    return sum(int(count) * _UNITS_S[unit] for count, unit in parts)


def hastened(rules: dict[str, Any], *, factor: float) -> dict[str, Any]:
    """A file of rules with its windows, waits and thresholds in seconds divided by ``factor``.

    A threshold in seconds is a number followed by ``# s`` at the end of its line.

    Example:
        >>> rule = {"alert": "A", "expr": "rate(a_total[1h]) > 0 and age_seconds > 7200 # s", "for": "30m"}
        >>> hastened({"groups": [{"name": "g", "rules": [rule]}]}, factor=600)["groups"][0]["rules"][0]
        {'alert': 'A', 'expr': 'rate(a_total[6000ms]) > 0 and age_seconds > 12 # s', 'for': '3000ms'}
    """
    groups = [{**group, "rules": [_rule(rule, factor) for rule in group["rules"]]} for group in rules["groups"]]
    return {**rules, "groups": groups}


def _rule(rule: dict[str, Any], factor: float) -> dict[str, Any]:
    def shortened(found: re.Match[str]) -> str:
        return f"[{_divided(found.group(1), factor, WINDOW_MIN_S)}]"

    expression = _THRESHOLD.sub(lambda found: f"{max(WINDOW_MIN_S, int(found.group()) / factor):g}", rule["expr"])
    quick = {**rule, "expr": _WINDOW.sub(shortened, expression)}
    if "for" in rule:
        quick["for"] = _divided(rule["for"], factor, FOR_MIN_S)
    return quick


def _divided(duration: str, factor: float, least_s: float) -> str:
    return f"{round(max(least_s, seconds_of(duration) / factor) * 1000)}ms"
