"""Several Redis servers of which one may be lost: a primary with a replica and sentinels, and a cluster."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.polling import until
from tests.system.services import Redis, found_program, free_port

SERVICE = "quota"
AGREE_S = 6.0  # Redis gives a planned change up after five
UP_S = 180.0
FAILOVER_S = 60.0  # of a machine that does other things too; it takes two or three
NODE_TIMEOUT_MS = 1_000
_WHO = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)


class Sentinel(Redis):
    """One that watches a primary, and needs nobody's agreement to replace it."""

    def __init__(self, folder: Path, primary: Redis, *, quorum: int) -> None:
        super().__init__(folder)
        self._file = self.folder / "sentinel.conf"
        self._file.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} {quorum}\n"
            f"sentinel down-after-milliseconds {SERVICE} {NODE_TIMEOUT_MS}\n"
            f"sentinel failover-timeout {SERVICE} 5000\nsentinel parallel-syncs {SERVICE} 1\n"
        )

    def command(self) -> list[str]:
        return [found_program("redis-server"), str(self._file), "--sentinel"]


class Watched:
    """A primary, its replica, and three sentinels of which two must agree."""

    def __init__(self, folder: Path) -> None:
        self.primary = Redis(folder / "one", "--repl-diskless-sync-delay", "0")
        self.replica = Redis(
            folder / "two", "--replicaof", f"127.0.0.1 {self.primary.port}", "--repl-diskless-sync-delay", "0"
        )
        self.sentinels = [Sentinel(folder / f"sentinel-{number}", self.primary, quorum=2) for number in range(3)]

    @property
    def servers(self) -> list[Redis]:
        return [self.primary, self.replica, *self.sentinels]

    @property
    def url(self) -> str:
        """Names one sentinel that is not there first."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://127.0.0.1:{free_port()},{hosts}/{SERVICE}"

    def start(self) -> None:
        self.primary.start()
        self.replica.start()
        until(lambda: told(self.replica, "INFO", "replication").count("master_link_status:up") == 1, bound_s=UP_S)
        for sentinel in self.sentinels:
            sentinel.start()
        until(self._is_watched, bound_s=UP_S)

    def _is_watched(self) -> bool:
        """Each sentinel knows the replica and the others: before that it would not replace the primary."""
        found = [told(sentinel, "INFO", "sentinel") for sentinel in self.sentinels]
        return all("slaves=1,sentinels=3" in each and "status=ok" in each for each in found)

    def wait_for_failover(self) -> None:
        """The replica is the primary, and sentinels say so."""
        until(lambda: "role:master" in told(self.replica, "INFO", "replication"), bound_s=FAILOVER_S)
        for sentinel in self.sentinels:
            until(lambda sentinel=sentinel: str(self.replica.port) in told(sentinel, *_WHO), bound_s=FAILOVER_S)

    def stop(self) -> None:
        for server in reversed(self.servers):
            server.stop()


class Cluster:
    """Three primaries with a third of the slots each; the first has a replica."""

    def __init__(self, folder: Path) -> None:
        self.nodes = [
            Redis(
                folder / f"node-{number}", "--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS),
                "--cluster-require-full-coverage", "no", "--cluster-port", str(free_port()),
                "--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0",
            )
            for number in range(4)
        ]  # fmt: skip

    @property
    def primaries(self) -> list[Redis]:
        return self.nodes[:3]

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node in self.nodes[1:3])}"

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        hosts = [f"127.0.0.1:{node.port}" for node in self.primaries]
        self._manage("create", *hosts, "--cluster-yes")
        first = told(self.nodes[0], "CLUSTER", "MYID").strip()
        self._manage("add-node", f"127.0.0.1:{self.nodes[3].port}", hosts[0], "--cluster-slave",
                     "--cluster-master-id", first)  # fmt: skip
        until(lambda: "master_link_status:up" in told(self.nodes[3], "INFO", "replication"), bound_s=UP_S)
        for node in self.nodes:
            until(lambda node=node: "cluster_state:ok" in told(node, "CLUSTER", "INFO"), bound_s=UP_S)

    def _manage(self, *words: str) -> None:
        subprocess.run(
            [found_program("redis-cli"), "--cluster", *words], check=True, capture_output=True, stdin=subprocess.DEVNULL
        )

    def change_over(self) -> None:
        """The copy takes over from a primary that lives; it is asked again when the two did not agree in time."""
        asked_s = 0.0

        def has_changed() -> bool:
            nonlocal asked_s
            if "role:master" in told(self.nodes[3], "INFO", "replication"):
                return True
            if time.monotonic() - asked_s > AGREE_S:
                told(self.nodes[3], "CLUSTER", "FAILOVER")
                asked_s = time.monotonic()
            return False

        until(has_changed, bound_s=FAILOVER_S)

    def wait_for_failover(self) -> None:
        until(lambda: "role:master" in told(self.nodes[3], "INFO", "replication"), bound_s=FAILOVER_S)

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


def told(server: Redis, *words: str) -> str:
    """What a server answers."""
    done = subprocess.run(
        [found_program("redis-cli"), "-p", str(server.port), *words], check=False, capture_output=True, text=True
    )
    return done.stdout.replace("\r", "")


@contextmanager
def started(fleet: Watched | Cluster) -> Iterator[None]:
    """While it runs."""
    try:
        fleet.start()
        yield
    finally:
        fleet.stop()
