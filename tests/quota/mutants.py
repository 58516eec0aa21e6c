"""Are the tests good enough? Break the model in one place at a time, and see whether any of them notices.

One mutant for each comparison (its operator replaced by its neighbour) and for each write (left out) of every function
of ``penstock.quota``. The fast tests run against each in a process of its own, which loads the broken module in place
of the real one. Run it with ``make mutants`` or::

    python -m tests.quota.mutants --jobs 2 --only counters.py

A mutant that survives is killed by a better test, or explained in ``mutants_explained.txt``: one line for each,
``file | function | mutation | why nothing can tell the difference``.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "src" / "penstock" / "quota"
EXPLAINED = HERE / "mutants_explained.txt"
TIMEOUT_S = 120
OPTIONS = ("-x", "-q", "-p", "no:xdist", "--timeout=0", "--hypothesis-seed=0",
           "-W", "ignore::pytest.PytestAssertRewriteWarning",
           "--deselect", "tests/quota/test_invariants.py::TestQuota")  # fmt: skip
"""No bound of pytest's own: it would take the place of the one here, and what it raises may be caught."""
SLOWEST_LAST = (
    *("test_counters", "test_restore", "test_settle", "test_reserve", "test_jobs", "test_extend", "test_expiry"),
    *(
        "test_define",
        "test_limits",
        "test_pricing",
        "test_public_api",
        "test_estimate",
        "test_look",
        "test_enqueued",
        "test_sharding",
        "test_invariants_fail",
        "test_invariants",
    ),
)
TESTS = tuple(f"tests/quota/{each}.py" for each in SLOWEST_LAST)

_NEIGHBOURS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_BODIES = ("body", "orelse", "finalbody")


@dataclass(frozen=True)
class Mutant:
    """One broken version of one file."""

    file: str
    line: int
    function: str
    mutation: str
    source: str
    module: str = ""  # what is loaded from the source in a test's place; the file's own, if not said

    @property
    def key(self) -> str:
        """What the reviewed list names it by: no line number, so that it survives changes elsewhere."""
        return f"{self.file} | {self.function} | {self.mutation}"


def mutants_of(file: str, source: str) -> Iterator[Mutant]:
    """Every mutant of a module's source; several alike in one function are told apart by a number."""
    seen: dict[str, int] = {}
    for index in range(len(list(_sites(ast.parse(source))))):
        tree = ast.parse(source)
        function, node, place = list(_sites(tree))[index]
        mutation = _break(node, place)
        same = seen[f"{function}{mutation}"] = seen.get(f"{function}{mutation}", 0) + 1
        numbered = mutation if same == 1 else f"{mutation} (number {same})"
        yield Mutant(file, node.lineno, function, numbered, ast.unparse(ast.fix_missing_locations(tree)))


Site = tuple[str, ast.Compare | ast.stmt, tuple[list[ast.stmt], int] | int]


def _sites(tree: ast.Module) -> Iterator[Site]:
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Compare):
                for position in range(len(node.ops)):
                    yield function.name, node, position
            for name in _BODIES:
                body = getattr(node, name, None)
                if isinstance(body, list):
                    for position, statement in enumerate(body):
                        if _is_write(statement, function):
                            yield function.name, statement, (body, position)


def _is_write(statement: ast.stmt, function: ast.FunctionDef) -> bool:
    """Whether leaving it out changes state, or a name that has another value before."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    if isinstance(statement, ast.AugAssign | ast.Delete):
        return True
    if not isinstance(statement, ast.Assign):
        return False
    targets = [each for target in statement.targets for each in ast.walk(target)]
    if any(isinstance(each, ast.Attribute | ast.Subscript) for each in targets):
        return True
    names = {each.id for each in targets if isinstance(each, ast.Name)}
    written = [each.id for each in ast.walk(function) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)]
    return any(written.count(name) > 1 for name in names)


def _break(node: ast.Compare | ast.stmt, place: tuple[list[ast.stmt], int] | int) -> str:
    """Break the tree in place; answers in words what was done."""
    before = ast.unparse(node).replace("\n", " ")
    if isinstance(place, int):
        assert isinstance(node, ast.Compare)
        node.ops[place] = _NEIGHBOURS[type(node.ops[place])]()
        return f"{before}  ->  {ast.unparse(node)}"
    body, position = place
    body[position] = ast.copy_location(ast.Pass(), node)
    return f"without: {before}"


def all_mutants(only: str | None = None) -> list[Mutant]:
    """Those of every file of the package, or of one."""
    files = [each for each in sorted(PACKAGE.glob("*.py")) if only in (None, each.name)]
    return [mutant for each in files for mutant in mutants_of(each.name, each.read_text())]


def explained(listed: Path = EXPLAINED) -> dict[str, str]:
    """The reviewed list: which mutants nothing can tell from what is not broken, and why."""
    found = {}
    for line in listed.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            key, _, why = line.rpartition(" | ")
            found[key] = why
    return found


class _Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from a mutant's source."""

    def __init__(self, mutant: Mutant) -> None:
        self.name = mutant.module or f"penstock.quota.{mutant.file.removesuffix('.py')}"
        self.mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.mutant.source, f"<{self.mutant.file}, broken>", "exec"), vars(module))


def _start(mutant: Mutant, tests: Sequence[str], bound_s: int) -> int:
    """Run tests against a mutant in a child process; answers its process id."""
    child = os.fork()
    if child:
        return child
    signal.alarm(bound_s)  # a mutant that loops for ever is noticed too
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    import pytest

    for name in [name for name in sys.modules if name.partition(".")[0] in ("penstock", "tests")]:
        del sys.modules[name]  # what was imported before would be the sound one
    sys.meta_path.insert(0, _Loader(mutant))
    os._exit(int(pytest.main([*OPTIONS, *tests])))


def survivors_of(
    mutants: Sequence[Mutant], jobs: int, tests: Sequence[str] = TESTS, *, bound_s: int = TIMEOUT_S
) -> list[Mutant]:
    """Run all, so many at a time, with a line of progress."""
    import hypothesis.stateful  # noqa: F401 - loaded once, before the children are made
    import msgspec  # noqa: F401
    import pytest  # noqa: F401

    waiting, running, survivors = list(reversed(mutants)), dict[int, Mutant](), list[Mutant]()
    began_s = time.monotonic()
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            running[_start(mutant, tests, bound_s)] = mutant
        child, status = os.wait()
        mutant = running.pop(child)
        if os.waitstatus_to_exitcode(status) == 0:
            survivors.append(mutant)
            sys.stdout.write(f"\r\033[Ksurvives: line {mutant.line} of {mutant.key}\n")
        done = len(mutants) - len(waiting) - len(running)
        spent_s = time.monotonic() - began_s
        left_s = spent_s / done * (len(mutants) - done)
        sys.stdout.write(f"\r\033[K{done}/{len(mutants)} mutants, {len(survivors)} survive, {left_s:.0f} s left ")
        sys.stdout.flush()
    sys.stdout.write("\n")
    return survivors


def main() -> int:
    """Exit code 1 if a mutant survives that nobody explained, or an explanation explains nothing any more."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time (default: every core)")
    parser.add_argument("--only", metavar="FILE", help="one file of the package, e.g. counters.py")
    arguments = parser.parse_args()
    mutants = all_mutants(arguments.only)
    if not mutants:
        parser.error(f"{arguments.only} is no file of {PACKAGE.name}")
    whole = PACKAGE / mutants[0].file
    if not survivors_of([Mutant(whole.name, 1, "", "nothing broken", whole.read_text())], 1):
        parser.error("the tests fail on the model as it is; make them pass first")
    return report(mutants, survivors_of(mutants, arguments.jobs), EXPLAINED)


def report(mutants: Sequence[Mutant], survived: Sequence[Mutant], listed: Path) -> int:
    """Say which mutants survive that the reviewed list does not explain, and what it explains in vain; 1 if any."""
    survivors = {mutant.key: mutant for mutant in survived}
    known = explained(listed)
    tried = {mutant.file for mutant in mutants}
    unexplained = [mutant for key, mutant in survivors.items() if key not in known]
    idle = [key for key in known if key not in survivors and key.partition(" | ")[0] in tried]
    for mutant in unexplained:
        sys.stdout.write(f"UNEXPLAINED line {mutant.line} of {mutant.key}\n")
    for key in idle:
        sys.stdout.write(f"EXPLAINED, BUT KILLED OR GONE: {key}; remove it from {listed.name}\n")
    sys.stdout.write(
        f"{len(mutants)} mutants: {len(mutants) - len(survivors)} killed, {len(survivors)} survive, "
        f"{len(survivors) - len(unexplained)} of them explained\n"
    )
    return 1 if unexplained or idle else 0


if __name__ == "__main__":
    sys.exit(main())
