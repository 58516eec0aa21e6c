"""How ``penstock plan --setting`` is written: a name, and what differs from the configuration's own setting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from penstock.config.notation import NotationError, parse_amount, parse_duration
from penstock.config.walking import nearest
from penstock.errors import InvalidRequest
from penstock.planning.forecasting.autoscaler import Setting, Trigger
from penstock.planning.forecasting.loads import MILLISECOND_US

EXAMPLE = "quick: min=1 max=8 polling=5s cooldown=60s window=60s by=queue+tokens"
NONE = "none"


def read_setting(text: str, configured: Setting) -> Setting:
    """A setting, from its notation.

    Args:
        configured: Has what is not said.

    Raises:
        InvalidRequest: It is not in the notation, or no pool can have it.

    Example:
        >>> own = Setting(name="own", triggers=(Trigger.QUEUE,), replicas_min=0, replicas_max=4)
        >>> read_setting("warm: min=1", own).replicas_min
        1
    """
    name, colon, rest = text.partition(":")
    if not colon or not name.strip():
        raise InvalidRequest(f"--setting: found {text!r}, wanted a name, a colon and what differs: '{EXAMPLE}'")
    said: dict[str, Any] = {"name": name.strip()}
    for part in rest.split():
        word, _, value = part.partition("=")
        if word not in _READERS or not value:
            raise InvalidRequest(f"--setting {name}: found {part!r}; {nearest(word, _READERS)}; such as '{EXAMPLE}'")
        field, read = _READERS[word]
        try:
            said[field] = read(value)
        except NotationError as error:
            raise InvalidRequest(f"--setting {name}: {word}: {error}") from error
    try:
        return replace(configured, **said)
    except ValueError as error:
        raise InvalidRequest(f"--setting {error}") from error


def _duration_us(text: str) -> int:
    return parse_duration(text) * MILLISECOND_US


def _triggers(text: str) -> tuple[Trigger, ...]:
    if text == NONE:
        return ()
    try:
        return tuple(Trigger(each) for each in text.split("+"))
    except ValueError as error:
        wanted = ", ".join([*Trigger, "+".join(Trigger), NONE])
        raise NotationError(f"found {text!r}, wanted one of {wanted}; write `by={Trigger.QUEUE}`") from error


_READERS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "min": ("replicas_min", parse_amount),
    "max": ("replicas_max", parse_amount),
    "polling": ("polling_us", _duration_us),
    "cooldown": ("cooldown_us", _duration_us),
    "window": ("window_us", _duration_us),
    "by": ("triggers", _triggers),
}
