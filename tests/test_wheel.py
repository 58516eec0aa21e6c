"""The wheel, installed into a clean environment outside the project from the hashed lock, works there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
READY_S = 60.0

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


def run(command: list[str | Path], folder: Path) -> str:
    """Run in ``folder``, which is not the project; what it printed, or a failure that shows it."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=280,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with ``penstock`` in it, of an environment that has nothing but the lock and the wheel."""
    folder = tmp_path_factory.mktemp("clean")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], ROOT)
    (wheel,) = folder.glob("*.whl")
    run([sys.executable, "-m", "venv", folder / "venv"], folder)
    own = folder / "venv" / "bin"
    uv = Path(sys.executable).with_name("uv")
    installer: list[str | Path] = (
        [uv, "pip", "install", "-p", own / "python"] if uv.exists() else [own / "pip", "install"]
    )
    run([*installer, "-q", "--no-deps", "--require-hashes", "-r", ROOT / "requirements/serve.txt"], folder)
    run([*installer, "-q", "--no-deps", wheel], folder)
    return own


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str | Path], folder: Path, *, ready: str) -> Iterator[None]:
    """Run a server until the block ends, once ``ready`` answers 200; it must then end by itself when interrupted."""
    log = folder / f"{free_port()}.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        wait_until_ready(process, ready, log)
        yield
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], ready: str, log: Path) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(ready, timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"{ready} does not answer: {log.read_text()}")


def chat(port: int, key: str, model: str) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "Say something."}], "max_tokens": 8}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        read: dict[str, Any] = json.load(answer)
        return read


def test_the_installed_package_explains_itself_and_checks_a_configuration(installed: Path, tmp_path: Path) -> None:
    assert "serve" in run([installed / "penstock", "--help"], tmp_path)
    shutil.copy(ROOT / "penstock.yaml", tmp_path)
    assert "smollm2-135m" in run([installed / "penstock", "check", "penstock.yaml"], tmp_path)


def test_the_installed_package_contains_the_package_and_nothing_else(installed: Path) -> None:
    names = run([installed / "python", "-m", "zipfile", "-l", next(installed.parents[1].glob("*.whl"))], installed)
    tops = {line.split("/")[0] for line in names.splitlines()[1:]}
    assert tops == {"penstock", "penstock-0.1.0.dist-info"}
    assert "py.typed" in names


def test_the_installed_package_migrates_serves_and_bills(installed: Path, tmp_path: Path) -> None:
    model, port, operations = free_port(), free_port(), free_port()
    (tmp_path / "penstock.yaml").write_text(
        f"models: {{m: {{upstream: 'http://127.0.0.1:{model}', context: 4096}}}}\n"
        f"plans: {{p: {{limits: [100k tokens/minute]}}}}\n"
        f"organisations: {{acme: {{plan: p}}}}\n"
        f"server: {{port: {port}, operations_port: {operations}, data_directory: data}}\n"
    )
    penstock = installed / "penstock"
    simulate: list[str | Path] = [penstock, "simulate-model", "--port", str(model), "--model", "m"]
    with running(simulate, tmp_path, ready=f"http://127.0.0.1:{model}/health"):
        key = run([penstock, "keys", "create", "acme"], tmp_path).strip()
        with running([penstock, "serve"], tmp_path, ready=f"http://127.0.0.1:{operations}/health/ready"):
            used = chat(port, key, "m")["usage"]["total_tokens"]
        assert used > 0
        assert f"{used}" in run([penstock, "usage", "acme"], tmp_path)
        run([penstock, "audit"], tmp_path)
