"""What a drill breaks: a cluster under a light, steady load, and the ways to reach into each part of it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2 as httpx
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.system.clusters import Cluster, until
from tests.system.programs import SimulatedModel
from tests.system.services import found_program
from tests.system.soak_faults import family

USUAL: Final = ("--decode", "200")
CLIENTS: Final = 4
PAUSE_S: Final = 1.0
REQUEST_S: Final = 10.0
YEAR_S: Final = 365 * 86400.0
SMALL: Final = "small"
"""An organisation that may do next to nothing."""


class DrillCluster(Cluster):
    """The cluster of the tests, with figures for scaling and an organisation that is soon refused."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, *USUAL, environment={"PENSTOCK_AUDIT_S": "3"})
        file = folder / "penstock.yaml"
        self.certificate = folder / "ca.pem"
        certify(self.certificate, valid_s=YEAR_S)
        described = yaml.safe_load(file.read_text())
        for model in described["models"].values():
            model["capacity"] = {"tokens_per_second": 2500, "concurrency": 16}
        secured = {"url": "https://127.0.0.1:1", "ca": {"file": str(self.certificate)}}
        described["models"]["n"] = {**described["models"]["n"], "upstream": [secured]}  # nobody asks it
        described["plans"][SMALL] = {"limits": ["1 requests/minute"]}
        described["organisations"][SMALL] = {"plan": SMALL}
        file.write_text(yaml.safe_dump(described))


@dataclass(slots=True)
class Wishes:
    """What each request of the load asks for; changed while it runs.

    Args:
        simulate: Of the simulated model, in each request.
        faulty: Likewise, in every third request only.
        organisation: Whose requests these are.
        key: Instead of the organisation's.
    """

    simulate: str = "tokens=20"
    faulty: str = ""
    organisation: str = "acme"
    key: str = ""
    is_streamed: bool = False


class Load:
    """Some clients that ask once a second each, and one that hands in jobs."""

    def __init__(self, cluster: Cluster) -> None:
        self.wishes = Wishes()
        self._cluster = cluster
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]
        self._threads.append(threading.Thread(target=self._hand_in))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        turn = number
        while not self._over.wait(PAUSE_S):
            turn += 1
            wishes = self.wishes
            self._send(wishes, wishes.faulty if wishes.faulty and turn % 3 == 0 else wishes.simulate)

    def _hand_in(self) -> None:
        while not self._over.wait(PAUSE_S):
            self._send(Wishes(), "tokens=20", prefer="respond-async")

    def _send(self, wishes: Wishes, simulate: str, **headers: str) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": wishes.is_streamed}
        headers["authorization"] = f"Bearer {wishes.key or self._cluster.keys[wishes.organisation]}"
        with suppress(httpx.HTTPError), httpx.Client(timeout=REQUEST_S, trust_env=False) as client:
            asked = body | {"metadata": {"simulate": simulate}}
            client.post(f"{self._cluster.url}/v1/chat/completions", json=asked, headers=headers)


class Scene:
    """A cluster, its load, and hands on everything in it."""

    def __init__(self, cluster: DrillCluster, load: Load) -> None:
        self.cluster = cluster
        self.load = load

    # --- processes -----------------------------------------------------------------------------------------------

    @contextmanager
    def frozen(self, *names: str) -> Iterator[None]:
        """Processes stand still, with all that they started."""
        pids = [pid for name in names for pid in family(self.cluster.pids[name])]
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    @contextmanager
    def gone(self, *names: str) -> Iterator[None]:
        """Processes are killed, and nobody starts them again: their supervisor stands still."""
        assert self.cluster.process is not None
        before = self.cluster.pids
        supervisor = self.cluster.process.pid
        try:
            os.kill(supervisor, signal.SIGSTOP)
            for name in names:
                os.killpg(before[name], signal.SIGKILL)
            yield
        finally:
            os.kill(supervisor, signal.SIGCONT)
            until(lambda: all(self.cluster.pids.get(name, before[name]) != before[name] for name in names))

    @contextmanager
    def asking(self, **changed: Any) -> Iterator[None]:
        """The load asks for something else."""
        self.load.wishes = Wishes(**changed)
        try:
            yield
        finally:
            self.load.wishes = Wishes()

    @contextmanager
    def without_model(self) -> Iterator[None]:
        """The model server is away."""
        old = self.cluster.model
        old.stop()
        try:
            yield
        finally:
            model = SimulatedModel(old.folder, "--model", "m", "--model", "n", *USUAL, port=old.port)
            self.cluster.model = model
            model.start()

    def ask(self, organisation: str) -> None:
        """One request of an organisation that asks for nothing else."""
        with self.cluster.client(self.cluster.keys[organisation]) as client:
            body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
            assert client.post("/v1/chat/completions", json=body).status_code == 200

    # --- stores --------------------------------------------------------------------------------------------------

    def redis(self, *command: str) -> str:
        """Carry out one command of Redis; what it printed."""
        store = self._store("redis")
        address = urlsplit(store["url"])
        done = subprocess.run(
            [found_program("redis-cli"), "--user", store["username"], "-p", str(address.port), *command],
            env={**os.environ, "REDISCLI_AUTH": _secret(store)}, capture_output=True, text=True, errors="replace",
            check=True, timeout=30,
        )  # fmt: skip
        return done.stdout

    def sql(self, text: str) -> str:
        """Carry out SQL as the one who may do everything; what it printed."""
        done = subprocess.run(
            [*self._psql(), "-Atc", text],
            env=self._postgresql(),
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        return done.stdout

    @contextmanager
    def transaction(self, text: str) -> Iterator[None]:
        """A transaction that has done something, and does not end."""
        session = subprocess.Popen(
            [*self._psql(), "-v", "ON_ERROR_STOP=1"], env=self._postgresql(), stdin=subprocess.PIPE, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert session.stdin is not None
        try:
            session.stdin.write(f"BEGIN; {text};\n")
            session.stdin.flush()
            yield
        finally:
            session.stdin.close()  # which ends the session, and takes all back
            session.wait(30)

    def broker(self, *command: str) -> None:
        """Carry out one command of ``rabbitmqctl``."""
        told = Path(f"/proc/{self.cluster.pids['rabbitmq']}/environ").read_text().split("\0")
        environment = dict(line.partition("=")[::2] for line in told if line)
        program = found_program("rabbitmqctl", "/usr/lib/rabbitmq/lib/*/sbin/rabbitmqctl")
        subprocess.run([program, *command], env=environment, check=True, capture_output=True, timeout=60)

    def publish(self, queue: str, text: str) -> None:
        """Put a message into a queue of jobs, past the gateway."""
        store = self._store("rabbitmq")
        message = {"properties": {}, "routing_key": queue, "payload": text, "payload_encoding": "string"}
        answer = httpx.post(
            f"{store['management']}/api/exchanges/penstock/penstock.jobs/publish", json=message, timeout=30,
            auth=(store["username"], _secret(store)), trust_env=False,
        )  # fmt: skip
        assert answer.json()["routed"], answer.text

    def _store(self, name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = yaml.safe_load((self.cluster.data / "cluster.yaml").read_text())["stores"][name]
        return found

    def _psql(self) -> list[str]:
        store = self._store("postgresql")
        address = urlsplit(store["url"])
        place = ["-h", "127.0.0.1", "-p", str(address.port), "-U", store["username"], "-d", address.path.strip("/")]
        return [found_program("psql"), "-X", "-q", *place]

    def _postgresql(self) -> dict[str, str]:
        return {**os.environ, "PGPASSWORD": _secret(self._store("postgresql"))}


def certify(file: Path, *, valid_s: float) -> None:
    """Write a certificate that ends so soon."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "drill")])
    now = datetime.now(UTC)
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    built = built.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(seconds=valid_s))
    file.write_bytes(built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def _secret(store: Mapping[str, Any]) -> str:
    return Path(store["password"]["file"]).read_text().strip()
