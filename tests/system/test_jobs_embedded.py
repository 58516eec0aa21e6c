"""The embedded queue loses nothing that it accepted, and bills nothing twice, whenever the process is killed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from penstock.lanes.queueing import CRASH_POINTS
from penstock.wiring.crash import VARIABLE
from tests.system.deployments import Client, Embedded, until

pytestmark = pytest.mark.slow

JOBS = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@contextlib.contextmanager
def deployed(folder: Path, **settings: Any) -> Iterator[Embedded]:
    deployment = Embedded(folder, **settings)
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.stop()


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_killed_at_any_step_of_a_job_all_that_was_accepted_ends_and_is_billed_once(folder: Path, point: str) -> None:
    with deployed(folder) as deployment:
        key = deployment.key()
        deployment.service.stop()
        deployment.service.environment[VARIABLE] = f"{point}:{JOBS // 2}"
        deployment.service.start()
        accepted: list[str] = []
        with Client(deployment) as client, contextlib.suppress(httpx.TransportError):
            for _ in range(JOBS):
                accepted.append(client.accepted(simulate="tokens=5"))
            for job in accepted:
                client.ended(job)
        process = deployment.service.process
        assert process is not None
        assert process.wait(10) == -9, deployment.service.log.read_text()
        del deployment.service.environment[VARIABLE]
        deployment.service.start()
        assert deployment.key() == key
        with Client(deployment) as client:
            assert {client.ended(job)["status"] for job in accepted} == {"succeeded"}
        charges = deployment.charges()
        assert [len(charges[job]) for job in accepted] == [1] * len(accepted)
        deployment.audited()


def test_stopped_and_started_again_it_goes_on_with_what_waited_and_what_ran(folder: Path) -> None:
    with deployed(folder) as deployment:
        with Client(deployment) as client:
            jobs = [client.accepted(simulate="tokens=3 fault=slow_first_byte:6000") for _ in range(6)]
            client.running(jobs[0])
        assert deployment.service.stop() == 0
        deployment.service.start()
        with Client(deployment) as client:
            assert [client.ended(job)["status"] for job in jobs] == ["succeeded"] * len(jobs)
        assert sorted(len(rows) for rows in deployment.charges().values()) == [1] * len(jobs)
        deployment.audited()


def test_a_job_ends_at_its_deadline_and_pays_for_what_was_produced(folder: Path) -> None:
    with deployed(folder, queue="deadline: 3s") as deployment, Client(deployment) as client:
        job = client.ended(client.accepted(simulate="tokens=60 fault=slow_chunks:200"))
        until(lambda: bool(deployment.model.produced()))
        (line,) = deployment.model.produced()
        assert (job["status"], line["outcome"]) == ("expired", "aborted")
        assert 0 < job["usage"]["completion_tokens"] <= line["completion"] < 60
        deployment.audited()


def test_a_job_that_never_ran_expires_and_costs_nothing(folder: Path) -> None:
    limits = ("1M tokens/day", "1 concurrent")
    with deployed(folder, queue="deadline: 3s", limits=limits) as deployment, Client(deployment) as client:
        slow = client.ask(simulate="tokens=60 fault=slow_chunks:500", stream=True)
        with client.http.stream("POST", "/v1/chat/completions", json=slow) as stream:  # takes the one place
            assert stream.status_code == 200
            job = client.ended(client.accepted())
        assert (job["status"], job["usage"]) == ("expired", None)
        assert job["id"] not in {line["request_id"] for line in deployment.model.produced()}
        until(lambda: len(deployment.model.produced()) == 1)  # the stream that was left
        until(lambda: len(deployment.charges()) == 1)
        deployment.audited()


def test_results_are_deleted_when_their_time_is_over(folder: Path) -> None:
    with deployed(folder, queue="results: 1s") as deployment:
        with Client(deployment) as client:
            job = client.accepted()
            assert client.ended(job)["status"] == "succeeded"
        deployment.service.stop()
        deployment.service.start()  # it deletes at its start, and once a minute
        with Client(deployment) as client:
            until(lambda: client.http.get(f"/v1/jobs/{job}").status_code == 404)
            assert client.http.get("/v1/jobs").json()["data"] == []
        assert len(deployment.charges()[job]) == 1
