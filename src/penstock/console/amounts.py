"""How numbers look to people: integers with separators, money exactly to what is shown."""

from __future__ import annotations

_NANOS = 1_000_000_000


def dollars(nanos: int) -> str:
    """Nano-dollars as dollars: every digit that counts, at least two, so that a column adds up.

    Example:
        >>> dollars(1_500_000_000), dollars(22_200), dollars(0), dollars(-5)
        ('$1.50', '$0.0000222', '$0.00', '-$0.000000005')
    """
    whole, part = divmod(abs(nanos), _NANOS)
    decimals = f"{part:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nanos < 0 else ''}${whole:,}.{decimals}"


def whole(number: int) -> str:
    """With thousands separated.

    Example:
        >>> whole(1234567)
        '1,234,567'
    """
    return f"{number:,}"
