"""From files to one tree of plain values, remembering the line that each came from.

YAML is read by the core rules of YAML 1.2, as Helm's reader does for what matters here: only ``true`` and ``false``
are booleans, names are always text, and decimals stay decimals, so that a price of 0.15 is exactly that. Nothing
is interpolated from the environment.

Several files are merged as Helm merges values: mappings deeply, anything else replaced, and a later ``null``
removes what an earlier file said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import yaml

Location = tuple[str | int, ...]
DEPTH_MAX = 32
NODES_MAX = 100_000

N = TypeVar("N", bound=yaml.Node)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, or, as a warning, that may surprise.

    Args:
        location: Keys and list positions from the top.
        message: What was found, what is wanted, the fix.
        place: ``penstock.yaml:14``, or empty if no line can be named.
    """

    location: Location
    message: str
    place: str = ""

    def __str__(self) -> str:
        return f"{path_text(self.location)}: {self.message}" if self.location else self.message


@dataclass(slots=True)
class Tree:
    """What the files say together.

    Args:
        values: Mappings, lists, text, integers, decimals, booleans and None.
        places: File and line of each location.
        problems: What made a file, or a part of one, unreadable.
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Location, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, location: Location) -> str:
        """The line of a location, or of the nearest thing around it."""
        while location and location not in self.places:
            location = location[:-1]
        return self.places.get(location, "")


def path_text(location: Location) -> str:
    """A location as people write it; a name with a dot is quoted.

    Example:
        >>> path_text(('models', 'qwen2.5:7b', 'upstream', 0, 'url'))
        'models."qwen2.5:7b".upstream[0].url'
    """
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[^\s.\[\]\"']+", part) else f'"{part}"'
            text += f".{name}" if text else name
    return text


try:
    from yaml import CSafeLoader as _Loader  # five times as fast
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]


class _CoreLoader(_Loader):
    """Finds the tags of plain scalars by YAML 1.2's core rules instead of PyYAML's 1.1."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own shape


_CoreLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), None)
_CoreLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), None)
_CoreLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d[\d_]*$"), None)
_CoreLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*(\.\d*)?|\.\d+)([eE][-+]?\d{1,3})?$"), None
)
_CoreLoader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), None)


def read_files(paths: Iterable[Path]) -> Tree:
    """Read and merge files; later ones win. What cannot be read becomes a problem, and the rest is read."""
    merged = Tree()
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            message = f"{path}: there is no such file; give the path of a penstock.yaml"
            merged.problems.append(Problem((), message))
        except OSError as error:
            merged.problems.append(Problem((), f"{path}: cannot be read: {error.strerror}; check path and permissions"))
        except UnicodeDecodeError as error:
            message = f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8"
            merged.problems.append(Problem((), message))
        else:
            tree = read_text(text, str(path))
            merged.problems += tree.problems
            _merge(merged, tree, tree.values, merged.values, ())
    return merged


def read_text(text: str, name: str) -> Tree:
    """Read one file's text; ``name`` is how its lines are named."""
    tree = Tree()
    try:
        root = yaml.compose(text, Loader=_CoreLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        if "single document" in str(error):
            what = "it holds more than one document (`---`)"
        tree.problems.append(Problem((), f"{place}: cannot be read as YAML: {what}; fix this line first", place))
        return tree
    if root is None:
        return tree
    values = _Builder(tree, name).build(root, ())
    if isinstance(values, dict):
        tree.values = values
    else:
        message = f"{name}: found {kind_text(values)}, wanted a mapping; begin with `models:`"
        tree.problems.append(Problem((), message, f"{name}:1"))
    return tree


def kind_text(value: Any) -> str:
    """What a value is, in words, without saying it."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "a boolean"
    return "text" if isinstance(value, str) else "a number"


class _Builder:
    """Turns nodes into values, and notes lines and what is wrong on the way."""

    def __init__(self, tree: Tree, name: str) -> None:
        self._tree = tree
        self._name = name
        self._built = 0
        self._open = set[int]()  # nodes whose values are being made

    def build(self, node: yaml.Node, location: Location) -> Any:
        self._tree.places[location] = self._place(node)
        if len(location) > DEPTH_MAX:
            self._problem(node, location, f"is nested deeper than {DEPTH_MAX}")
            return None
        self._built += 1
        if self._built > NODES_MAX:
            if self._built == NODES_MAX + 1:
                self._problem(
                    node, location, f"is value {self._built:_} of this file, wanted fewer; repeat less by aliases"
                )
            return None
        if isinstance(node, yaml.MappingNode):
            return self._once(node, location, self._mapping)
        if isinstance(node, yaml.SequenceNode):
            return self._once(node, location, self._sequence)
        return self._scalar(node, location)

    def _once(self, node: N, location: Location, make: Callable[[N, Location], T]) -> T | None:
        """Make a value of a node that is in no value which is being made, as an alias could have it."""
        if id(node) in self._open:
            self._problem(node, location, "contains itself by an alias; write out what is meant")
            return None
        self._open.add(id(node))
        try:
            return make(node, location)
        finally:
            self._open.remove(id(node))

    def _sequence(self, node: yaml.SequenceNode, location: Location) -> list[Any]:
        return [self.build(item, (*location, position)) for position, item in enumerate(node.value)]

    def _place(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}"

    def _problem(self, node: yaml.Node, location: Location, message: str) -> None:
        self._tree.problems.append(Problem(location, message, self._place(node)))

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        values: dict[str, Any] = {}
        inherited: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, location, f"found {_node_text(key_node)} as a key, wanted a name")
                continue
            key = key_node.value
            if key_node.tag == "tag:yaml.org,2002:merge":
                self._inherit(inherited, value_node, location)
                continue
            line = key_node.start_mark.line + 1
            if key in lines:
                message = f"is written twice, first in line {lines[key]}; keep one"
                self._problem(key_node, (*location, key), message)
                continue
            lines[key] = line
            values[key] = self.build(value_node, (*location, key))
            self._tree.places[*location, key] = f"{self._name}:{line}"
        return {**inherited, **values}

    def _inherit(self, inherited: dict[str, Any], node: yaml.Node, location: Location) -> None:
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if isinstance(source, yaml.MappingNode):
                for key, value in (self._once(source, location, self._mapping) or {}).items():
                    inherited.setdefault(key, value)
            else:
                self._problem(node, location, f"`<<` found {_node_text(source)}, wanted a mapping to take over")

    def _scalar(self, node: yaml.Node, location: Location) -> Any:
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        text: str = node.value
        if tag in ("str", "merge"):
            return text
        if tag == "bool":
            return text.lower() == "true"
        if tag == "null":
            return None
        if tag not in ("int", "float"):
            self._problem(node, location, f"has the tag {node.tag}, which means nothing here; remove it")
            return None
        try:
            return int(text) if tag == "int" else Decimal(text)
        except (ArithmeticError, ValueError):
            self._problem(node, location, f"found {text[:40]!r}, which is no number; write digits")
            return None


def _node_text(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else "text"


def _merge(merged: Tree, source: Tree, values: dict[str, Any], into: dict[str, Any], location: Location) -> None:
    for key, value in values.items():
        here = (*location, key)
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merged.places[here] = source.place(here)
            _merge(merged, source, value, into[key], here)
            continue
        for place in _locations(into.get(key), here):
            merged.places.pop(place, None)
        if value is None and key in into:
            del into[key]
            continue
        into[key] = value
        merged.places |= {place: source.places[place] for place in _locations(value, here) if place in source.places}


def _locations(value: Any, location: Location) -> Iterator[Location]:
    yield location
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, below in items:
            yield from _locations(below, (*location, key))
