"""What every test shares: a seed that a failure prints, and no skip that nobody has reviewed.

At a desk a missing service is a skip. With ``CI=true`` in the environment a skip or an expected failure fails the run,
unless ``allowed_skips.txt`` names it together with the reason.
"""

from __future__ import annotations

import fnmatch
import gc
import os
import random
import zlib
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")
COLLECT_AFTER = 50_000  # what thousands of collected tests keep is much: looking at it often was a quarter of a run

hypothesis.settings.register_profile("penstock", deadline=None, print_blob=True)
hypothesis.settings.load_profile("penstock")


def allowed_skips(text: str) -> tuple[str, ...]:
    """Read the reviewed list: on each line a pattern of test ids, ``  # ``, and why skipping them is right."""
    patterns = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        pattern, separator, reason = line.partition("  # ")
        if not separator or not reason.strip():
            raise ValueError(f"{ALLOWED_SKIPS.name}: {line!r} gives no reason; write: <test id>  # <reason>")
        patterns.append(pattern.strip())
    return tuple(patterns)


def unreviewed(skipped: dict[str, str], patterns: tuple[str, ...]) -> dict[str, str]:
    """Give those of ``skipped`` (test id to reason) that no pattern of the reviewed list names."""
    return {
        test: reason
        for test, reason in skipped.items()
        if not any(fnmatch.fnmatchcase(test, pattern) for pattern in patterns)
    }


class SkipReview:
    """Collects what was skipped or failed as expected, and fails a CI run for those that nobody reviewed."""

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped or hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else getattr(report, "wasxfail", "")
            self.skipped[report.nodeid] = reason

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped[report.nodeid] = str(report.longrepr)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if os.environ.get("CI") == "true" and self._unreviewed() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for test, reason in sorted(self._unreviewed().items()):
            terminalreporter.write_line(f"skipped, and not in {ALLOWED_SKIPS.name}: {test}: {reason}", yellow=True)

    def _unreviewed(self) -> dict[str, str]:
        return unreviewed(self.skipped, allowed_skips(ALLOWED_SKIPS.read_text()))


def pytest_configure(config: pytest.Config) -> None:
    """Review skips once for the whole run: in the process that collects the reports of the others."""
    gc.disable()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipReview())


def pytest_collection_finish() -> None:
    """What was collected stays to the end, so the garbage collector passes it over."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A number to draw from; a failure prints it, and ``PENSTOCK_SEED=<number>`` in the environment replays it.

    Drawn anew at a desk. With ``CI=true`` it is the test's own, so that a change is judged by
    what it changes, not by what was drawn.
    """
    fixed = zlib.crc32(request.node.nodeid.encode())
    anew = os.environ.get("CI") != "true"
    drawn = int(os.environ.get("PENSTOCK_SEED") or (random.SystemRandom().getrandbits(32) if anew else fixed))
    request.node.user_properties.append(("seed", drawn))
    return drawn


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the seed to the report of a test that failed."""
    report = yield
    if report.failed:
        for name, drawn in item.user_properties:
            if name == "seed":
                report.sections.append(("seed", f"replay with PENSTOCK_SEED={drawn}"))
    return report
