"""The gateways that are compared: how each is installed, started and asked. All stand before the same model server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import running

FOLDER = Path(__file__).parent / "gateways"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock" / "benchmarks"
PENSTOCK = Path(sys.executable).with_name("penstock")
MODEL = "chat-small"
MODEL_PORT, PENSTOCK_PORT, NGINX_PORT, LITELLM_PORT, PORTKEY_PORT = 18100, 18101, 18102, 18103, 18104


@dataclass(frozen=True, slots=True)
class Gateway:
    """One program under measurement, ready to be started.

    Args:
        headers: What a client must send to it.
    """

    name: str
    command: tuple[str, ...]
    port: int
    headers: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def started(self, folder: Path) -> Iterator[int]:
        """Run it in a folder of its own below ``folder``; gives its process id."""
        own = folder / self.name
        own.mkdir(exist_ok=True)
        with running(self.command, port=self.port, folder=own, environment=self.environment) as pid:
            yield pid


def model_server(*, tokens: int, decode: int = 0) -> Gateway:
    """The model server behind every gateway: ``tokens`` tokens each answer, ``decode`` a second (0: at once)."""
    command = (str(PENSTOCK), "simulate-model", "--port", str(MODEL_PORT), "--model", MODEL, "--model", "m")
    options = ("--tokens", str(tokens), "--decode", str(decode))
    return Gateway("model-server", (*command, *options), MODEL_PORT)


def penstock(folder: Path, configuration: str = "penstock.yaml", *, team: str | None = "search") -> Gateway:
    """Penstock, with a key that it made itself in ``folder``."""
    own = folder / "penstock"
    own.mkdir(exist_ok=True)
    file = str(FOLDER / configuration)
    create = [str(PENSTOCK), "keys", "create", "acme", "--config", file]
    if team:
        create += ["--team", team]
    made = subprocess.run(create, cwd=own, check=True, capture_output=True, text=True)
    key = re.search(r"psk_\w+", made.stdout)
    if key is None:
        raise SystemExit(f"penstock keys create printed no key: {made.stdout}")
    headers = {"Authorization": f"Bearer {key.group()}"}
    return Gateway("penstock", (str(PENSTOCK), "serve", "-c", file), PENSTOCK_PORT, headers)


def nginx() -> Gateway:
    """nginx from Debian, passing through."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise SystemExit("nginx is needed: requirements/debian.sh nginx-light")
    command = (program, "-p", ".", "-e", "stderr", "-c", str(FOLDER / "nginx.conf"))
    return Gateway("nginx", command, NGINX_PORT)


def installed(name: str, lock: Path) -> Path:
    """An environment of its own in the user's cache with what a lock file names, of the Python that runs here.

    Made anew where either is another.
    """
    home = CACHE / name
    wanted = f"# {sys.version}\n{lock.read_text()}"
    if not (home / lock.name).exists() or (home / lock.name).read_text() != wanted:
        print(f"installing {name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "-r", str(lock)]
        subprocess.run([str(home / "bin" / "pip"), "install", *options], check=True)
        (home / lock.name).write_text(wanted)
    return home


def litellm(configuration: str = "litellm.yaml") -> Gateway:
    """LiteLLM's proxy in an environment of its own, at the version in gateways/litellm.txt."""
    home = installed("litellm", FOLDER / "litellm.txt")
    key = f"sk-{os.urandom(32).hex()}"  # it does not start without one
    chosen = ("--config", str(FOLDER / configuration), "--host", "127.0.0.1", "--port", str(LITELLM_PORT))
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": key}
    headers = {"Authorization": f"Bearer {key}"}
    return Gateway("litellm", (str(home / "bin" / "litellm"), *chosen), LITELLM_PORT, headers, environment)


def portkey() -> Gateway:
    """Portkey's gateway from npm, at the version in gateways/package-lock.json."""
    home = CACHE / "portkey"
    server = home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if shutil.which("node") is None:
        raise SystemExit("Node.js and npm are needed for Portkey: install Node.js 20 or later")
    lock = home / "package-lock.json"
    if not lock.exists() or lock.read_text() != (FOLDER / lock.name).read_text():
        print("installing Portkey", flush=True)
        home.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(FOLDER / name, home / name)
        subprocess.run(["npm", "ci", "--silent", "--prefix", str(home)], check=True)
        shutil.copy(FOLDER / lock.name, lock)
    headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"http://127.0.0.1:{MODEL_PORT}/v1"}
    headers["Authorization"] = "Bearer unused"
    command = ("node", str(server), f"--port={PORTKEY_PORT}", "--headless")
    return Gateway("portkey", command, PORTKEY_PORT, headers, {"NODE_ENV": "production"})
