"""Where the spans of a test arrive: a receiver of OTLP over HTTP, and what it was sent as plain records.

``collector`` puts OpenTelemetry's own in front of it, as ``otel_collector`` builds it.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.chart.rendering import tool
from tests.system.deployments import until
from tests.system.services import STOP_S, free_port, wait_until


@dataclass(frozen=True, slots=True)
class Span:
    """One span; ids in hexadecimal digits, ``parent`` empty for the first of a trace."""

    service: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    links: tuple[tuple[str, str], ...]
    is_error: bool
    began_ns: int
    ended_ns: int
    attributes: dict[str, Any] = field(hash=False)


class Receiver:
    """Listens on a free port until it is closed; ``raw`` is everything that came."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.raw = b""
        told = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert self.path == "/v1/traces"
                told.raw += body
                told.spans += _spans(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def trace(self, trace: str, *, count: int) -> list[Span]:
        """The spans of one trace, once there are so many."""

        def found() -> list[Span]:
            return [span for span in list(self.spans) if span.trace == trace]

        try:
            until(lambda: len(found()) >= count)
        except AssertionError as error:
            raise AssertionError(f"{error}; there are {sorted((s.service, s.name) for s in found())}") from None
        return found()

    def linked(self, spans: list[Span]) -> list[Span]:
        """What these link to, once all of it is here."""
        wanted = {link for span in spans for link in span.links}

        def found() -> list[Span]:
            return [span for span in list(self.spans) if (span.trace, span.id) in wanted]

        until(lambda: len(found()) == len(wanted))
        return found()


def _spans(request: Any) -> list[Span]:
    found = []
    for resource in request.resource_spans:
        service = _attributes(resource.resource.attributes).get("service.name", "")
        for scope in resource.scope_spans:
            for span in scope.spans:
                found.append(
                    Span(
                        service=service,
                        name=span.name,
                        kind=span.kind,
                        trace=span.trace_id.hex(),
                        id=span.span_id.hex(),
                        parent=span.parent_span_id.hex(),
                        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                        is_error=span.status.code == 2,
                        began_ns=span.start_time_unix_nano,
                        ended_ns=span.end_time_unix_nano,
                        attributes=_attributes(span.attributes),
                    )
                )
    return found


def _attributes(pairs: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in pairs}


def shape(spans: list[Span]) -> dict[str, str]:
    """Each span's ``service: name`` by its parent's, for one trace without doubles; the first has an empty parent."""
    names = {span.id: f"{span.service}: {span.name}" for span in spans}
    return {names[span.id]: names.get(span.parent, span.parent) for span in spans}


@contextmanager
def collector(folder: Path, receiver_url: str) -> Iterator[str]:
    """OpenTelemetry's collector, which hands on what it takes to a receiver; the address that it takes it at."""
    folder.mkdir()
    port, log_file = free_port(), folder / "log"
    configuration = {
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}}},
        "exporters": {"otlphttp": {"endpoint": receiver_url, "compression": "none"}},
        "service": {
            "telemetry": {"metrics": {"level": "none"}},
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["otlphttp"]}},
        },
    }
    command = [str(tool("otel-collector")), "--config", f"yaml:{json.dumps(configuration)}"]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: b"Everything is ready" in log_file.read_bytes(), process, log_file, bound_s=60)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(STOP_S)
