"""Every stream of ``config/bento``, without services: linted, its inline tests run, started and stopped."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from penstock.adapters.redis.translating import partition_of
from tests.system.bento import CONFIGURATIONS, RESOURCES, Bento, found_bento
from tests.system.programs import answers_200

pytestmark = pytest.mark.slow

STREAMS = sorted(path.stem for path in CONFIGURATIONS.glob("*.yaml"))
FILES = sorted((*CONFIGURATIONS.glob("*.yaml"), *CONFIGURATIONS.glob("resources/*.yaml")))
LINES_MAX = 160


def bento(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [found_bento(), "-t", str(CONFIGURATIONS / "templates" / "*.yaml"), *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_every_file_is_linted_and_every_component_has_a_label() -> None:
    for file in FILES:
        done = bento("lint", "--labels", "--deprecated", str(file))
        assert (done.returncode, done.stderr) == (0, ""), f"{file.name}: {done.stdout}{done.stderr}"


def test_what_is_wrong_is_seen_by_the_lint(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((CONFIGURATIONS / "gateway.yaml").read_text().replace("body_bytes_max", "body_bytes"))
    assert bento("lint", str(wrong)).returncode != 0


def test_the_inline_tests_of_every_file_pass() -> None:
    for done in (
        bento("-r", str(RESOURCES), "test", *(str(file) for file in FILES if file.parent == CONFIGURATIONS)),
        bento("test", *(str(file) for file in FILES if file.parent != CONFIGURATIONS)),
    ):
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_wrong_is_seen_by_the_inline_tests(tmp_path: Path) -> None:
    wrong = tmp_path / "gateway.yaml"
    wrong.write_text((CONFIGURATIONS / "gateway.yaml").read_text().replace('!= "confirmed"', '== "nacked"'))
    done = bento("-r", str(RESOURCES), "test", str(wrong))
    assert done.returncode != 0
    assert "a job that was unknown is voided" in done.stdout + done.stderr


@pytest.mark.parametrize("stream", STREAMS)
def test_every_stream_starts_without_its_services_and_stops(stream: str, tmp_path: Path) -> None:
    started = Bento(tmp_path, stream, {"PENSTOCK_GATEWAY_ADDRESS": "127.0.0.1:0", "PENSTOCK_PEPPER": "p" * 40})
    ping = f"http://127.0.0.1:{started.operations_port}/ping"
    started.start(lambda: answers_200(ping))
    started.stop()
    assert "configuration" not in started.log.read_text().lower()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_stream_is_short_without_its_tests(file: Path) -> None:
    assert len(file.read_text().partition("\ntests:")[0].splitlines()) <= LINES_MAX


def test_bento_finds_an_organisations_partition_as_the_adapter_does() -> None:
    names = ["acme", "other", "a", "organisation-64-characters-" + "x" * 37]
    mapping = "root = this.map_each(name -> name.crc16() % 64)"
    done = subprocess.run(
        [found_bento(), "blobl", mapping],
        input=json.dumps(names),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == [partition_of(name) for name in names]
