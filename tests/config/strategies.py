"""Every limit that can be written as a sentence."""

from __future__ import annotations

from hypothesis import strategies as st

from penstock.config import Term
from penstock.quota.counters import AMOUNT_MAX as CAP_MAX
from penstock.quota.definitions import Kind, Metric
from penstock.quota.limits import DAY_MS, HOUR_MS, MINUTE_MS, MONDAY_MS, MONTH_MS, SECOND_MS, WEEK_MS
from penstock.quota.plans import RATE_PERIOD_MAX_MS

PERIODS_MS = {
    "second": (SECOND_MS, 0),
    "minute": (MINUTE_MS, 0),
    "hour": (HOUR_MS, 0),
    "day": (DAY_MS, 0),
    "week": (WEEK_MS, MONDAY_MS),
}


@st.composite
def terms(draw: st.DrawFn) -> Term:
    metric = draw(st.sampled_from(Metric))
    if metric is Metric.CONCURRENCY:
        cap = draw(st.integers(0, CAP_MAX))
        return Term(metric=metric, kind=Kind.CONCURRENCY, cap=cap)
    if metric is not Metric.COST and draw(st.integers(0, 9)) == 0:
        return Term(metric=metric, kind=Kind.ENQUEUED, cap=draw(st.integers(0, CAP_MAX)))
    if draw(st.booleans()):
        period_ms, anchor_ms = MONTH_MS, 0
    else:
        units = ["hour", "day", "week"] if metric is Metric.COST else list(PERIODS_MS)
        unit_ms, anchor_ms = PERIODS_MS[draw(st.sampled_from(units))]
        period_ms = unit_ms * draw(st.integers(1, 400))
        if RATE_PERIOD_MAX_MS < period_ms < HOUR_MS:
            period_ms = MINUTE_MS
    is_window = period_ms == MONTH_MS or period_ms >= HOUR_MS
    rate = Kind.STRICT_RATE if metric is Metric.REQUESTS else Kind.RATE
    if metric is Metric.COST and not is_window:
        period_ms = HOUR_MS
        is_window = True
    cap_max = CAP_MAX if is_window else CAP_MAX // period_ms
    cap = draw(st.integers(0, cap_max) | st.integers(0, 5000).map(lambda n: min(n * 1000, cap_max)))
    kind = Kind.WINDOW if is_window else rate
    return Term(metric=metric, kind=kind, cap=cap, period_ms=period_ms, anchor_ms=anchor_ms)
