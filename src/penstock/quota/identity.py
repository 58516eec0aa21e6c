"""Reservation ids: time-ordered, so that the ledger's partition can be read from the id alone."""

from __future__ import annotations


def reservation_id(now_ms: int, random_bits: int) -> str:
    """Make a reservation id: 12 hexadecimal digits of Unix milliseconds, then 20 of randomness.

    Args:
        now_ms: Unix milliseconds.
        random_bits: 80 bits; nothing here draws them.

    Example:
        >>> reservation_id(1_700_000_000_000, 255)
        '018bcfe56800000000000000000000ff'
    """
    return f"{now_ms:012x}{random_bits & (1 << 80) - 1:020x}"


def created_at_ms(reservation: str) -> int:
    """The Unix milliseconds that a reservation id begins with.

    Example:
        >>> created_at_ms('018bcfe56800000000000000000000ff')
        1700000000000
    """
    return int(reservation[:12], 16)
