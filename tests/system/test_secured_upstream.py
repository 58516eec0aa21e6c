"""A model server behind TLS with an authority of its own and a credential: all of it from the configuration."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
import trustme

from tests.system.programs import Service

pytestmark = pytest.mark.slow

ANSWER = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}  # fmt: skip
HELLO: Any = [{"role": "user", "content": "Say something."}]


class SecuredModel(ThreadingHTTPServer):
    """Answers one chat over TLS, and keeps the credentials that it was shown."""

    def __init__(self, authority: trustme.CA) -> None:
        super().__init__(("127.0.0.1", 0), _Chat)
        self.credentials: list[str | None] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        self.socket = context.wrap_socket(self.socket, server_side=True)


class _Chat(BaseHTTPRequestHandler):
    server: SecuredModel

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.credentials.append(self.headers["authorization"])
        body = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that it overrides
        """Silent."""


@contextmanager
def secured_model(authority: trustme.CA) -> Iterator[SecuredModel]:
    with SecuredModel(authority) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("is_trusted", [True, False], ids=["its own authority", "another authority"])
def test_an_upstream_is_called_by_tls_with_its_credential_only_if_its_certificate_is_trusted(
    tmp_path: Path, is_trusted: bool
) -> None:
    authority, other = trustme.CA(), trustme.CA()
    file = tmp_path / "ca.pem"
    (authority if is_trusted else other).cert_pem.write_to_path(str(file))
    with secured_model(authority) as model:
        service = Service(tmp_path / "service", "http://replaced", limits=("1M tokens/day",))
        written = service.folder / "penstock.yaml"
        secured = f"url: https://localhost:{model.server_port}, ca: {{file: {file}}}, credential: {{env: MODEL_TOKEN}}"
        written.write_text(written.read_text().replace("'http://replaced'", f"{{{secured}}}"))
        service.environment["MODEL_TOKEN"] = "for-the-model-alone"
        service.start()
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0) as client:
            if is_trusted:
                answer = client.chat.completions.create(model="m", messages=HELLO, max_tokens=5)
                assert answer.choices[0].message.content == "hello"
                assert model.credentials == ["Bearer for-the-model-alone"]
            else:
                with pytest.raises(openai.InternalServerError) as refused:
                    client.chat.completions.create(model="m", messages=HELLO, max_tokens=5)
                assert refused.value.status_code == 502
                assert model.credentials == []
        assert service.stop() == 0
        totals = json.loads(service.command("usage", "acme", "--json"))["organisations"][0]["totals"]
        assert totals["prompt_tokens"] + totals["completion_tokens"] == (7 if is_trusted else 0)
        assert "for-the-model-alone" not in service.log.read_text()
