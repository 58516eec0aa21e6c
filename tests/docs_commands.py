"""Commands that a page shows with what they print, so that a test can run them again.

A page marks a block with the stage that its commands run on, and writes ``...`` where the output may be anything::

    <!-- rerun: redis -->
    ```console
    $ redis-cli -u "$REDIS_URL" DBSIZE
    (integer) ...
    ```

A line that begins with ``$ `` is a command for ``sh``, one with ``> `` continues it, and the rest is its output.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_BLOCK = re.compile(r"^<!-- rerun: ([\w-]+) -->\n```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CONSOLE = re.compile(r"^```console$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Shown:
    """One command of a page, and the output under it."""

    stage: str
    command: str
    output: str


def shown(text: str) -> Iterator[Shown]:
    """Every command of a page, in order.

    Raises:
        ValueError: A block of commands names no stage, or begins with output.
    """
    blocks = _BLOCK.findall(text)
    if len(blocks) != len(_CONSOLE.findall(text)):
        raise ValueError("a ```console block is rerun by a test: write <!-- rerun: STAGE --> on the line before it")
    for stage, body in blocks:
        commands: list[list[str]] = []
        outputs: list[list[str]] = []
        for line in body.splitlines():
            if line.startswith("$ "):
                commands.append([line[2:]])
                outputs.append([])
            elif not commands:
                raise ValueError(f"{line!r} is output of no command; a command begins with '$ '")
            elif line.startswith("> ") and not outputs[-1]:
                commands[-1].append(line[2:])
            else:
                outputs[-1].append(line)
        for command, output in zip(commands, outputs, strict=True):
            yield Shown(stage, "\n".join(command), "\n".join(output))


def is_as_shown(printed: str, shown_output: str) -> bool:
    """Whether a command printed what a page shows; ``...`` there fits anything, over several lines if it is alone.

    Example:
        >>> is_as_shown("a 17\\n", "a ..."), is_as_shown("a\\nb\\nc", "a\\n...\\nc"), is_as_shown("a 17", "a 1")
        (True, True, False)
    """
    patterns = [_pattern(line) for line in _tidy(shown_output).split("\n")]
    return re.fullmatch("\n".join(patterns), _tidy(printed)) is not None


def _tidy(text: str) -> str:
    """Without the blanks that end lines, and without the blank lines around it."""
    return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")


def _pattern(line: str) -> str:
    if line.strip() == "...":
        return r"(?:.*\n)*?.*"
    return ".*".join(re.escape(part) for part in line.split("..."))
