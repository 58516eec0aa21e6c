"""The whole cluster of ``penstock up``: both lanes, and every process and service killed and frozen under load."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random

import httpx2 as httpx
import pytest
from openai import OpenAI

from penstock.quota.events import EventKind
from tests.counts import TORTURE, count
from tests.system.clusters import Cluster, billed, until
from tests.system.fault_proxy import FAULTS as FAULTS_OF_LINKS
from tests.system.fault_proxy import disturb, mend
from tests.system.queue_faults import (
    AT_HAND,
    FAULTS,
    OURS,
    POINTS,
    SERVICES,
    FaultyCluster,
    ProxiedLinks,
    Senders,
    again,
    all_ended,
    wrong_with,
)
from tests.system.soak_faults import Fault

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]

FEW = (Fault("crash", "worker-published"), Fault("freeze", "rabbitmq"), Fault("crash", "collector-stored"))
ENDED_S = 600.0


def test_the_official_client_chats_streams_and_reads_its_usage(cluster: Cluster) -> None:
    client = OpenAI(base_url=f"{cluster.url}/v1", api_key=cluster.keys["acme"], max_retries=0)
    whole = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 0
    stream = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "hello"}], stream=True, stream_options={"include_usage": True}
    )
    last = list(stream)[-1]
    assert last.usage is not None
    events = cluster.audited()
    assert sum(event.usage.completion for event in events) >= (
        whole.usage.completion_tokens + last.usage.completion_tokens
    )


def test_a_job_is_accepted_runs_and_is_billed_once(cluster: Cluster) -> None:
    with cluster.client() as client:
        job = cluster.submit(client, simulate="tokens=20")
        ended = cluster.ended(client, job)
        assert (ended["status"], ended["usage"]["completion_tokens"]) == ("succeeded", 20)
        assert ended["result"]["body"]["choices"]
        with cluster.client(cluster.keys["other"]) as stranger:
            assert stranger.get(f"/v1/jobs/{job}").status_code == 404
    assert billed(cluster.audited())[job] == 1


def test_a_running_job_stops_within_five_seconds_of_its_cancellation(cluster: Cluster) -> None:
    with cluster.client() as client:
        job = cluster.submit(client, simulate="tokens=4000", max_tokens=4000)
        until(lambda: client.get(f"/v1/jobs/{job}").json()["status"] == "running")
        assert client.delete(f"/v1/jobs/{job}").status_code in (200, 202)
        ended = cluster.ended(client, job)
    assert ended["status"] == "cancelled"
    until(lambda: any(line["request_id"] == job for line in cluster.model.produced()))
    (line,) = (line for line in cluster.model.produced() if line["request_id"] == job)
    assert line["completion"] < 200 * 8  # 200 tokens a second, 5 s of them and some
    rows = [event for event in cluster.audited() if event.reservation == job and event.kind == EventKind.POSTED]
    assert [event.usage.completion for event in rows] == [pytest.approx(line["completion"], abs=400)]


@pytest.mark.parametrize("lane", ["realtime", "queue"])
def test_a_replay_through_either_lane_is_billed_to_the_token(cluster: Cluster, lane: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("".join(f"{organisation}: {key}\n" for organisation, key in cluster.keys.items()))
    told = cluster.command(
        "replay", "--lane", lane, "--requests", "60", "--url", cluster.url, "--keys", str(keys), "--model", "m",
        "--model", "n", "--data", str(cluster.data), "--model-log", str(cluster.model.produced_log),
    )  # fmt: skip
    assert "difference between ledger and model server, request by request: 0 tokens, $0.00" in told
    cluster.audited()


@pytest.mark.parametrize("name", [*OURS, *SERVICES])
def test_nothing_accepted_is_lost_or_billed_twice_when_one_is_killed(cluster: Cluster, name: str) -> None:
    accepted: list[str] = []

    def submit(number: int) -> None:
        with cluster.client() as client:
            try:
                accepted.append(cluster.submit(client, content=f"job {number}", simulate="tokens=60"))
            except (AssertionError, httpx.TransportError):
                return  # refused: nothing was promised

    with ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(submit, number) for number in range(40)]
        until(lambda: len(accepted) >= 10)
        cluster.kill_one(name)
        for each in sent:
            each.result()
    with cluster.client() as client:
        ends = [cluster.ended(client, job) for job in accepted]
    assert {end["status"] for end in ends} == {"succeeded"}
    charged = billed(cluster.audited())
    assert [charged[job] for job in accepted] == [1] * len(accepted)
    assert set(charged.values()) == {1}


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_every_answer_and_every_job_is_billed_once_whatever_the_links_of_our_processes_do(
    cluster: FaultyCluster, seed: int
) -> None:
    accepted: list[str] = []
    with ProxiedLinks(cluster) as links:
        every = [(name, fault) for name in links.by_name for fault in FAULTS_OF_LINKS]
        faults = Random(seed).sample(every, count(len(every), short=3))
        for name, fault in faults:
            disturb(links.by_name[name], fault)
            for number in range(4):
                with links.client() as client, suppress(AssertionError, httpx.TransportError):
                    if number % 2:
                        ask(client)
                    else:
                        accepted.append(cluster.submit(client, simulate="tokens=20"))
            mend(links.by_name[name])
            with links.client() as client:
                until(lambda client=client: ask(client) == 200)  # and then all is well again
                accepted.append(cluster.submit(client, simulate="tokens=20"))
        stored = all_ended(cluster, accepted, bound_s=ENDED_S)
    wrong = list(wrong_with(cluster, accepted, stored))
    assert wrong == [], f"seed {seed}: {faults}"


@pytest.mark.torture
@pytest.mark.parametrize("point", ["job-forwarded", *(("gateway-reserved", "gateway-published") if TORTURE else ())])
def test_a_job_whose_door_dies_before_its_answer_is_one_job_for_its_idempotency_key(
    cluster: FaultyCluster, point: str
) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "once"}], "metadata": {"simulate": "tokens=20"}}
    headers = {"prefer": "respond-async", "idempotency-key": f"{point}-{len(cluster.stored())}"}

    def handed_in() -> httpx.Response | None:
        with cluster.client() as client, suppress(httpx.TransportError):
            return client.post("/v1/chat/completions", json=body, headers=headers)
        return None

    before = cluster.stored().keys()
    cluster.cause_by(Fault("crash", point), handed_in)
    answers: list[httpx.Response] = []

    def is_told() -> bool:
        answer = handed_in()
        if answer is not None and answer.status_code != 503:  # the dead one is being started
            answers.append(answer)
        return bool(answers)

    until(is_told)
    assert answers[0].status_code in (200, 202, 409), answers[0].text
    if point != "gateway-reserved":  # that hold is nobody's job, and ends at its deadline
        (job,) = cluster.stored().keys() - before
        all_ended(cluster, [job], bound_s=ENDED_S)
        assert billed(cluster.audited())[job] == 1
        again = handed_in()
        assert again is not None
        assert again.status_code == 200, again.text


def ask(client: httpx.Client) -> int:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "metadata": {"simulate": "tokens=10"}}
    return client.post("/v1/chat/completions", json=body).status_code


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_no_job_is_lost_or_billed_twice_or_without_a_result_whatever_dies(
    cluster: FaultyCluster, seed: int, record_property: Callable[[str, str], None]
) -> None:
    """Every process and service is killed and frozen once, and every point between two writes is hit once."""
    random = Random(seed)
    jobs = count(10_000, short=300)
    faults = random.sample(FAULTS, len(FAULTS)) if TORTURE else list(FEW)
    again_before = again(cluster, cluster.stored())
    senders = Senders(cluster)
    try:
        for number, fault in enumerate(faults):
            senders.until(jobs * number // len(faults) + random.randint(1, jobs // len(faults) // 2))
            cluster.cause(fault)
        senders.until(jobs)
    finally:
        senders.stop()
    stored = all_ended(cluster, senders.accepted, bound_s=ENDED_S)
    told = f"seed {seed}: {len(senders.accepted)} jobs accepted, {senders.refused} refused, {len(faults)} faults"
    wrong = list(wrong_with(cluster, senders.accepted, stored))
    assert wrong == [], (told, [str(fault) for fault in faults])
    run_again = again(cluster, stored) - again_before
    record_property("faults", f"{told}; {run_again} were run again")
    assert run_again <= len(faults) * AT_HAND, told
    assert not TORTURE or {fault.name for fault in faults if fault.what == "crash"} == POINTS.keys()
