"""The identity of a limit as text, and the windows that it counts in.

Apart, since the ledger's rows name limits by this text for years: what is written here can be read back after the
limit has left the definitions. Months are civil-calendar arithmetic on integers, so that no twin needs a calendar.
"""

from __future__ import annotations

from penstock.quota.definitions import Kind, Limit, Metric

SECOND_MS = 1_000
MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000
WEEK_MS = 604_800_000
MONDAY_MS = 345_600_000  # 1970-01-05, the first Monday
MONTH_MS = 0  # a calendar month has no fixed length

_WORDS: dict[tuple[Metric | None, Kind, int, int], str] = {
    (Metric.TOKENS, Kind.RATE, SECOND_MS, 0): "second",
    (Metric.TOKENS, Kind.RATE, MINUTE_MS, 0): "minute",
    (Metric.REQUESTS, Kind.STRICT_RATE, SECOND_MS, 0): "second",
    (Metric.REQUESTS, Kind.STRICT_RATE, MINUTE_MS, 0): "minute",
    (None, Kind.WINDOW, HOUR_MS, 0): "hour",
    (None, Kind.WINDOW, DAY_MS, 0): "day",
    (None, Kind.WINDOW, WEEK_MS, MONDAY_MS): "week",
    (None, Kind.WINDOW, MONTH_MS, 0): "month",
    (None, Kind.CONCURRENCY, 0, 0): "concurrent",
    (None, Kind.ENQUEUED, 0, 0): "enqueued",
}
_MEANINGS = {
    (metric if metric is not None else each, word): (kind, period_ms, anchor_ms)
    for (metric, kind, period_ms, anchor_ms), word in _WORDS.items()
    for each in Metric
}


def limit_id(limit: Limit) -> str:
    """The identity of a limit as text: ``owner/metric/period`` and, if it counts one model only, ``/model``.

    The cap is no part of it. Owner and metric contain no slash; a model may.

    Example:
        >>> limit_id(Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.RATE, period_ms=60_000, cap=1))
        'acme/tokens/minute'
        >>> limit_id(Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.STRICT_RATE, period_ms=60_000, cap=1))
        'acme/tokens/strict_rate-60000'
    """
    key = (limit.kind, limit.period_ms, limit.anchor_ms)
    word = _WORDS.get((limit.metric, *key)) or _WORDS.get((None, *key)) or _spelt_out(limit)
    text = f"{limit.owner}/{limit.metric.value}/{word}"
    return text if limit.model is None else f"{text}/{limit.model}"


def _spelt_out(limit: Limit) -> str:
    if limit.kind is Kind.WINDOW:
        return f"window-{limit.period_ms}-{limit.anchor_ms}"
    return f"{limit.kind.value}-{limit.period_ms}"


def parse_limit_id(text: str) -> Limit:
    """Read a limit's identity back from its text; the cap is 0, since the text does not carry it.

    Raises:
        ValueError: The text is no limit's id.

    Example:
        >>> parse_limit_id("acme:key:k1/cost/day/meta-llama/Llama-3.1-8B-Instruct").model
        'meta-llama/Llama-3.1-8B-Instruct'
    """
    owner, metric_text, word, *model = text.split("/", 3) if text.count("/") >= 2 else ("", "", "")
    try:
        metric = Metric(metric_text)
        kind, period_ms, anchor_ms = _MEANINGS.get((metric, word)) or _read_period(word)
    except ValueError as error:
        raise ValueError(f"{text!r} is no limit's id; expected owner/metric/period[/model]") from error
    return Limit(
        owner=owner,
        metric=metric,
        kind=kind,
        period_ms=period_ms,
        anchor_ms=anchor_ms,
        model=model[0] if model else None,
        cap=0,
    )


def _read_period(word: str) -> tuple[Kind, int, int]:
    kind_text, *numbers = word.split("-")
    kind = Kind(kind_text)
    if kind is Kind.WINDOW:
        period_text, anchor_text = numbers
        return kind, int(period_text), int(anchor_text)
    (period_text,) = numbers
    return kind, int(period_text), 0


def window_id(period_ms: int, anchor_ms: int, now_ms: int) -> int:
    """The number of the window that an instant falls in; for months, 12 x year + month - 1, in UTC.

    Example:
        >>> window_id(MONTH_MS, 0, 1_700_000_000_000) == 2023 * 12 + 10
        True
    """
    if period_ms == MONTH_MS:
        return _month_of_day(now_ms // DAY_MS)
    return (now_ms - anchor_ms) // period_ms


def window_ends_ms(period_ms: int, anchor_ms: int, window: int) -> int:
    """The first Unix millisecond after a window.

    Example:
        >>> window_ends_ms(MONTH_MS, 0, 1970 * 12) == 31 * DAY_MS
        True
    """
    if period_ms == MONTH_MS:
        return _first_day_of_month(window + 1) * DAY_MS
    return (window + 1) * period_ms + anchor_ms


def _month_of_day(day: int) -> int:
    """Days since 1970-01-01 to 12 x year + month - 1. Source: H. Hinnant, chrono-compatible date algorithms."""
    shifted = day + 719_468
    era, day_of_era = divmod(shifted, 146_097)
    year_of_era = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    months_since_march = (5 * day_of_year + 2) // 153
    return (year_of_era + era * 400) * 12 + months_since_march + 2


def _first_day_of_month(month: int) -> int:
    """12 x year + month - 1 to the days between 1970-01-01 and the first of that month. Source: the same."""
    year, months_since_march = divmod(month - 2, 12)
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * months_since_march + 2) // 5
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return era * 146_097 + day_of_era - 719_468
