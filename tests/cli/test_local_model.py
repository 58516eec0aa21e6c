"""``penstock local-model`` answers by itself, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest


@pytest.mark.slow
@pytest.mark.local_model
def test_the_local_model_answers_by_itself_and_ends_with_its_command() -> None:
    command = [sys.executable, "-m", "penstock", "local-model", "--port", "0", "--model", "small", "--context", "512"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("local model on ").strip()
        body = {"model": "small", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] in range(1, 5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    host, _, port = url.removeprefix("http://").partition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), 5)
