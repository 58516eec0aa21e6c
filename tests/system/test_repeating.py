"""A service that is killed while it answers a request with an idempotency key bills it once, whatever comes back."""

from __future__ import annotations

import contextlib
from pathlib import Path

import httpx2 as httpx
import pytest

from penstock.adapters.embedded.crash_points import CRASH_POINTS
from penstock.lanes.repeating import STORED
from penstock.wiring.crash import VARIABLE
from tests.counts import TORTURE
from tests.system.deployments import Client, Embedded

pytestmark = pytest.mark.slow

CASES = (
    [(point, stream) for point in (STORED, *CRASH_POINTS) for stream in (False, True)] if TORTURE else [(STORED, True)]
)


@pytest.mark.parametrize(("point", "stream"), CASES)
def test_killed_while_it_answers_the_same_key_is_billed_once(tmp_path: Path, point: str, stream: bool) -> None:
    deployment = Embedded(tmp_path)
    try:
        deployment.start()
        deployment.key()
        deployment.service.stop()
        deployment.service.environment[VARIABLE] = f"{point}:1"
        answered = None
        with contextlib.suppress(Exception):  # some points are reached while it starts
            deployment.service.start()
            answered = ask(deployment, stream=stream)
        process = deployment.service.process
        assert process is not None
        assert process.wait(10) == -9, deployment.service.log.read_text()
        del deployment.service.environment[VARIABLE]
        deployment.service.start()
        again = ask(deployment, stream=stream)
        if point == STORED:
            assert answered is None
            assert again.status_code == 200
        if again.status_code == 409:
            assert again.json()["error"]["code"] in ("request_under_way", "outcome_unknown")
        else:
            assert again.status_code == 200
            assert ask(deployment, stream=stream).content == again.content
            assert [len(rows) for rows in deployment.charges().values()] == [1]
        deployment.audited()
    finally:
        deployment.stop()


def ask(deployment: Embedded, *, stream: bool) -> httpx.Response:
    with Client(deployment) as client:
        body = client.ask(simulate="tokens=5", stream=stream)
        return client.http.post("/v1/chat/completions", json=body, headers={"idempotency-key": "k"})
