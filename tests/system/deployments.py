"""A whole Penstock with a simulated model ``m``, in whichever mode, as the tests of both modes see it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import httpx2 as httpx

from penstock.adapters.sql.database import open_engine
from penstock.adapters.sql.ledger import LedgerReads
from tests import polling
from tests.system.programs import Service, SimulatedModel

ENDS = frozenset({"succeeded", "failed", "cancelled", "expired"})
BOUND_S = 60.0
until = partial(polling.until, bound_s=BOUND_S)


class Deployment(Protocol):
    """What a test may do to it. There are two organisations, ``acme`` and ``other``."""

    model: SimulatedModel

    @property
    def url(self) -> str:
        """Of the API, without ``/v1``."""
        ...

    def key(self, organisation: str = "acme") -> str:
        """An API key."""
        ...

    def audited(self) -> None:
        """Nothing is held any more, and counters and ledger agree."""
        ...

    def command(self, *arguments: str) -> str:
        """Run another command on its configuration; what it printed."""
        ...

    def charges(self) -> dict[str, list[int]]:
        """By reservation: the tokens of each of the ledger's rows that charged for a request."""
        ...


class Embedded:
    """One process and SQLite."""

    def __init__(
        self, folder: Path, *, traces: str = "", generic: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        options = ("--traces", traces) if traces else ()
        self.model = SimulatedModel(folder / "model", "--model", "m", "--model", "g", *options)
        self.service = Service(
            folder / "service",
            self.model.url,
            limits=settings.pop("limits", ("100M tokens/day", "100 concurrent")),
            model="context: 4096, max_tokens: 64, managed_by: api",
            models=described_generic(self.model.url, generic),
            organisations=("acme", "other"),
            **settings,
        )
        self._keys: dict[str, str] = {}

    def start(self) -> None:
        self.model.start()
        self.service.start()

    def stop(self) -> None:
        if self.service.process is not None and self.service.process.poll() is None:
            assert self.service.stop() == 0, self.service.log.read_text()
        self.model.stop()

    @property
    def url(self) -> str:
        return self.service.url

    def key(self, organisation: str = "acme") -> str:
        if organisation not in self._keys:
            self._keys[organisation] = self.service.command("keys", "create", organisation).strip()
            bearer = {"authorization": f"Bearer {self._keys[organisation]}"}
            until(lambda: httpx.get(f"{self.url}/v1/models", headers=bearer, trust_env=False).status_code == 200)
        return self._keys[organisation]

    def command(self, *arguments: str) -> str:
        return self.service.command(*arguments)

    def audited(self) -> None:
        report = json.loads(self.service.command("audit", "--json"))
        assert [each["differences"] for each in report["organisations"]] == [[], []]
        assert [each["holds"] for each in report["organisations"]] == [0, 0]

    def charges(self) -> dict[str, list[int]]:
        engine = open_engine(self.service.data / "penstock.db")
        found: dict[str, list[int]] = {}
        with engine.connect() as connection:
            for event in LedgerReads(connection).events():
                if event.charge.requests:
                    found.setdefault(event.reservation, []).append(event.charge.tokens)
        engine.dispose()
        return found


def described_generic(upstream: str, generic: Mapping[str, Any] | None) -> str:
    """A model ``g`` for the configuration, if there is to be one."""
    price = {"price": {"input": 1, "output": 2}, "managed_by": "api"}
    return "g: " + json.dumps({"upstream": upstream, **price, **generic}) if generic else ""


class Client:
    """One organisation's client of a deployment."""

    def __init__(self, deployment: Deployment, organisation: str = "acme") -> None:
        self.deployment = deployment
        bearer = {"authorization": f"Bearer {deployment.key(organisation)}"}
        self.http = httpx.Client(base_url=deployment.url, headers=bearer, timeout=90, trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def ask(self, *, simulate: str = "tokens=5", content: str = "hello", **body: Any) -> dict[str, Any]:
        """A chat request's body."""
        messages = [{"role": "user", "content": content}]
        return {"model": "m", "messages": messages, "metadata": {"simulate": simulate}} | body

    def submit(self, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        """Hand a chat request in."""
        asked = {"prefer": "respond-async"} | (headers or {})
        return self.http.post("/v1/chat/completions", json=self.ask(**body), headers=asked)

    def accepted(self, **body: Any) -> str:
        """The id of a job that was accepted."""
        answer = self.submit(**body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job: str, **query: str) -> dict[str, Any]:
        answer = self.http.get(f"/v1/jobs/{job}", params=query)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def ended(self, job: str) -> dict[str, Any]:
        """Wait for a job's end, and for its charge."""
        ends_s = time.monotonic() + BOUND_S
        while time.monotonic() < ends_s:
            found = self.job(job, wait="10s")
            is_charged = found["cost_nanos"] is not None or found["usage"] is None
            if found["status"] in ENDS and is_charged:
                return found
        raise AssertionError(f"not ended within {BOUND_S} s: {found}")

    def running(self, job: str) -> None:
        """Wait until it runs."""
        until(lambda: self.job(job)["status"] == "running")
