"""Instants as clients write and read them: ISO text, UTC, or Unix seconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from penstock.errors import InvalidRequest

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant_ms(name: str, text: str) -> int:
    """Unix seconds, an ISO date, or an ISO date and time; UTC unless it says otherwise.

    Args:
        name: The parameter's, for the error.

    Raises:
        InvalidRequest: It is none of them.
    """
    try:
        if text.isascii() and text.isdigit():
            return to_ms(datetime.fromtimestamp(int(text), UTC))
        instant = datetime.fromisoformat(text)
        return to_ms(instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC))
    except (ValueError, OverflowError, OSError):
        raise InvalidRequest(
            f"{name}: must be an ISO date (2025-11-01), an ISO time, or Unix seconds", param=name
        ) from None


def to_ms(instant: datetime) -> int:
    """Unix milliseconds."""
    return (instant - _EPOCH) // timedelta(milliseconds=1)


def iso(at_ms: int) -> str:
    """Unix milliseconds as ISO text in UTC.

    Example:
        >>> iso(1_762_000_000_000), iso(1_762_000_000_050)
        ('2025-11-01T12:26:40Z', '2025-11-01T12:26:40.050Z')
    """
    instant = _EPOCH + timedelta(milliseconds=at_ms)
    return instant.isoformat(timespec="milliseconds" if at_ms % 1000 else "seconds").replace("+00:00", "Z")
