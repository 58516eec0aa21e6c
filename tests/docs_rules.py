"""What a page of the documentation must keep, each rule a function from a page's text to what is wrong with it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Set
from pathlib import Path, PurePosixPath

import yaml

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^(?: *)(```|~~~)(\w*)[^\n]*\n(.*?)^(?: *)\1", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_COMMAND = re.compile(r"^(?:\$ )?(?:[\w./]*/)?penstock((?: [a-z][a-z-]*)+)")
_TARGET = re.compile(r"^(?:\$ )?make((?: [a-z][a-z-]*)+)")
_METRIC = re.compile(r"^penstock_[a-z_]+$")
_ALERT = re.compile(r"\bPenstock[A-Z]\w+")
_VARIABLE = re.compile(r"\bPENSTOCK_[A-Z0-9_]*[A-Z0-9]\b")
_FILE = re.compile(r"((?:[\w.*-]+/)+[\w.*-]*)(?:::\w+)?")
_SECTIONS = r"models|plans|organisations|server|auth|stores|kubernetes|global"


def anchors(text: str) -> frozenset[str]:
    """The anchors of a page's headings, as code hosts make them."""
    found: dict[str, int] = {}
    names = []
    for heading in re.findall(r"^#{1,6} (.+)$", _FENCE.sub("", text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).strip().lower()
        slug = slug.replace(" ", "-")
        names.append(slug if slug not in found else f"{slug}-{found[slug]}")
        found[slug] = found.get(slug, 0) + 1
    return frozenset(names)


def broken_links(path: str, text: str, *, root: Path) -> Iterator[str]:
    """Links to files and headings of this project that are not there."""
    for target in _LINK.findall(_FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (root / path).parent / file if file else root / path
        if not found.exists():
            yield f"{path}: {target}: no such file"
        elif anchor and found.suffix == ".md" and anchor not in anchors(found.read_text()):
            yield f"{path}: {target}: no such heading"


def reached(first: str, *, root: Path) -> frozenset[str]:
    """The pages that can be reached from ``first`` by links, as paths below ``root``."""
    found, left = {first}, [first]
    while left:
        path = left.pop()
        for target in _LINK.findall(_FENCE.sub("", (root / path).read_text())):
            page = os.path.normpath(PurePosixPath(path).parent / target.partition("#")[0])
            if page.endswith(".md") and page not in found and (root / page).exists():
                found.add(page)
                left.append(page)
    return frozenset(found)


def code(text: str) -> Iterator[str]:
    """What a page shows as code: each span, and each line of its fences."""
    for _, _, body in _FENCE.findall(text):
        yield from (line.strip() for line in body.splitlines())
    yield from _SPAN.findall(_FENCE.sub("", text))


def unknown_commands(path: str, text: str, *, commands: Set[str]) -> Iterator[str]:
    """``penstock a b`` where neither ``a b`` nor ``a`` (with ``b`` as its argument) is a command.

    A command of a group is in ``commands`` as "group command", the group itself is not.
    """
    for shown in code(text):
        if found := _COMMAND.match(shown):
            words = found.group(1).split()
            if not {words[0], " ".join(words[:2])} & commands:
                yield f"{path}: `{shown}`: no such command"


def unknown_targets(path: str, text: str, *, targets: Set[str]) -> Iterator[str]:
    """``make x`` where the Makefile has no ``x``."""
    for shown in code(text):
        if found := _TARGET.match(shown):
            for target in found.group(1).split():
                if target not in targets:
                    yield f"{path}: `{shown}`: no such target"


def unknown_metrics(path: str, text: str, *, source: str) -> Iterator[str]:
    """Names of metrics that no source text has; a counter may be registered without its ``_total``."""
    for shown in code(text):
        name = re.sub(r"(_total|_bucket|_count|_sum)$", "", shown)
        if _METRIC.match(shown) and f'"{name}' not in source:
            yield f"{path}: `{shown}`: no such metric"


def unknown_alerts(path: str, text: str, *, alerts: Set[str]) -> Iterator[str]:
    """Names of alerts that no rule has; ``PenstockX`` is an alert's, wherever it stands."""
    for shown in sorted(set(_ALERT.findall(text))):
        if shown not in alerts:
            yield f"{path}: {shown}: no such alert"


def unknown_variables(path: str, text: str, *, source: str) -> Iterator[str]:
    """Variables of the environment, ``PENSTOCK_...``, that no source text reads."""
    for name in sorted({name for shown in code(text) for name in _VARIABLE.findall(shown)}):
        if name not in source:
            yield f"{path}: `{name}`: no such variable"


def unknown_files(path: str, text: str, *, root: Path) -> Iterator[str]:
    """Paths below a folder of the project, such as ``src/penstock``, that are not there; ``*`` may stand for some."""
    for shown in _SPAN.findall(_FENCE.sub("", text)):
        found = _FILE.fullmatch(shown)
        if found and (root / shown.partition("/")[0]).is_dir() and not any(root.glob(found[1].rstrip("/"))):
            yield f"{path}: `{shown}`: no such file"


def unknown_settings(path: str, text: str, *, exists: Callable[[str], bool]) -> Iterator[str]:
    """Settings written as a path, such as ``models.<name>.max_tokens``, that the configuration does not have."""
    for shown in _SPAN.findall(_FENCE.sub("", text)):
        if re.fullmatch(rf"(?:{_SECTIONS})(?:\.[\w<>*/-]+)+", shown) and not exists(shown):
            yield f"{path}: `{shown}`: no such setting"


def unreadable_fences(path: str, text: str) -> Iterator[str]:
    """JSON and YAML that cannot be read."""
    for _, language, body in _FENCE.findall(text):
        try:
            if language == "json":
                json.loads(body)
            elif language in ("yaml", "yml"):
                list(yaml.safe_load_all(body))
        except (ValueError, yaml.YAMLError) as error:
            yield f"{path}: a {language} block cannot be read: {error}"


def drawn_paths(text: str) -> Iterator[str]:
    """The paths of an indented tree: four spaces a level, folders end in a slash."""
    folders: list[str] = []
    for line in text.splitlines():
        if line.strip():
            depth = (len(line) - len(line.lstrip())) // 4
            name = line.split()[0]
            yield "".join(folders[:depth]) + name
            folders[depth:] = [name]


def setting_exists(schema: dict[str, object], setting: str) -> bool:
    """Follow a path through a JSON schema; where a mapping has free keys, any name fits."""
    nodes = [schema]
    for part in setting.split("."):
        nodes = [
            below
            for node in _variants(schema, nodes)
            if (below := _below(node, part)) is not None
        ]  # fmt: skip
    return bool(nodes)


def _variants(schema: dict[str, object], nodes: list[dict[str, object]]) -> Iterator[dict[str, object]]:
    for node in nodes:
        if isinstance(reference := node.get("$ref"), str):
            definitions = schema.get("$defs", {})
            assert isinstance(definitions, dict)
            yield from _variants(schema, [definitions[PurePosixPath(reference).name]])
        alternatives = node.get("anyOf") or node.get("oneOf") or []
        assert isinstance(alternatives, list)
        yield from _variants(schema, alternatives)
        yield node


def _below(node: dict[str, object], part: str) -> dict[str, object] | None:
    properties, free = node.get("properties"), node.get("additionalProperties")
    if isinstance(properties, dict) and part in properties:
        named: dict[str, object] = properties[part]
        return named
    if isinstance(free, dict):
        return free
    items = node.get("items")
    return items if isinstance(items, dict) and part in ("*", "<n>") else None
