"""What the site needs beyond the pages: their order, and a page for each file outside docs/ that they link to.

A hook of MkDocs. A code host shows ``../README.md`` and ``../../config/redis/redis.conf`` as they lie; a site has only
what is below docs/. So each such file becomes a page of the site, under ``project/``, and the links are led there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = "docs"
OUTSIDE: Final = "project"
LINK: Final = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
FENCE: Final = re.compile(r"^( *)(```|~~~).*?^ *\2", re.MULTILINE | re.DOTALL)
FIRST: Final = ("README", "overview", "concepts", "setup", "operations")
"""Pages that come before the others of their folder, in this order."""
LANGUAGES: Final = {".conf": "ini", ".acl": "text", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".py": "python"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation is the tree of files."""
    config.nav = list(_branch(ROOT / DOCS))
    return config


def _branch(folder: Path) -> Iterator[Any]:
    def place(path: Path) -> tuple[int, str]:
        return (FIRST.index(path.stem) if path.stem in FIRST else len(FIRST), path.name)

    for path in sorted(folder.iterdir(), key=place):
        if path.is_dir() and any(path.rglob("*.md")):
            yield {heading(path.name): list(_branch(path))}
        elif path.suffix == ".md":
            yield str(path.relative_to(ROOT / DOCS))


def heading(name: str) -> str:
    """What a folder is called in the navigation.

    Example:
        >>> heading("02-core-components"), heading("api-service")
        ('Core components', 'API service')
    """
    words = re.sub(r"^\d+-", "", name).replace("-", " ")
    own = {"postgresql": "PostgreSQL", "rabbitmq": "RabbitMQ", "api service": "API service"}
    return own.get(words, words[:1].upper() + words[1:])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file outside that a page links to, and for what those link to."""
    left = [
        (f"{DOCS}/{file.src_uri}", Path(file.abs_src_path or "").read_text()) for file in files.documentation_pages()
    ]
    made: set[str] = set()
    while left:
        page, text = left.pop()
        for target in _outside(page, text):
            if target not in made:
                made.add(target)
                content = _content(target)
                files.append(File.generated(config, _uri(target), content=content, inclusion=InclusionLevel.NOT_IN_NAV))
                left.append((target, content if target.endswith(".md") else ""))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that leave docs/ to the pages made for what they name."""
    uri = page.file.src_uri
    at = _path(uri) if uri.startswith(f"{OUTSIDE}/") else f"{DOCS}/{uri}"
    if at is None:
        return markdown
    here = PurePosixPath(uri).parent

    def led(found: re.Match[str]) -> str:
        target = os.path.normpath(PurePosixPath(at).parent / found[2])
        to = target.removeprefix(f"{DOCS}/") if target.startswith(f"{DOCS}/") else _uri(target)
        return f"{found[1]}{os.path.relpath(to, here)}{found[3]}"

    return _beside_fences(markdown, lambda text: LINK.sub(led, text))


def _beside_fences(text: str, change: Any) -> str:
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence.group()]
        end = fence.end()
    return "".join([*parts, change(text[end:])])


def _outside(page: str, text: str) -> Iterator[str]:
    for _, target, _ in LINK.findall(FENCE.sub("", text)):
        path = os.path.normpath(PurePosixPath(page).parent / target)
        if not path.startswith((f"{DOCS}/", "..")) and (ROOT / path).exists():
            yield path


def _uri(path: str) -> str:
    """Where a file of the project lies in the site: pages keep their name, others become one."""
    return f"{OUTSIDE}/{path}" if path.endswith(".md") else f"{OUTSIDE}/{path}.file.md"


def _path(uri: str) -> str | None:
    """The file that a page of the site was made for; none where its links are the site's own."""
    return None if uri.endswith(".file.md") else uri.removeprefix(f"{OUTSIDE}/")


def _content(path: str) -> str:
    found = ROOT / path
    if path.endswith(".md"):
        return found.read_text()
    head = f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n"
    if found.is_dir():
        return head + "".join(f"- `{each.name}{'/' if each.is_dir() else ''}`\n" for each in sorted(found.iterdir()))
    return f"{head}````{LANGUAGES.get(found.suffix, '')}\n{found.read_text()}\n````\n"
