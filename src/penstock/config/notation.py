"""How people write durations, amounts, prices and limits in penstock.yaml, and the way back.

Apart from the settings so that the command line, the pages and the errors can use the same words. Everything is
parsed in decimal arithmetic into integers: no float comes near a token or a dollar.

Every parser raises ``NotationError``, whose message says what was found, what is wanted, and a fix.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation, localcontext

from penstock.quota.counters import AMOUNT_MAX as CAP_MAX
from penstock.quota.definitions import Kind, Limit, Metric
from penstock.quota.limits import DAY_MS, HOUR_MS, MINUTE_MS, MONDAY_MS, MONTH_MS, SECOND_MS, WEEK_MS
from penstock.quota.plans import RATE_PERIOD_MAX_MS

NANOS_PER_USD = 10**9
PICOS_PER_USD = 10**12
TOKENS_PER_PRICE = 10**6

DURATION_PATTERN = r"^\d[\d_]*(\.\d+)?(ms|s|m|h|d)$"
AMOUNT_PATTERN = r"^\d[\d_]*(\.\d+)?([kKMB]|[eE]\+?\d{1,2})?$"
MONEY_PATTERN = r"^\d[\d_]*(\.\d+)?([eE][+-]?\d{1,2})?$"
LIMIT_PATTERN = (
    r"^\s*\d[\d_]*(\.\d+)?[kKMB]?\s*(concurrent|(tokens?|requests?)\s+enqueued"
    r"|(tokens?|requests?|usd)\s*(/|\s+per\s+)\s*(\d+\s*)?(seconds?|minutes?|hours?|days?|weeks?|month))\s*$"
)

_DURATION_UNITS_MS = {"ms": 1, "s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
_SUFFIXES = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_PERIODS_MS = {
    "second": SECOND_MS,
    "minute": MINUTE_MS,
    "hour": HOUR_MS,
    "day": DAY_MS,
    "week": WEEK_MS,
    "month": MONTH_MS,
}
_METRICS = {"token": Metric.TOKENS, "request": Metric.REQUESTS, "usd": Metric.COST}
_WORDS = {Metric.TOKENS: "tokens", Metric.REQUESTS: "requests", Metric.COST: "usd"}
_EXAMPLE = "`200k tokens/minute`, `300 usd/month`, `32 concurrent` or `2M tokens enqueued`"


class NotationError(ValueError):
    """What was found, what is wanted, and a fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A limit as a plan states it, before it has an owner.

    Args:
        metric: What is counted.
        kind: How; follows from the metric and the period.
        period_ms: Of a window or a bucket; 0 for the calendar month, for concurrency and for what is enqueued.
        anchor_ms: Where windows begin: weeks on Monday, UTC.
        cap: Tokens, requests, nano-dollars or requests in flight.
    """

    metric: Metric
    kind: Kind
    cap: int
    period_ms: int = 0
    anchor_ms: int = 0

    def limit(self, *, owner: str, model: str | None = None) -> Limit:
        """The limit of ``owner``, on one model or on all."""
        return Limit(
            owner=owner,
            metric=self.metric,
            kind=self.kind,
            cap=self.cap,
            period_ms=self.period_ms,
            anchor_ms=self.anchor_ms,
            model=model,
        )


def parse_duration(text: str) -> int:
    """Milliseconds of ``60s``, ``500ms``, ``10m``, ``24h``, ``7d`` or ``1.5s``.

    Example:
        >>> parse_duration('10m')
        600000
    """
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    if match is None:
        raise NotationError(f"found {text!r}, wanted a duration; write one such as `60s`, `500ms` or `24h`")
    number, unit = match.groups()
    if unit not in _DURATION_UNITS_MS:
        found = f"the unit {unit!r}" if unit else f"{text!r} without a unit"
        raise NotationError(f"found {found}, wanted ms, s, m, h or d; write `{number}s` for {number} seconds")
    with localcontext(prec=60):
        duration_ms = Decimal(number) * _DURATION_UNITS_MS[unit]
    if duration_ms != int(duration_ms):
        raise NotationError(f"found {text!r}, which is finer than a millisecond; round it")
    return int(duration_ms)


def format_duration(duration_ms: int) -> str:
    """The shortest exact notation of a duration, its inverse.

    Example:
        >>> format_duration(90_000), format_duration(600_000)
        ('90s', '10m')
    """
    if duration_ms:
        for unit, unit_ms in reversed(_DURATION_UNITS_MS.items()):
            if duration_ms % unit_ms == 0:
                return f"{duration_ms // unit_ms}{unit}"
    return "0s"


def parse_units(text: str) -> tuple[str, str]:
    """What a generic model's requests are counted by, and the input that ``element of INPUT`` names.

    Example:
        >>> parse_units('byte'), parse_units('element of pixels')
        (('byte', ''), ('element', 'pixels'))
    """
    per, of, tensor = text.partition(" of ")
    if (per in ("request", "byte", "usage") and not of) or (per == "element" and tensor.strip()):
        return per, tensor.strip()
    raise NotationError(f"found {text!r}, wanted request, byte, usage or `element of INPUT`; write `request`")


def parse_amount(text: str | int | Decimal) -> int:
    """A whole number of ``200k``, ``50M``, ``1.5M``, ``2B``, ``2_000_000`` or ``5e+07`` (as Helm may print it).

    Example:
        >>> parse_amount('1.5M')
        1500000
    """
    amount = _decimal_with_suffix(str(text))
    if amount != amount.to_integral_value():
        raise NotationError(f"found {str(text)!r}, wanted a whole number; round it")
    return int(amount)


def _decimal_with_suffix(text: str) -> Decimal:
    text = text.strip()
    wanted = "wanted an amount such as `8192`, `200k`, `1.5M` or `2_000_000`"
    if text[-1:] in ("m", "b") and re.fullmatch(AMOUNT_PATTERN, text[:-1] + text[-1].upper()):
        raise NotationError(f"found {text!r}, {wanted}; write `{text[:-1]}{text[-1].upper()}`")
    if not re.fullmatch(AMOUNT_PATTERN, text):
        raise NotationError(f"found {text!r}, {wanted}; write digits, with k, M or B for thousands, millions, billions")
    factor = _SUFFIXES.get(text[-1], 1)
    with localcontext(prec=100):
        return Decimal(text.rstrip("kKMB")) * factor


def format_amount(amount: int) -> str:
    """The canonical notation of an amount, exact, its inverse.

    Example:
        >>> format_amount(200_000), format_amount(1_500_000), format_amount(8192)
        ('200k', '1.5M', '8_192')
    """
    for suffix, unit, decimals in (("B", 10**9, 2), ("M", 10**6, 2), ("k", 10**3, 1)):
        if amount >= unit:
            if amount % (unit // 10**decimals) == 0:
                return f"{_plain(Decimal(amount) / unit)}{suffix}"
            break
    return f"{amount:_}"


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def parse_usd(text: str | int | Decimal, *, per_usd: int) -> int:
    """An exact integer of units, ``per_usd`` of which make a dollar.

    Example:
        >>> parse_usd('0.15', per_usd=1_000_000)  # dollars per million tokens, in pico-dollars per token
        150000
    """
    text = f"{text:f}" if isinstance(text, Decimal) else str(text).strip()
    if not re.fullmatch(MONEY_PATTERN, text):
        raise NotationError(f"found {text!r}, wanted dollars such as `0.15`; write a plain decimal number, not below 0")
    try:
        with localcontext(prec=100):
            units = Decimal(text) * per_usd
            whole = int(units) if units < 10**30 else 10**30
    except InvalidOperation as error:
        raise NotationError(f"found {text!r}, wanted dollars such as `0.15`; write a plain decimal number") from error
    if whole != units:
        decimals = len(str(per_usd)) - 1
        raise NotationError(f"found {text}, which has more than {decimals} decimals; round it, for sums stay exact")
    return whole


def format_usd(units: int, *, per_usd: int) -> str:
    """Dollars, exactly and without trailing zeros, the inverse of ``parse_usd``.

    Example:
        >>> format_usd(150_000, per_usd=1_000_000)
        '0.15'
    """
    with localcontext(prec=100):
        return _plain(Decimal(units) / per_usd)


def parse_limit(sentence: str) -> Term:
    """A limit, from the sentence that states it.

    ``/second`` and ``/minute`` are rates (of requests: strict rates), ``/hour`` and longer are windows, money is
    limited in windows only, ``N concurrent`` bounds requests in flight, ``N tokens enqueued`` (or requests) what was
    accepted to be answered later and has not begun. ``per`` may stand for the slash, and a
    count before the unit: ``1M tokens per 5 hours``.

    Raises:
        NotationError: It is no such sentence, or its cap is more than the counters hold exactly.

    Example:
        >>> parse_limit('200k tokens/minute').cap
        200000
    """
    text = " ".join(sentence.split())
    match = re.fullmatch(r"(\S*\d\S*?)\s*([A-Za-z$]+)(\s+enqueued)?(?:\s*(?:/|\bper\b)\s*(.*))?", _spaced(text))
    if match is None:
        raise NotationError(f"found {sentence!r}, wanted a limit; write it as {_EXAMPLE}")
    number, word, enqueued, period = match.groups()
    if word == "concurrent":
        return _concurrency(number, period, sentence)
    metric = _METRICS.get(word.removesuffix("s") if word != "usd" else word)
    if metric is None:
        raise NotationError(
            f"found {word!r} in {sentence!r}, wanted tokens, requests, usd or concurrent; write it as {_EXAMPLE}"
        )
    if enqueued is not None:
        return _enqueued(metric, number, period, sentence)
    if not period:
        raise NotationError(
            f"found {sentence!r} without a period, wanted one of second, minute, hour, day, week, month; "
            f"write `{number} {word}/minute` or `{number} {word}/month`"
        )
    period_ms, anchor_ms = _period(period, sentence)
    is_window = period_ms == MONTH_MS or period_ms >= HOUR_MS
    if not is_window:
        _check_rate(metric, period_ms, f"{number} {word}/hour", sentence)
    rate = Kind.STRICT_RATE if metric is Metric.REQUESTS else Kind.RATE
    return Term(
        metric=metric,
        kind=Kind.WINDOW if is_window else rate,
        cap=_cap(number, metric, CAP_MAX if is_window else CAP_MAX // period_ms, sentence),
        period_ms=period_ms,
        anchor_ms=anchor_ms,
    )


def _check_rate(metric: Metric, period_ms: int, fix: str, sentence: str) -> None:
    if metric is Metric.COST:
        raise NotationError(
            f"found {sentence!r}, wanted an hour or longer: money is limited in windows only; write `{fix}` or longer"
        )
    if period_ms > RATE_PERIOD_MAX_MS:
        most = RATE_PERIOD_MAX_MS // MINUTE_MS
        raise NotationError(f"found {sentence!r}, wanted at most {most} minutes, or an hour or longer; write `{fix}`")


def _cap(number: str, metric: Metric, cap_max: int, sentence: str) -> int:
    if metric is Metric.COST:
        dollars = _decimal_with_suffix(number) if number[-1:] in _SUFFIXES else number
        cap, most = parse_usd(dollars, per_usd=NANOS_PER_USD), f"{format_usd(cap_max, per_usd=NANOS_PER_USD)} usd"
    else:
        cap, most = parse_amount(number), str(cap_max)
    if cap > cap_max:
        raise NotationError(f"found {sentence!r}, which is more than counters hold exactly ({most}); lower it")
    return cap


def _spaced(text: str) -> str:
    """Part an amount from the word that follows it directly: ``32concurrent``, ``200ktokens`` stay readable."""
    return re.sub(r"^([\d_.]+[kKMB]?)(tokens?|requests?|usd|concurrent)\b", r"\1 \2", text)


def _concurrency(number: str, period: str | None, sentence: str) -> Term:
    if period is not None:
        raise NotationError(
            f"found {sentence!r}, wanted no period: it bounds requests in flight; write `{number} concurrent`"
        )
    cap = _cap(number, Metric.CONCURRENCY, CAP_MAX, sentence)
    return Term(metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY, cap=cap)


def _enqueued(metric: Metric, number: str, period: str | None, sentence: str) -> Term:
    if period is not None or metric is Metric.COST:
        raise NotationError(
            f"found {sentence!r}, wanted tokens or requests without a period: it bounds what waits to be answered "
            f"later; write `{number} tokens enqueued`"
        )
    return Term(metric=metric, kind=Kind.ENQUEUED, cap=_cap(number, metric, CAP_MAX, sentence))


def _period(text: str, sentence: str) -> tuple[int, int]:
    match = re.fullmatch(r"(?:(\d{1,6})\s*)?([a-z]+?)s?", text.strip())
    count, unit = (int(match[1] or 1), match[2]) if match else (0, "")
    if unit not in _PERIODS_MS or count == 0:
        raise NotationError(
            f"found the period {text!r} in {sentence!r}, wanted second, minute, hour, day, week or month; "
            f"write `/minute` or `/month`"
        )
    if unit == "month":
        if count != 1:
            raise NotationError(
                f"found {count} months in {sentence!r}, wanted one calendar month; "
                f"write `/month`, or `/{30 * count} days` for a fixed period"
            )
        return MONTH_MS, 0
    return _PERIODS_MS[unit] * count, MONDAY_MS if unit == "week" else 0


def format_limit(term: Term | Limit) -> str:
    """The canonical sentence of a limit: ``parse_limit`` of it gives the same term.

    Example:
        >>> format_limit(parse_limit('0.2M tokens per minute'))
        '200k tokens/minute'
    """
    if term.metric is Metric.CONCURRENCY:
        return f"{format_amount(term.cap)} concurrent"
    if term.kind is Kind.ENQUEUED:
        return f"{format_amount(term.cap)} {_WORDS[term.metric]} enqueued"
    is_cost = term.metric is Metric.COST
    amount = format_usd(term.cap, per_usd=NANOS_PER_USD) if is_cost else format_amount(term.cap)
    return f"{amount} {_WORDS[term.metric]}/{format_period(term)}"


def format_period(term: Term | Limit) -> str:
    """``minute``, ``5 hours``, ``week``, ``month``: the period of a limit that has one."""
    if term.period_ms == MONTH_MS:
        return "month"
    is_week = term.anchor_ms == MONDAY_MS
    for unit, unit_ms in (("week", WEEK_MS), ("day", DAY_MS), ("hour", HOUR_MS), ("minute", MINUTE_MS)):
        if term.period_ms % unit_ms == 0 and (unit != "week" or is_week):
            count = term.period_ms // unit_ms
            return unit if count == 1 else f"{count} {unit}s"
    count = term.period_ms // SECOND_MS
    return "second" if count == 1 else f"{count} seconds"
