"""The rules of the house hold for every file, and each rule refuses a sample that breaks it.

Where a rule has a reviewed list, a line there is a decision that a reviewer made, with its reason.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

import penstock
from tests import tidy_rules as rules
from tests.tidy_rules import Source

ROOT = Path(__file__).parents[1]

# "path::function": why this loop must survive any error. It counts and logs what it caught.
REVIEWED_BROAD_EXCEPTS: dict[str, str] = {
    "src/penstock/adapters/embedded/writing.py::_run": "the ledger's writer: a failure stops admission and is retried",
    "src/penstock/api/application.py::_page": "a bug ends one request: logged with its id, counted as outcome error",
    "src/penstock/api/execution.py::_answer": "a bug ends one delivery: logged, and the job brought again, slowly",
    "src/penstock/api/inference.py::_guarded": "a bug ends one request: logged with its id, counted as outcome error",
    "src/penstock/lanes/queueing.py::_run": "a bug stops one job: logged with its id, counted, and the job tried again",
}

# "path::function": why this test must wait for the clock of the machine.
REVIEWED_SLEEPS: dict[str, str] = {
    "tests/system/images.py::__init__": "an engine tells nobody when it is up",
    "tests/system/images.py::try_embedded": "a container's log is read until the key is in it",
    "tests/simulation/scheduling.py::wait": "in virtual time, on a loop of its own that waits for nothing",
    "tests/simulation/world.py::run": "the same",
    "tests/simulation/world.py::_rest": "the same",
    "tests/adapters/redis/test_failovers.py::_insist": "a load goes on while a server is replaced",
    "tests/adapters/redis/test_failovers.py::until_answered": "a server is back when it answers",
    "tests/adapters/redis/test_failovers.py::until_true": "a load grows by itself",
    "tests/system/fault_proxy.py::_forward": "the delay is the fault",
    "tests/adapters/redis/test_failures.py::known": "another store tells Redis again when it is back; Redis is asked",
    "tests/adapters/redis/test_failures.py::usable": "Redis is back when a call is answered; it is asked until one is",
    "tests/adapters/redis/test_losses.py::run": "an outbox is read again and again, as a keeper does",
    "tests/polling.py::until": "asks services and processes, which tell nobody of each change",
    "tests/system/services.py::wait_until": "polls a server that says nowhere when it is ready",
    "tests/system/services.py::kill": "polls until a killed server's grandchild has let go of its port",
    "tests/system/drill.py::_watched": "Prometheus is asked until an alert fires, some time after its cause",
    "tests/test_wheel.py::wait_until_ready": "another program starts; its port is asked until it answers",
}

# Tests about no layer of the package.
TESTS_OF_NO_LAYER = frozenset(
    {
        "conftest",
        "docs",
        "docs_commands",
        "chart",
        "cluster",
        "counts",
        "docs_rules",
        "examples",
        "fuzzing",
        "operations",
        "polling",
        "tidy",
        "tidy_rules",
        "site",
        "wheel",
        "simulation",
        "system",
        "benchmarks",
    }
)

# Loaded by name: commands of the command line, migrations, and what `python -m` runs.
FOUND_BY_NAME = re.compile(r"^penstock\.cli\.|\.migrations\.|__main__$")


@cache
def tracked() -> tuple[str, ...]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return tuple(sorted(path for path in set(listed.stdout.splitlines()) if (ROOT / path).is_file()))


@cache
def texts() -> tuple[Source, ...]:
    found = []
    for path in tracked():
        content = (ROOT / path).read_bytes()
        if b"\0" not in content:
            found.append(Source(path, content.decode()))
    return tuple(found)


def python(*folders: str) -> tuple[Source, ...]:
    return tuple(source for source in texts() if source.path.endswith(".py") and source.path.startswith(folders))


def everywhere() -> tuple[Source, ...]:
    return python("src/", "tests/", "benchmarks/")


def findings(rule: Callable[[Source], Iterable[str]], sources: Iterable[Source]) -> list[str]:
    return [finding for source in sources for finding in rule(source)]


def test_no_file_is_longer_than_400_lines() -> None:
    assert findings(rules.too_long, everywhere()) == []


def test_no_function_is_longer_than_60_lines() -> None:
    assert findings(rules.long_functions, everywhere()) == []


def test_every_module_says_why_it_exists() -> None:
    assert findings(rules.no_module_docstring, everywhere()) == []


def test_everything_public_has_a_docstring() -> None:
    documented = rules.documented_methods(python("src/"))
    assert findings(lambda source: rules.no_public_docstring(source, documented), python("src/")) == []


def test_nothing_catches_every_exception_but_reviewed_loops() -> None:
    assert findings(lambda source: rules.broad_excepts(source, REVIEWED_BROAD_EXCEPTS), everywhere()) == []


def test_nothing_prints_outside_console_and_cli() -> None:
    printers = ("src/penstock/console/", "src/penstock/cli/")
    assert findings(rules.prints, [s for s in python("src/") if not s.path.startswith(printers)]) == []


def test_no_test_sleeps_but_reviewed_ones() -> None:
    assert findings(lambda source: rules.sleeps(source, REVIEWED_SLEEPS), python("tests/")) == []


def test_numbers_name_their_unit() -> None:
    assert findings(rules.vague_numbers, python("src/")) == []


def test_nothing_is_left_unfinished() -> None:
    assert findings(rules.unfinished, texts()) == []


def test_no_file_names_a_path_of_one_machine() -> None:
    assert findings(rules.machine_paths, texts()) == []


def test_no_file_holds_an_email_address() -> None:
    assert findings(rules.emails, texts()) == []


def test_no_file_names_a_registry_or_a_download() -> None:
    assert findings(rules.registries, texts()) == []


def test_no_folder_has_a_name_that_says_nothing() -> None:
    assert list(rules.vague_folders(tracked())) == []


def test_every_test_mirrors_a_part_of_the_package() -> None:
    layers = frozenset(module.name for module in pkgutil.iter_modules(penstock.__path__))
    paths = [source.path for source in python("tests/") if source.path != "tests/__init__.py"]
    assert list(rules.strays(paths, layers, TESTS_OF_NO_LAYER)) == []


def test_the_drawn_tree_of_errors_is_the_tree_of_classes() -> None:
    source = next(source for source in texts() if source.path == "src/penstock/errors.py")
    assert rules.drawn_tree(source.text) == rules.class_tree(source)


def test_locks_carry_hashes_and_no_addresses() -> None:
    locks = [s for s in texts() if s.path.startswith("requirements/") and s.path.endswith(".txt")]
    assert len(locks) == 4
    assert findings(rules.bad_lock, locks) == []


def test_what_is_served_is_what_was_tested() -> None:
    pins = {
        name: set(re.findall(r"^[a-z0-9._-]+==\S+", (ROOT / "requirements" / name).read_text(), re.MULTILINE))
        for name in ("serve.txt", "dev.txt")
    }
    assert pins["serve.txt"] - pins["dev.txt"] == set()


def test_every_exported_name_exists() -> None:
    missing = []
    for found in pkgutil.walk_packages(penstock.__path__, "penstock."):
        if not FOUND_BY_NAME.search(found.name):
            module = importlib.import_module(found.name)
            missing += [f"{found.name}.{name}" for name in getattr(module, "__all__", ()) if not hasattr(module, name)]
    assert missing == []


def test_every_module_is_imported_by_another() -> None:
    assert list(rules.unused_modules(python("src/"), found_by_name=FOUND_BY_NAME)) == []


def sample(text: str) -> Source:
    return Source("src/penstock/sample.py", text)


LONG_FUNCTION = "def far() -> None:\n" + "    x = 1\n" * 61
DOWNLOAD = "https://host.test/penstock" + ".whl"

BROKEN: list[tuple[str, Callable[[Source], Iterator[str]], str]] = [
    ("long file", rules.too_long, "x = 1\n" * 401),
    ("long function", rules.long_functions, LONG_FUNCTION),
    ("no module docstring", rules.no_module_docstring, "x = 1"),
    ("no docstring on a function", rules.no_public_docstring, "def open(): ..."),
    ("no docstring on a method", rules.no_public_docstring, "class A:\n    '''A.'''\n    def open(self): ..."),
    ("except Exception", lambda s: rules.broad_excepts(s, {}), "try:\n    x\nexcept Exception:\n    y"),
    ("except in a tuple", lambda s: rules.broad_excepts(s, {}), "try:\n    x\nexcept (OSError, BaseException):\n    y"),
    ("bare except", lambda s: rules.broad_excepts(s, {}), "def f():\n    try:\n        x\n    except:\n        y"),
    ("print", rules.prints, "print('x')"),
    ("time.sleep", lambda s: rules.sleeps(s, {}), "def f():\n    time.sleep(0.1)"),
    ("asyncio.sleep", lambda s: rules.sleeps(s, {}), "async def f():\n    await asyncio.sleep(delay_s)"),
    ("argument without unit", rules.vague_numbers, "def f(timeout: float | None = None): ..."),
    ("field without unit", rules.vague_numbers, "class A:\n    limit: int"),
    ("unfinished", rules.unfinished, "# TO" + "DO later"),
    ("path of a machine", rules.machine_paths, "open('/ho" + "me/ada/x')"),
    ("e-mail address", rules.emails, "ada@host" + ".org"),
    ("download address", rules.registries, DOWNLOAD),
    ("registry", rules.registries, "index = 'py" + "pi.org/simple'"),
    ("requirement without hash", rules.bad_lock, "a==1\n    # via b\n"),
    ("requirement without pin", rules.bad_lock, "a>=1 \\\n    --hash=sha256:00\n"),
    ("requirement with address", rules.bad_lock, "a==1 \\\n    --hash=sha256:00\n    # from https://host.test\n"),
]


@pytest.mark.parametrize(("rule", "text"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_each_rule_refuses_what_it_forbids(rule: Callable[[Source], Iterator[str]], text: str) -> None:
    assert len(list(rule(sample(text)))) == 1


SOUND: list[tuple[str, Callable[[Source], Iterator[str]], str]] = [
    ("blank lines", rules.too_long, "x = 1\n\n" * 400),
    ("long docstring", rules.long_functions, "def f():\n    '''A\n" + "    b\n" * 61 + "    '''\n    return 1"),
    ("private name", rules.no_public_docstring, "def _open(): ..."),
    ("port's method", lambda s: rules.no_public_docstring(s, frozenset({"o"})),
     "class A:\n  '''A.'''\n  def o(s): ..."),
    ("named error", lambda s: rules.broad_excepts(s, {}), "try:\n    x\nexcept OSError:\n    y"),
    ("cleaning up", lambda s: rules.broad_excepts(s, {}), "try:\n    x\nexcept BaseException:\n    y()\n    raise"),
    ("reviewed loop", lambda s: rules.broad_excepts(s, {"src/penstock/sample.py::f": "why"}),
     "def f():\n    try:\n        x\n    except Exception:\n        y"),
    ("giving way", lambda s: rules.sleeps(s, {}), "async def f():\n    await asyncio.sleep(0)"),
    ("unit named", rules.vague_numbers, "def f(timeout_s: float): ..."),
    ("not a number", rules.vague_numbers, "def f(limit: Limit): ..."),
    ("address with a password", rules.emails, "postgresql://app:word@db.internal.test/ledger"),
    ("example address", rules.emails, "ada@example.com"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "text"), [case[1:] for case in SOUND], ids=[case[0] for case in SOUND])
def test_each_rule_lets_pass_what_is_right(rule: Callable[[Source], Iterator[str]], text: str) -> None:
    assert list(rule(sample(text))) == []


def test_rules_over_many_files_refuse_what_they_forbid() -> None:
    assert len(list(rules.vague_folders(["src/penstock/utils/a.py", "src/penstock/helpers.py"]))) == 2
    assert list(rules.strays(["tests/nowhere/test_a.py"], frozenset({"quota"}), frozenset())) != []
    assert list(rules.strays(["tests/quota/test_a.py"], frozenset({"quota"}), frozenset())) == []
    assert list(rules.unused_modules([sample("x = 1")], found_by_name=FOUND_BY_NAME)) != []
    drawn = '"""\n    Base\n    ├── First     one\n    │   └── Inner\n    └── Last\n"""'
    assert rules.drawn_tree(drawn) == {"Base": "Exception", "First": "Base", "Inner": "First", "Last": "Base"}
