"""Where tables go: as wide as the terminal, or as wide as they need where nobody's window is measured."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console

WIDTH_WITHOUT_TERMINAL = 200


def screen(stream: TextIO | None = None) -> Console:
    """A console on ``stream`` (standard output if None): files and pipes get whole lines, without colours."""
    stream = stream or sys.stdout
    return Console(file=stream, width=None if stream.isatty() else WIDTH_WITHOUT_TERMINAL, highlight=False)
