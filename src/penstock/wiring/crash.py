"""Die at a named point, for the torture tests: what a kill at the worst moment leaves behind must be whole.

``PENSTOCK_CRASH_AT="committed:3"`` kills the process with SIGKILL when it reaches ``committed`` for the third time;
``"committed:3:freeze"`` stops it there with SIGSTOP, until somebody wakes it.
``PENSTOCK_CRASH_AT="@<file>"`` reads the same from a file, so that a process which is started again can be given
another point, and one of several processes a point that only it has. Whoever dies by it takes the file away: it
happens once, and a test sees that it has happened. Unset, which is always outside a test, nothing is
counted and nothing happens.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection
from pathlib import Path

from penstock.errors import ConfigurationError

VARIABLE = "PENSTOCK_CRASH_AT"
_SIGNALS = {"": signal.SIGKILL, "freeze": signal.SIGSTOP}


def crash_from(environment: str | None, points: Collection[str]) -> Callable[[str], None] | None:
    """What to call at each point, or None if no crash is wanted.

    Args:
        environment: The variable's value: ``point:n``, n from 1, ``point:n:freeze``, or ``@file``, whose point may be
            another process's.
        points: The names that exist.

    Raises:
        ConfigurationError: The value names no point, or no count.

    Example:
        >>> crash_from(None, ["committed"]) is None
        True
    """
    file = None
    if environment and environment.startswith("@"):
        file = Path(environment[1:])
        environment = file.read_text().strip() if file.exists() else ""
        if environment.partition(":")[0] not in points:
            return None
    if not environment:
        return None
    point, _, rest = environment.partition(":")
    count, _, what = rest.partition(":")
    if point not in points or not count.isdecimal() or int(count) < 1 or what not in _SIGNALS:
        raise ConfigurationError(
            (
                f"{VARIABLE}={environment}: expected point:n or point:n:freeze with n from 1 and "
                f"a point of {', '.join(points)}; unset it",
            )
        )
    left = int(count)

    def reached(here: str) -> None:
        nonlocal left
        if here == point:
            left -= 1
            if left == 0:
                if file is not None:
                    file.unlink(missing_ok=True)
                os.kill(os.getpid(), _SIGNALS[what])

    return reached
