"""Builds both images where no image can be pulled, on a base made by debootstrap, and tries what is in them.

``python -m tests.system.images`` needs root, Debian's Docker and debootstrap, and Go 1.26 in /usr/local/go; it
takes ten minutes, prints what it found, and leaves nothing but its folder of layers, which ``--keep`` keeps for the
next time. The certificates of this machine go into the base, as those of a private mirror would.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
BOUND_S: Final = 1_800
SIZES_MB: Final = {"penstock": 200, "penstock-bento": 80}
GO: Final = Path("/usr/local/go")
CLIENT: Final = "/usr/bin/docker"
"""Debian's own: a newer client wants a buildx beside it."""
CONFIGURATION: Final = """
models: {m: {upstream: "http://127.0.0.1:18000", context: 4096, max_tokens: 64}}
plans: {team: {limits: [100k tokens/minute]}}
organisations: {acme: {plan: team}}
server: {port: 18080, operations_port: 18081}
"""


def say(line: str) -> None:
    """To whoever waits."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()


class Docker:
    """An engine of our own, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._socket = f"unix://{folder}/docker.sock"
        self._log = (folder / "dockerd.log").open("ab")
        self._engine = subprocess.Popen(
            [
                "dockerd", "--host", self._socket, "--data-root", str(folder / "data"), "--exec-root",
                str(folder / "exec"), "--pidfile", str(folder / "dockerd.pid"), "--iptables=false", "--bridge=none",
            ],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip
        for _ in range(60):
            if self.run("version", check=False).returncode == 0:
                return
            time.sleep(0.5)
        raise SystemExit(f"dockerd did not start; see {self._log.name}")

    def run(self, *arguments: str, check: bool = True, stdin: int | None = None) -> subprocess.CompletedProcess[str]:
        """One command of the client."""
        done = subprocess.run(
            [CLIENT, "--host", self._socket, *arguments],
            capture_output=True, text=True, check=False, timeout=BOUND_S, stdin=stdin,
            env={**os.environ, "DOCKER_BUILDKIT": "1"},
        )  # fmt: skip
        if check and done.returncode:
            raise SystemExit(f"docker {' '.join(arguments[:3])} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done

    def stop(self) -> None:
        """End the engine, and with it everything that it runs."""
        self._engine.terminate()
        self._engine.wait(60)
        self._log.close()


@contextmanager
def engine(folder: Path) -> Iterator[Docker]:
    """Running for the block."""
    docker = Docker(folder)
    try:
        yield docker
    finally:
        docker.stop()


def mirror() -> str:
    """Where this machine gets Debian from."""
    for path in sorted(Path("/etc/apt").rglob("*.sources")) + sorted(Path("/etc/apt").rglob("*.list")):
        if found := re.search(r"^(?:URIs:\s*|deb (?:\[.*?\] )?)(https?://\S+)", path.read_text(), re.MULTILINE):
            return found[1]
    raise SystemExit("no mirror of Debian is named in /etc/apt")


def base(docker: Docker, folder: Path) -> None:
    """A Debian, with this machine's certificates and what its installers are told, as an image."""
    root = folder / "base"
    if not root.is_dir():
        draft = folder / "base.draft"
        shutil.rmtree(draft, ignore_errors=True)
        say("debootstrap makes a Debian")
        subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(draft), mirror()],
            check=True, capture_output=True, timeout=BOUND_S,
        )  # fmt: skip
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", draft / "etc/ssl/certs/ca-certificates.crt")
        if Path("/etc/pip.conf").exists():
            shutil.copy("/etc/pip.conf", draft / "etc/pip.conf")
        shutil.rmtree(draft / "var/lib/apt/lists", ignore_errors=True)
        shutil.rmtree(draft / "var/cache/apt", ignore_errors=True)
        draft.rename(root)
    imported(docker, "base", ["-C", str(root), "."])
    imported(docker, "base-go", ["-C", str(root), ".", "-C", "/", str(GO.relative_to("/"))])


def imported(docker: Docker, name: str, what: list[str]) -> None:
    """An image of files."""
    with subprocess.Popen(["tar", "-c", *what], stdout=subprocess.PIPE) as packing:
        assert packing.stdout is not None
        path = "ENV PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        docker.run("import", "--change", path, "-", name, stdin=packing.stdout.fileno())


def build(docker: Docker, name: str, file: str, on: str) -> None:
    """One image, with the network of this machine; its size in MB is bounded."""
    say(f"building {name}")
    passed = [
        argument for variable in ("GOPROXY", "GOFLAGS", "GOSUMDB", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
        if variable in os.environ for argument in ("--build-arg", variable)
    ]  # fmt: skip
    docker.run(
        "build", "--network", "host", "--build-arg", f"BASE={on}", *passed,
        "-f", str(ROOT / "manifests" / "images" / file), "-t", name, str(ROOT),
    )  # fmt: skip
    (told,) = json.loads(docker.run("inspect", name).stdout)
    size_mb = told["Size"] / 1_000_000
    say(f"{name}: {size_mb:.0f} MB, user {told['Config']['User']}")
    assert size_mb < SIZES_MB[name], f"{name} has {size_mb:.0f} MB, wanted less than {SIZES_MB[name]}"
    assert told["Config"]["User"] == "65532:65532"


def restricted(*extra: str) -> list[str]:
    """As a pod of the chart would be run."""
    return [
        "run", "--rm", "--network", "host", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
        *extra,
    ]  # fmt: skip


def try_embedded(docker: Docker, folder: Path) -> None:
    """The embedded default, with a simulated model, answers a chat."""
    (folder / "penstock.yaml").write_text(CONFIGURATION)
    mounted = ("-v", f"{folder / 'penstock.yaml'}:/etc/penstock/penstock.yaml:ro")
    state = ("--tmpfs", "/var/lib/penstock:uid=65532,gid=65532,mode=0700")
    docker.run(*restricted("--name", "model", "-d"), "penstock", "simulate-model", "--port", "18000", "--model", "m")
    docker.run(*restricted("--name", "serve", "-d", *mounted, *state), "penstock", "serve", "-c", "penstock.yaml")
    try:
        key = ""
        for _ in range(120):
            said = docker.run("logs", "serve", check=False)
            if found := re.search(r"psk_\S+", said.stdout + said.stderr):
                key = found[0]
                break
            time.sleep(0.5)
        assert key, docker.run("logs", "serve").stderr
        ask = (
            "import json,urllib.request as u;"
            "r=u.Request('http://127.0.0.1:18080/v1/chat/completions',"
            "json.dumps({'model':'m','messages':[{'role':'user','content':'hi'}]}).encode(),"
            f"{{'Content-Type':'application/json','Authorization':'Bearer {key}'}});"
            "print(json.load(u.urlopen(r))['usage'])"
        )
        told = docker.run("exec", "serve", "/opt/penstock/bin/python", "-c", ask)
        say(f"a chat through the embedded default: {told.stdout.strip()}")
        assert "completion_tokens" in told.stdout
    finally:
        docker.run("rm", "--force", "serve", "model")


def try_bento(docker: Docker) -> None:
    """Every stream is sound to the Bento in the image."""
    files = "/etc/penstock/bento"
    streams = [f"{files}/{stream}.yaml" for stream in ("gateway", "worker", "collector", "dead_letters")]
    docker.run(
        *restricted("--entrypoint", "/bento"), "penstock-bento", "-t", f"{files}/templates/*.yaml", "lint", "--labels",
        *streams, f"{files}/resources/*.yaml",
    )  # fmt: skip
    say("bento lint: gateway, worker, collector, dead letters are sound")


def main() -> None:
    """Build, try, clean up."""
    reader = argparse.ArgumentParser(prog="python -m tests.system.images", description=__doc__)
    reader.add_argument("--keep", type=Path, help="a folder for the base and the layers, used again if it is there")
    options = reader.parse_args()
    for program in ("dockerd", CLIENT, "debootstrap"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is not installed; both Docker and debootstrap are among Debian's packages")
    folder = options.keep or Path(tempfile.mkdtemp(prefix="penstock-images-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with engine(folder) as docker:
            base(docker, folder)
            build(docker, "penstock", "penstock.Dockerfile", "base")
            build(docker, "penstock-bento", "bento.Dockerfile", "base-go")
            try_embedded(docker, folder)
            try_bento(docker)
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    say("both images build, are small enough, and run as nobody on a read-only root")


if __name__ == "__main__":
    main()
