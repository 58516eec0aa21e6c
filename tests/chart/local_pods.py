"""Pods as the chart renders them, run as processes of this machine: what a kubelet does, without containers.

A container is a process in a root of its own (``local_images``) with the environment, the mounts, the user and the
limits on rights of its manifest, as first process of its process namespace. A pod has a network of its own, on one
bridge with the others; names of Services are in its hosts file. Needs root.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.chart.local_images import Image, image
from tests.chart.rendering import Object, containers, of_kind
from tests.system.services import wait_until

NODE_ADDRESS: Final = "10.77.0.1"
SLOWER: Final = 6
"""How many times its timeout a probe by a command may take here, where a suite shares the cores."""
DEVICES: Final = ("null", "zero", "full", "random", "urandom")


class Node:
    """A network with nothing on it but the pods; from here they are probed."""

    def __init__(self) -> None:
        self._network = _network()
        self._ends = 1
        self.at = ("nsenter", f"--net=/proc/{self._network.pid}/ns/net")
        self._run(*self.at, "ip", "link", "add", "pods", "type", "bridge")
        self._run(*self.at, "ip", "address", "add", f"{NODE_ADDRESS}/24", "dev", "pods")
        self._run(*self.at, "ip", "link", "set", "pods", "up")

    def join(self, pod: subprocess.Popen[bytes], address: str) -> None:
        """Give a pod's network an address among the others."""
        end, self._ends = f"pod{self._ends}", self._ends + 1
        inside = ("nsenter", f"--net=/proc/{pod.pid}/ns/net")
        other = ("type", "veth", "peer", "name", "eth0", "netns", str(pod.pid))
        self._run(*self.at, "ip", "link", "add", end, *other)
        self._run(*self.at, "ip", "link", "set", end, "master", "pods", "up")
        self._run(*inside, "ip", "address", "add", f"{address}/24", "dev", "eth0")
        for each in ("lo", "eth0"):
            self._run(*inside, "ip", "link", "set", each, "up")

    def answers(self, url: str, *, timeout_s: int) -> bool:
        """As a kubelet asks: any answer below 400 within the time."""
        asked = [*self.at, "curl", "-sf", "-o", "/dev/null", "--noproxy", "*", "-m", str(timeout_s), url]
        return subprocess.run(asked, check=False).returncode == 0

    def ask(self, url: str, *options: str) -> Any:
        """A request, as from another pod; what was answered, read as JSON."""
        asked = [*self.at, "curl", "-sS", "--noproxy", "*", "-m", "60", *options, url]
        done = subprocess.run(asked, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def close(self) -> None:
        _end(self._network)

    @staticmethod
    def _run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)


class Container:
    """One container of a pod."""

    def __init__(self, pod: LocalPod, manifest: Object) -> None:
        self.name: str = manifest["name"]
        self.manifest = manifest
        self.log = pod.folder / f"{self.name}.log"
        self.log.touch()
        self._pod = pod
        self._image: Image = image(manifest["image"])
        self._root = pod.folder / "roots" / self.name
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; what it prints is in its log."""
        self._root.mkdir(parents=True)
        script = self._root.with_suffix(".sh")
        script.write_text("\n".join(("set -eu", *self._mounting(), f"exec {shlex.join(self._entering())}")))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self._pod.at, "unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child",
                    "sh", str(script),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Of the container's first process, as this machine counts."""
        assert self.process is not None, "it was never started"
        (found,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(found)

    @property
    def _entered(self) -> bool:
        """Whether its first process sees the root that was made for it."""
        try:
            return os.readlink(f"/proc/{self.pid}/root") == str(self._root)
        except (ValueError, FileNotFoundError):
            return False

    def finish(self, bound_s: float) -> int:
        """Run it to its end."""
        self.start()
        assert self.process is not None
        return self.process.wait(bound_s)

    def await_probe(self, kind: str, bound_s: float) -> None:
        """Until a probe succeeds; a container that ends instead is an error, with its log."""
        assert self.process is not None
        probe = self.manifest[kind]
        wait_until(lambda: self.passes(probe), self.process, self.log, bound_s=bound_s)

    def await_line(self, text: str, bound_s: float) -> None:
        """Until it has printed this; it may be yet to start."""
        wait_until(lambda: text in self.log.read_text(), self._pod.network, self.log, bound_s=bound_s)

    def passes(self, probe: Object) -> bool:
        """Ask once, as a kubelet would."""
        timeout_s = probe.get("timeoutSeconds", 1)
        if "httpGet" in probe:
            get = probe["httpGet"]
            (port,) = (
                p["containerPort"] for p in self.manifest["ports"] if get["port"] in (p["name"], p["containerPort"])
            )
            return self._pod.node.answers(f"http://{self._pod.address}:{port}{get['path']}", timeout_s=timeout_s)
        if not self._entered:
            return False
        try:
            return subprocess.run(
                [*self._inside(), *probe["exec"]["command"]], env=self._environment(), capture_output=True, check=False,
                timeout=timeout_s * SLOWER,
            ).returncode == 0  # fmt: skip
        except subprocess.TimeoutExpired:
            return False

    def run(self, *command: str) -> str:
        """One more command inside, as ``kubectl exec`` does; what it printed."""
        done = subprocess.run(
            [*self._inside(), *command],
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )  # fmt: skip
        assert done.returncode == 0, f"{command} in {self.name} ended with {done.returncode}:\n{done.stderr[-3000:]}"
        return done.stdout

    def stop(self) -> int:
        """What happens to a container whose pod is deleted: preStop, SIGTERM, and never SIGKILL; its exit code."""
        assert self.process is not None
        ends_at = time.monotonic() + self._pod.grace_s
        before_s = self.manifest.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if before_s:
            try:
                code = self.process.wait(before_s)
            except subprocess.TimeoutExpired:
                pass
            else:
                raise AssertionError(f"{self.name} ended with {code} before it was told to:\n{self.log.read_text()}")
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(ends_at - time.monotonic())

    def kill(self) -> None:
        """If it still runs."""
        if self.process is not None:
            _end(self.process)

    def _inside(self) -> tuple[str, ...]:
        user = str(self._user)
        return ("nsenter", "-t", str(self.pid), "-m", "-n", "-p", "-r", "-w", "-S", user, "-G", user)

    @property
    def _user(self) -> int:
        own: int | None = self.manifest["securityContext"].get("runAsUser")
        return own if own is not None else int(self._pod.security["runAsUser"])

    def _environment(self) -> dict[str, str]:
        told = dict(self._image.environment)
        for variable in self.manifest.get("env", []):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            told[variable["name"]] = (
                self._pod.secrets[reference["name"]][reference["key"]] if reference else variable["value"]
            )
        return told

    def _mounting(self) -> Iterator[str]:
        """The commands that make its root: the image, then the volumes, outer ones first, then nothing may change."""
        yield f"mount -t tmpfs -o mode=755 root {self._root}"
        for folder in ("/proc", "/dev", "/etc", "/run", "/tmp", self._image.folder):
            yield f"mkdir -p {self._root}{folder}"
        yield f"mount -t proc proc {self._root}/proc"
        for path, text in self._image.written.items():
            yield f"mkdir -p {self._root}{Path(path).parent}"
            yield f"printf %s {shlex.quote(text)} > {self._root}{path}; chmod 755 {self._root}{path}"
        seen = {f"/dev/{name}": Path("/dev", name) for name in DEVICES} | {"/etc/hosts": self._pod.hosts}
        for path, source in sorted({**self._image.seen, **seen}.items()):
            yield from self._bound(source, path, writable=path.startswith("/dev"))
        for mount in sorted(
            self.manifest.get("volumeMounts", []), key=lambda mount: len(Path(mount["mountPath"]).parts)
        ):
            source = self._pod.volume(mount["name"]) / mount.get("subPath", "")
            if not source.exists():
                source.mkdir(mode=0o2777)
                source.chmod(0o2777)
            yield from self._bound(source, mount["mountPath"], writable=not mount.get("readOnly", False))
        if self.manifest["securityContext"].get("readOnlyRootFilesystem"):
            yield f"mount -o remount,ro,bind {self._root}"

    def _bound(self, source: Path, path: str, *, writable: bool) -> Iterator[str]:
        place = f"{self._root}{path}"
        yield (
            f"mkdir -p {place}" if source.is_dir() else f"mkdir -p {Path(place).parent}; test -e {place} || : > {place}"
        )
        yield f"mount --bind -o {'rw' if writable else 'ro'} {source} {place}"

    def _entering(self) -> Iterator[str]:
        """The command, without rights and without this machine's environment."""
        security = self.manifest["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["allowPrivilegeEscalation"] is False
        yield from ("/usr/bin/env", "-i", *(f"{name}={value}" for name, value in self._environment().items()))
        # What enters a root and becomes a user needs three rights; becoming a user ends them.
        yield from ("/usr/bin/setpriv", "--no-new-privs", "--inh-caps=-all")
        yield "--bounding-set=-all,+sys_chroot,+setuid,+setgid"
        groups = self._pod.security["fsGroup"]
        yield from ("/usr/sbin/chroot", f"--userspec={self._user}:{self._pod.security['runAsGroup']}")
        yield from (f"--groups={groups}", str(self._root))
        if self._image.folder != "/":
            yield from ("/usr/bin/env", "-C", self._image.folder)
        yield from self.manifest.get("command") or (
            () if self.manifest["image"].startswith("redis") else self._image.entry
        )
        yield from self.manifest.get("args", [])


class LocalPod:
    """One pod of a template, and what is mounted into it."""

    def __init__(
        self, name: str, template: Object, objects: Iterable[Object], folder: Path, node: Node, address: str,
        hosts: Path, secrets: Mapping[str, Mapping[str, str]],
    ) -> None:  # fmt: skip
        self.name = name
        self.spec: Object = template["spec"]
        self.folder = folder
        self.node = node
        self.address = address
        self.hosts = hosts
        self.secrets = secrets
        self.security: Object = self.spec["securityContext"]
        self.grace_s: int = self.spec.get("terminationGracePeriodSeconds", 30)
        folder.mkdir(parents=True)
        self._objects = list(objects)
        self.network = _network()
        self.at = ("nsenter", f"--net=/proc/{self.network.pid}/ns/net")
        node.join(self.network, address)
        self._claims = [claim["metadata"]["name"] for claim in template.get("claims", [])]
        for volume in self.spec["volumes"]:
            self._make(volume)
        for claim in self._claims:
            self._shared(self.volume(claim))
        made = [Container(self, each) for each in self.spec.get("initContainers", [])]
        self.first = [each for each in made if each.manifest.get("restartPolicy") != "Always"]
        self.beside = [each for each in made if each.manifest.get("restartPolicy") == "Always"]
        self.main = [Container(self, each) for each in self.spec["containers"]]

    def volume(self, name: str) -> Path:
        return self.folder / "volumes" / name

    def start(self, bound_s: float) -> None:
        """As a kubelet starts a pod: those that run first, those that run beside, the others; until all are ready."""
        for container in self.first:
            code = container.finish(bound_s)
            assert code == 0, f"{self.name}/{container.name} ended with {code}:\n{container.log.read_text()[-3000:]}"
        for container in self.beside:
            container.start()
            container.await_probe("startupProbe", bound_s)
        for container in self.main:
            container.start()
            container.await_probe("startupProbe", bound_s)
        for container in (*self.beside, *self.main):
            container.await_probe("readinessProbe", bound_s)
            container.await_probe("livenessProbe", bound_s)

    def complete(self, bound_s: float) -> None:
        """As a Job's pod: to its end."""
        for container in self.main:
            code = container.finish(bound_s)
            assert code == 0, f"{self.name}/{container.name} ended with {code}:\n{container.log.read_text()[-3000:]}"

    def stop(self) -> dict[str, int]:
        """The exit codes: of the main ones, then of those beside them, last started first stopped."""
        return {each.name: each.stop() for each in (*self.main, *reversed(self.beside))}

    def close(self) -> None:
        """End what still runs."""
        for container in (*self.first, *self.main, *self.beside):
            container.kill()
        _end(self.network)

    def _make(self, volume: Object) -> None:
        path = self.volume(volume["name"])
        if "emptyDir" in volume or "persistentVolumeClaim" in volume:
            self._shared(path)
        elif "configMap" in volume:
            (found,) = (
                each for each in of_kind(self._objects, "ConfigMap")
                if each["metadata"]["name"] == volume["configMap"]["name"]
            )  # fmt: skip
            for file, text in found["data"].items():
                self._file(path / file, text, 0o644)
        elif "secret" in volume:
            self._secret(path, volume["secret"]["secretName"], volume["secret"]["items"])
        else:
            path.mkdir(parents=True)
            for source in volume["projected"]["sources"]:
                self._secret(path, source["secret"]["name"], source["secret"]["items"])

    def _shared(self, path: Path) -> None:
        """Empty, and its group's."""
        path.mkdir(parents=True)
        os.chown(path, 0, self.security["fsGroup"])
        path.chmod(0o2777)

    def _secret(self, path: Path, name: str, items: list[dict[str, str]]) -> None:
        for item in items:
            self._file(path / item["path"], self.secrets[name][item["key"]], 0o440)

    def _file(self, path: Path, text: str, mode: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        os.chown(path, 0, self.security["fsGroup"])


@contextmanager
def local_pods(
    objects: list[Object], folder: Path, secrets: Mapping[str, Mapping[str, str]]
) -> Iterator[dict[str, LocalPod]]:
    """One pod of everything that makes pods, by the maker's name; none is started, and none runs after the block."""
    made = {**secrets, **{each["metadata"]["name"]: _decoded(each) for each in of_kind(objects, "Secret")}}
    templates = {
        each["metadata"]["name"]: {**each["spec"]["template"], "claims": each["spec"].get("volumeClaimTemplates", [])}
        for each in of_kind(objects, "Deployment", "StatefulSet", "Job")
    }
    addresses = {name: f"10.77.0.{number}" for number, name in enumerate(templates, start=2)}
    hosts = folder / "hosts"
    hosts.write_text("".join(f"{line}\n" for line in ("127.0.0.1 localhost", *_names(objects, templates, addresses))))
    node = Node()
    pods: dict[str, LocalPod] = {}
    try:
        for name, template in templates.items():
            pods[name] = LocalPod(
                name, template, objects, folder / name, node, addresses[name], hosts, made
            )  # fmt: skip
        yield dict(pods)
    finally:
        for pod in pods.values():
            pod.close()
        node.close()


def _names(objects: Iterable[Object], templates: Mapping[str, Object], addresses: Mapping[str, str]) -> Iterator[str]:
    """A line for each Service: it must select pods, and each of its ports must be one of theirs."""
    for service in of_kind(objects, "Service"):
        selector = service["spec"]["selector"].items()
        selected = [name for name, each in templates.items() if selector <= each["metadata"]["labels"].items()]
        assert selected, f"the service {service['metadata']['name']} selects nothing"
        for name in selected:
            ports = {port["name"] for each in containers(templates[name]) for port in each.get("ports", [])}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports, service["metadata"]["name"]
        yield f"{addresses[selected[0]]} {service['metadata']['name']}"


def _decoded(secret: Object) -> dict[str, str]:
    data: Mapping[str, Any] = secret["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def _network() -> subprocess.Popen[bytes]:
    """A process that keeps a network alive."""
    process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    mine = os.readlink("/proc/self/ns/net")
    log = Path(os.devnull)
    wait_until(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != mine, process, log, bound_s=30)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(30)
