"""The rules of the house, each as a function from a file to what is wrong with it.

``test_tidy.py`` applies them to every file of the project, and to samples that each must refuse. A rule belongs here
only if it can be decided from the text; what needs judgement is left to review.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
VAGUE_FOLDERS = frozenset({"utils", "util", "common", "helpers", "misc", "shared", "lib"})
VAGUE_NUMBERS = frozenset({"timeout", "limit", "size", "duration", "interval", "delay", "ttl"})

# Written in two halves, so that this file does not break its own rule.
_UNFINISHED = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b")
_MACHINE_PATH = re.compile(r"(?<![\w.:/~-])/(?:ro" r"ot|ho" r"me|wo" r"rk|Us" r"ers)/\w")
_EMAIL = re.compile(r"(?<![\w.:/+-])[\w.+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}\b(?!/)")
_EMAIL_ALLOWED = re.compile(r"\.(?:test|invalid|example)$|@example\.(?:com|org|net)$")
_REGISTRY = re.compile(
    r"pythonho" r"sted\.org|\bpypi\.o" r"rg|registry\.np" r"mjs|crates\.i" r"o\b|proxy\.gol" r"ang\.org"
    r"|deb\.deb" r"ian\.org|\b(?:ghcr|docker|quay)\.i" r"o\b|https?://\S+\.(?:whl|tar\.gz|deb|zip|gguf)\b"
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A file of the project: its path from the project's root, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    def at(self, line: int, found: str) -> str:
        return f"{self.path}:{line}: {found}"


Functions = ast.FunctionDef | ast.AsyncFunctionDef


def too_long(source: Source) -> Iterator[str]:
    """Lines that say something: blank ones are not counted."""
    lines = sum(1 for line in source.text.splitlines() if line.strip())
    if lines > FILE_LINES_MAX:
        yield source.at(1, f"{lines} lines, {FILE_LINES_MAX} allowed: split it by what changes together")


def long_functions(source: Source) -> Iterator[str]:
    """A docstring is not counted: explaining costs nothing."""
    for node in ast.walk(source.tree):
        if isinstance(node, Functions):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            lines = (node.body[-1].end_lineno or 0) - first.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield source.at(node.lineno, f"{node.name} has {lines} lines, {FUNCTION_LINES_MAX} allowed")


def no_module_docstring(source: Source) -> Iterator[str]:
    if source.tree.body and not ast.get_docstring(source.tree):
        yield source.at(1, "no module docstring: say why this file exists apart")


def documented_methods(sources: Iterable[Source]) -> frozenset[str]:
    """Names of methods that some class documents: an implementation need not repeat its port's words."""
    return frozenset(
        method.name
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, Functions) and ast.get_docstring(method)
    )


def no_public_docstring(source: Source, documented: frozenset[str] = frozenset()) -> Iterator[str]:
    for node in source.tree.body:
        if isinstance(node, Functions | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield source.at(node.lineno, f"{node.name} is public and has no docstring")
            if isinstance(node, ast.ClassDef):
                yield from _undocumented_methods(source, node, documented)


def _undocumented_methods(source: Source, owner: ast.ClassDef, documented: frozenset[str]) -> Iterator[str]:
    for method in owner.body:
        if isinstance(method, Functions) and not method.name.startswith("_"):
            overloaded = any(isinstance(d, ast.Attribute) and d.attr == "setter" for d in method.decorator_list)
            if not overloaded and method.name not in documented and not ast.get_docstring(method):
                yield source.at(method.lineno, f"{owner.name}.{method.name} is public and has no docstring")


def broad_excepts(source: Source, reviewed: Mapping[str, str]) -> Iterator[str]:
    """``reviewed`` holds ``path::function`` with the reason why that loop must survive anything.

    To clean up and raise again swallows nothing, and is left alone.
    """
    for name, node in _with_owner(source.tree):
        if isinstance(node, ast.ExceptHandler) and f"{source.path}::{name}" not in reviewed:
            if ast.unparse(node.body[-1]) == "raise":
                continue
            caught = [node.type] if not isinstance(node.type, ast.Tuple) else node.type.elts
            if any(one is None or ast.unparse(one) in ("Exception", "BaseException") for one in caught):
                yield source.at(node.lineno, f"{name} catches everything: name the errors, or have the loop reviewed")


def _with_owner(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        inner = node.name if isinstance(node, Functions) else owner
        yield inner, node
        yield from _with_owner(node, inner)


def prints(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield source.at(node.lineno, "print belongs to console and cli")


def sleeps(source: Source, reviewed: Mapping[str, str]) -> Iterator[str]:
    """``sleep(0)`` gives way and waits for nothing; anything else waits for the clock."""
    for name, node in _with_owner(source.tree):
        if isinstance(node, ast.Call) and f"{source.path}::{name}" not in reviewed:
            called = ast.unparse(node.func)
            if called in ("time.sleep", "asyncio.sleep", "sleep") and ast.unparse(node.args[0]) != "0":
                yield source.at(node.lineno, f"{name} sleeps: pass the time in, or wait for the event itself")


def vague_numbers(source: Source) -> Iterator[str]:
    """``timeout: float`` hides its unit; ``timeout_s: float`` and ``limit: Limit`` do not."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.arg):
            name, annotation = node.arg, node.annotation
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name, annotation = node.target.id, node.annotation
        else:
            continue
        numeric = annotation is not None and re.search(r"\b(?:int|float)\b", ast.unparse(annotation))
        if name in VAGUE_NUMBERS and numeric:
            yield source.at(node.lineno, f"`{name}` names no unit: {name}_s, {name}_ms, {name}_bytes, {name}_tokens")


def unfinished(source: Source) -> Iterator[str]:
    yield from _matches(source, _UNFINISHED, "finish it, or leave it out")


def machine_paths(source: Source) -> Iterator[str]:
    yield from _matches(source, _MACHINE_PATH, "a path of one machine")


def registries(source: Source) -> Iterator[str]:
    yield from _matches(source, _REGISTRY, "a registry's host or a download address")


def emails(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), 1):
        for found in _EMAIL.finditer(line):
            if not _EMAIL_ALLOWED.search(found.group()):
                yield source.at(number, f"{found.group()}: an e-mail address")


def _matches(source: Source, pattern: re.Pattern[str], why: str) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), 1):
        if found := pattern.search(line):
            yield source.at(number, f"{found.group()}: {why}")


def vague_folders(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if vague := VAGUE_FOLDERS.intersection(part.removesuffix(".py") for part in PurePosixPath(path).parts):
            yield f"{path}: {min(vague)} says nothing; name it by what it does"


def strays(tests: Iterable[str], layers: frozenset[str], others: frozenset[str]) -> Iterator[str]:
    """A test lies in ``tests/<layer>/`` or is ``tests/test_<layer>*.py``; ``others`` are about no layer."""
    for path in tests:
        first = PurePosixPath(path).parts[1]
        name = first.removeprefix("test_").removesuffix(".py")
        if name not in others and not any(name == layer or name.startswith(f"{layer}_") for layer in layers):
            yield f"{path}: mirrors nothing in src/penstock"


def drawn_tree(docstring: str) -> dict[str, str]:
    """Read a tree drawn with lines: each class with its base, the root with ``Exception``."""
    parents: list[tuple[int, str]] = []
    bases = {}
    for line in docstring.splitlines():
        if found := re.match(r"^( +(?:[│ ]|├── |└── )*)([A-Z]\w+)(?:\s{2,}|$)", line):
            column, name = len(found.group(1)), found.group(2)
            while parents and parents[-1][0] >= column:
                parents.pop()
            bases[name] = parents[-1][1] if parents else "Exception"
            parents.append((column, name))
    return bases


def class_tree(source: Source) -> dict[str, str]:
    return {node.name: ast.unparse(node.bases[0]) for node in source.tree.body if isinstance(node, ast.ClassDef)}


def bad_lock(source: Source) -> Iterator[str]:
    """Each requirement is pinned and carries hashes, and nothing says where from."""
    for entry in re.split(r"\n(?=\S)", "\n" + source.text):
        first = entry.strip().splitlines()[0] if entry.strip() else "#"
        if first.startswith("#"):
            continue
        if not re.match(r"^[a-z0-9._-]+==[\w.+!-]+", first):
            yield f"{source.path}: {first}: not a pinned name"
        elif "--hash=sha256:" not in entry:
            yield f"{source.path}: {first}: no hash"
        if "://" in entry or "--index-url" in entry or "--find-links" in entry:
            yield f"{source.path}: {first}: an address"


def module_of(path: str) -> str:
    return path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def unused_modules(sources: Iterable[Source], *, found_by_name: re.Pattern[str]) -> Iterator[str]:
    """Modules that no other module imports; ``found_by_name`` matches those that a program loads by their name."""
    imported: set[str] = set()
    modules = {}
    for source in sources:
        modules[module_of(source.path)] = source
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                imported.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module)
                imported.update(f"{node.module}.{alias.name}" for alias in node.names)
    for module, source in modules.items():
        package = source.path.endswith("__init__.py")
        if not package and module not in imported and not found_by_name.search(module):
            yield f"{source.path}: nothing imports it"
