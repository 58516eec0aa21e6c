"""The documentation tells the truth: pages, links, commands, settings and metrics that it names exist."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import re
import subprocess
from functools import cache
from pathlib import Path, PurePosixPath

import pytest
import typer

import penstock.cli
from penstock.config.describing import schema
from tests import docs_rules as rules

ROOT = Path(__file__).parents[1]

# The documentation's tree, as it was designed. A page is here for good; whether it is written yet is in PENDING.
PAGES = frozenset(
    f"docs/{page}.md"
    for page in (
        "README",
        "ORGANIZATION",
        *(f"01-architecture/{page}" for page in ("overview", "data-flow", "quota")),
        *(f"02-core-components/bento/{page}" for page in ("overview", "concepts", "setup", "operations")),
        *(
            f"02-core-components/{component}/{page}"
            for component in ("api-service", "keda", "postgresql", "rabbitmq", "redis")
            for page in ("concepts", "setup", "operations")
        ),
        *(f"03-deployment/{page}" for page in ("kubernetes-setup", "helm-charts", "scaling")),
        *(f"04-operations/{page}" for page in ("monitoring", "alerting", "troubleshooting")),
    )
)
PENDING = frozenset(
    line for line in (ROOT / "tests/docs_pending.txt").read_text().splitlines() if line and not line.startswith("#")
)

MARKDOWN = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md"))
)


@cache
def commands() -> frozenset[str]:
    for module in pkgutil.iter_modules(penstock.cli.__path__):
        importlib.import_module(f"penstock.cli.{module.name}")
    found = set()
    for name, command in vars(typer.main.get_command(penstock.cli.app))["commands"].items():
        below = getattr(command, "commands", None)
        found.update({name} if below is None else {f"{name} {inner}" for inner in below})
    return frozenset(found)


@cache
def targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def sources() -> str:
    return "\n".join(path.read_text() for path in (ROOT / "src").glob("**/*.py"))


@cache
def readers() -> str:
    """Everything that reads variables of the environment."""
    patterns = ("src/**/*.py", "src/bento/*.go", "config/**/*.yaml", "manifests/**/*.yaml", "tests/**/*.py", "Makefile")
    others = "\n".join(path.read_text() for each in patterns for path in ROOT.glob(each)) + read("compose.yaml")
    return others + "\n".join(path.read_text() for path in (ROOT / "manifests/chart/templates").iterdir())


@cache
def functions_and_users() -> str:
    """What else is called like a metric: the quota's functions in Redis, and the users of the services."""
    files = ("config/redis/users.acl", "config/rabbitmq/definitions.json")
    names = re.findall(r"\bpenstock_[a-z]+", "".join(map(read, files)))
    return "".join(f'"{name}"' for name in names)


@cache
def alerts() -> frozenset[str]:
    files = (ROOT / "config/prometheus/rules").glob("*.yaml")
    return frozenset(re.findall(r"^ +- alert: (\w+)$", "\n".join(path.read_text() for path in files), re.MULTILINE))


def read(path: str) -> str:
    return (ROOT / path).read_text()


def test_every_page_is_written_or_still_to_come() -> None:
    written = {page for page in PAGES if (ROOT / page).exists()}
    assert PAGES - written == PENDING


def test_every_page_is_reached_from_the_readme() -> None:
    pages = {path for path in MARKDOWN if path.startswith("docs/")}
    assert sorted(pages - rules.reached("README.md", root=ROOT)) == []


@pytest.mark.parametrize("path", MARKDOWN)
def test_every_link_leads_somewhere(path: str) -> None:
    assert list(rules.broken_links(path, read(path), root=ROOT)) == []


@pytest.mark.parametrize("path", MARKDOWN)
def test_every_command_exists(path: str) -> None:
    assert list(rules.unknown_commands(path, read(path), commands=commands())) == []
    assert list(rules.unknown_targets(path, read(path), targets=targets())) == []


@pytest.mark.parametrize("path", MARKDOWN)
def test_every_setting_exists(path: str) -> None:
    whole = schema()
    assert list(rules.unknown_settings(path, read(path), exists=lambda at: rules.setting_exists(whole, at))) == []


@pytest.mark.parametrize("path", MARKDOWN)
def test_every_metric_exists(path: str) -> None:
    assert list(rules.unknown_metrics(path, read(path), source=sources() + functions_and_users())) == []


@pytest.mark.parametrize("path", MARKDOWN)
def test_every_alert_exists(path: str) -> None:
    assert list(rules.unknown_alerts(path, read(path), alerts=alerts())) == []


@pytest.mark.parametrize("path", MARKDOWN)
def test_every_variable_and_file_exists(path: str) -> None:
    text = read(path)
    assert list(rules.unknown_variables(path, text, source=readers())) == []
    assert list(rules.unknown_files(path, text, root=ROOT)) == []


@pytest.mark.parametrize("path", MARKDOWN)
def test_every_json_and_yaml_block_can_be_read(path: str) -> None:
    assert list(rules.unreadable_fences(path, read(path))) == []


def test_every_metric_of_bento_is_listed_and_every_one_that_an_alert_uses() -> None:
    page = read("docs/04-operations/monitoring.md")
    streams = "".join(path.read_text() for path in (ROOT / "config/bento").rglob("*.yaml"))
    ours = set(re.findall(r"metric: \{ type: \w+, name: (\w+) }", streams))
    assert len(ours) >= 7
    alerts = "".join(path.read_text() for path in (ROOT / "config/prometheus/rules").glob("*.yaml"))
    named = {f"`{name}`" for name in ours | set(re.findall(r"\b(?:input|output|processor)_[a-z]+\b", alerts))}
    assert sorted(name for name in named if name not in page) == []
    for label in re.findall(r'\b(?:input|output|processor)_[a-z]+\{label="(\w+)"', alerts):
        assert re.search(rf"label: {label}\b", streams), label


def test_the_drawn_tree_of_files_is_there_and_whole() -> None:
    block = re.search(r"```text\n(.*?)```", read("docs/ORGANIZATION.md"), re.DOTALL)
    assert block is not None
    drawn = set(rules.drawn_paths(block.group(1)))
    assert [path for path in sorted(drawn) if not (ROOT / path).exists()] == []
    packages = {f"src/penstock/{m.name}{'/' if m.ispkg else '.py'}" for m in pkgutil.iter_modules(penstock.__path__)}
    assert packages - drawn - {"src/penstock/__main__.py"} == set()
    there = folders_of("", "config", "docs", "manifests")
    assert [folder for folder in sorted(there) if not any(path.startswith(folder) for path in drawn)] == []


def folders_of(*places: str) -> set[str]:
    """The folders in each place that hold files of the project, as they are drawn: with a slash at the end."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    above = {str(folder) for path in listed.splitlines() for folder in PurePosixPath(path).parents}
    return {
        f"{folder}/"
        for folder in above
        if folder != "." and str(PurePosixPath(folder).parent) in (p or "." for p in places)
    }


def test_the_tree_on_the_front_page_is_there_and_whole() -> None:
    block = re.search(r"```text\n(.*?)```", read("docs/README.md"), re.DOTALL)
    assert block is not None
    drawn = {f"docs/{path}" for path in rules.drawn_paths(block.group(1))}
    assert [path for path in sorted(drawn) if not (ROOT / path).exists()] == []
    assert folders_of("docs", "docs/02-core-components") - drawn == set()
    for line in block.group(1).splitlines():
        folder, _, pages = line.strip().partition("/ ")
        for page in PAGES if re.match(r"0[134]-", folder) else ():
            if page.startswith(f"docs/{folder}/"):
                assert Path(page).stem in pages.replace("data flow", "data-flow"), page


@pytest.mark.parametrize("source", sorted((ROOT / "docs/images").glob("*.mmd")), ids=lambda path: str(path.stem))
def test_every_picture_is_drawn_from_its_source(source: Path) -> None:
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert f"<!-- source {digest} -->" in source.with_suffix(".svg").read_text(), "run docs/images/render.py"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[a](no.md)", "no such file"),
        ("[a](README.md#nowhere)", "no such heading"),
        ("`penstock fly --high`", "no such command"),
        ("```sh\n$ penstock fly\n```", "no such command"),
        ("`penstock keys fly`", "no such command"),
        ("`make fly`", "no such target"),
        ("`penstock_flights_total`", "no such metric"),
        ("PenstockFlies is firing", "no such alert"),
        ("`models.<name>.fly`", "no such setting"),
        ("`PENSTOCK_WINGS`", "no such variable"),
        ("`here/wings.py`", "no such file"),
        ("```json\n{,}\n```", "cannot be read"),
        ("```yaml\n{a: [\n```", "cannot be read"),
    ],
)
def test_each_rule_refuses_what_is_not_there(tmp_path: Path, text: str, wrong: str) -> None:
    (tmp_path / "README.md").write_text("# Here")
    (tmp_path / "here").mkdir()
    small: dict[str, object] = {
        "properties": {"models": {"additionalProperties": {"$ref": "#/$defs/Model"}}},
        "$defs": {"Model": {"properties": {"max_tokens": {}}}},
    }
    found = [
        *rules.broken_links("page.md", text, root=tmp_path),
        *rules.unknown_commands("page.md", text, commands={"serve", "keys create"}),
        *rules.unknown_targets("page.md", text, targets={"serve"}),
        *rules.unknown_metrics("page.md", text, source='Counter("penstock_requests")'),
        *rules.unknown_alerts("page.md", text, alerts={"PenstockStoreDown"}),
        *rules.unknown_settings("page.md", text, exists=lambda at: rules.setting_exists(small, at)),
        *rules.unknown_variables("page.md", text, source="PENSTOCK_DATA"),
        *rules.unknown_files("page.md", text, root=tmp_path),
        *rules.unreadable_fences("page.md", text),
    ]
    assert len(found) == 1
    assert wrong in found[0]


def test_a_page_without_a_link_to_it_is_not_reached(tmp_path: Path) -> None:
    for name, text in (("README.md", "[a](a.md#x)"), ("a.md", "[b](sub/../b.md)"), ("b.md", ""), ("lost.md", "")):
        (tmp_path / name).write_text(text)
    assert rules.reached("README.md", root=tmp_path) == {"README.md", "a.md", "b.md"}


def test_each_rule_lets_pass_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# A `heading`, here\n")
    text = (
        "[a](README.md#a-heading-here) [b](https://host.test) `penstock keys create x` `make serve`\n```json\n{}\n```\n"
    )
    small: dict[str, object] = {"properties": {"models": {"additionalProperties": {"properties": {"price": {}}}}}}
    assert list(rules.broken_links("page.md", text, root=tmp_path)) == []
    assert list(rules.unknown_commands("page.md", text, commands={"keys create"})) == []
    assert list(rules.unknown_targets("page.md", text, targets={"serve"})) == []
    assert list(rules.unknown_metrics("page.md", "`penstock_requests_total`", source='"penstock_requests"')) == []
    assert list(rules.unknown_alerts("page.md", "PenstockStoreDown", alerts={"PenstockStoreDown"})) == []
    assert rules.setting_exists(small, "models.<name>.price")
    assert list(rules.unreadable_fences("page.md", text)) == []
    named = "`PENSTOCK_DATA` `here/*.md` `here/a.md::name` `elsewhere/b.md`"
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.md").touch()
    assert list(rules.unknown_variables("page.md", named, source="PENSTOCK_DATA")) == []
    assert list(rules.unknown_files("page.md", named, root=tmp_path)) == []
