"""The documentation's site is built without a warning, has every page, and asks no other host for anything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder], cwd=ROOT, check=False,
        capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_navigation_and_found_by_the_search(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    expected = {str(page.with_name("index.html") if page.stem == "README" else page) for page in pages}
    navigation = set(re.findall(r'<a href="([^"#]+)" class="md-nav__link', (site / "index.html").read_text()))
    navigation |= {"index.html"}  # the page itself is shown as where one is
    assert expected - navigation == set()
    found = {
        entry["location"].partition("#")[0]
        for entry in json.loads((site / "search/search_index.json").read_text())["docs"]
    }
    assert expected - found == set()


ASKED = re.compile(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="((?:https?:)?//[^"]+)')


def test_no_page_asks_another_host_for_anything(site: Path) -> None:
    asked = {
        (str(page.relative_to(site)), url)
        for page in site.rglob("*.html")
        for url in re.findall(
            r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="((?:https?:)?//[^"]+)', page.read_text()
        )
    }
    assert asked == set()


def test_every_link_leads_to_a_file_of_the_site(site: Path) -> None:
    broken = [
        (str(page.relative_to(site)), target)
        for page in site.rglob("*.html")
        if page.name != "404.html"  # a server gives it for any address, so its links begin at the root
        for target in re.findall(r'<(?:a|img)\b[^>]*?(?:href|src)="([^"#?:]+)["#?]', page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []
