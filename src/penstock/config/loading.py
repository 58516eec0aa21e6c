"""From files to a configuration, or to everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.config import checking
from penstock.config.reading import Problem, Tree, read_files, read_text
from penstock.config.settings import Configuration
from penstock.config.walking import walk
from penstock.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found in the files.

    Args:
        configuration: None if there are problems.
        problems: All of them, in the order of the files.
        warnings: What is allowed and will surprise; looked for only where there are no problems.
    """

    configuration: Configuration | None
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


def examine(paths: Sequence[Path]) -> Examination:
    """Read, merge and check files; nothing is raised."""
    return _examine(read_files(paths))


def examine_text(text: str, name: str = "penstock.yaml") -> Examination:
    """The same for text that is at hand."""
    return _examine(read_text(text, name))


def load(paths: Sequence[Path]) -> Configuration:
    """The configuration that files describe together; later ones win.

    Raises:
        ConfigurationError: With every problem, its line in brackets behind it.
    """
    examined = examine(paths)
    if examined.configuration is None:
        lines = (f"{problem} ({problem.place})" if problem.place else str(problem) for problem in examined.problems)
        raise ConfigurationError(tuple(lines))
    return examined.configuration


def _examine(tree: Tree) -> Examination:
    if tree.problems and not tree.values:
        return Examination(None, tuple(tree.problems), ())
    walked = walk(tree)
    found = tree.problems + walked.problems + checking.problems(walked, tree)
    if found:
        return Examination(None, tuple(_in_order(found)), ())
    return Examination(walked.configuration, (), tuple(_in_order(checking.warnings(walked.configuration, tree))))


def _in_order(found: list[Problem]) -> list[Problem]:
    """By file and line; what has no line comes first."""
    files = list(dict.fromkeys(problem.place.rpartition(":")[0] for problem in found))

    def order(problem: Problem) -> tuple[int, int]:
        file, _, line = problem.place.rpartition(":")
        return files.index(file), int(line) if line.isdigit() else 0

    return sorted(found, key=order)
