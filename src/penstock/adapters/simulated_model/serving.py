"""The simulated model's HTTP server: routes, refusals, the journal, and what an engine would publish about itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from penstock.adapters.simulated_model import bodies, counting
from penstock.adapters.simulated_model.client import Client, ClientGone, Protocol
from penstock.adapters.simulated_model.instructions import Instructions
from penstock.adapters.simulated_model.journal import Journal, Production
from penstock.adapters.simulated_model.producing import Broken, Generation, Places, Settings

__all__ = ["Server", "Settings", "application"]

_decoder = msgspec.json.Decoder(bodies.Ask)
_inference_decoder = msgspec.json.Decoder(bodies.InferenceAsk)


class Refusal(Exception):
    """The request is not served; the answer's status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Model:
    """The ASGI application."""

    def __init__(self, settings: Settings, journal: Journal) -> None:
        self.settings = settings
        self.journal = journal
        self.places = Places(settings.concurrency)
        self._posts: dict[str, Callable[[Client, bytes], Awaitable[None]]] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completion,
            "/v1/embeddings": self._embeddings,
            "/tokenize": self._tokenize,
        }
        self._gets: dict[str, Callable[[], tuple[bytes, bytes]]] = {
            "/health": lambda: (b"{}", b"application/json"),
            "/v1/models": self._models,
            "/metrics": self._metrics,
            "/log": self._log,
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        client = Client(scope, receive, send)
        try:
            post = self._posts.get(scope["path"]) or self._inference(scope["path"])
            if post is not None and scope["method"] == "POST":
                await post(client, await client.body())
            elif scope["method"] == "GET" and scope["path"] in self._gets:
                body, content_type = self._gets[scope["path"]]()
                await client.answer(200, body, content_type)
            else:
                raise Refusal(404, f"no {scope['method']} {scope['path']} here")
        except Refusal as refusal:
            await client.answer(refusal.status, bodies.error(str(refusal), refusal.status))
        except ClientGone:
            pass
        finally:
            client.leave()

    def _read(self, body: bytes, *, any_model: bool = False) -> tuple[bodies.Ask, Instructions]:
        try:
            ask = _decoder.decode(body)
            wishes = ask.instructions()
        except ValueError as error:  # msgspec's errors are ValueErrors
            raise Refusal(400, str(error)) from error
        if not any_model and ask.model not in self.settings.models:
            raise Refusal(404, f"model {ask.model!r} is not served; models: {', '.join(self.settings.models)}")
        return ask, wishes

    async def _chat(self, client: Client, body: bytes) -> None:
        ask, wishes = self._read(body)
        if not ask.messages:
            raise Refusal(400, "messages: a chat needs at least one")
        await self._generate(client, "chat.completions", ask, wishes)

    async def _completion(self, client: Client, body: bytes) -> None:
        ask, wishes = self._read(body)
        if ask.prompt is None:
            raise Refusal(400, "prompt: missing")
        await self._generate(client, "completions", ask, wishes)

    def _generation(self, client: Client, route: str, ask: bodies.Ask, wishes: Instructions) -> Generation:
        prompt = ask.prompt_tokens() if wishes.prompt_tokens is None else wishes.prompt_tokens
        room = self.settings.context - prompt
        if room < 1:
            raise Refusal(400, f"the prompt has {prompt} tokens and the context {self.settings.context}; shorten it")
        bound = ask.max_tokens if ask.max_completion_tokens is None else ask.max_completion_tokens
        bound = room if bound is None else min(bound, room)
        if bound < 0 or (ask.n is not None and ask.n < 1):
            raise Refusal(400, "max_tokens and n must be positive")
        wanted = self.settings.tokens if wishes.tokens is None else wishes.tokens
        return Generation(
            settings=self.settings,
            client=client,
            route=route,
            ask=ask,
            wishes=wishes,
            outputs=(ask.n or 1) * (1 if route == "chat.completions" else max(1, len(ask.prompts()))),
            tokens=min(wanted, bound),
            prompt=prompt,
            finish="stop" if wanted <= bound else "length",
            produced=Production(request_id=client.header(b"x-request-id"), route=route, model=ask.model),
        )

    async def _generate(self, client: Client, route: str, ask: bodies.Ask, wishes: Instructions) -> None:
        generation = self._generation(client, route, ask, wishes)
        produced = generation.produced
        produced.outcome = "aborted"
        try:
            await _fail_early(client, wishes)
            async with self.places.taken(client):
                await generation.run()
            produced.outcome = "finished"
        except Refusal:
            produced.outcome = "refused"
            raise
        except Broken:
            produced.outcome = "broken"
        finally:
            self.journal.add(produced)

    async def _embeddings(self, client: Client, body: bytes) -> None:
        ask, wishes = self._read(body)
        prompts = ask.prompts()
        if not prompts:
            raise Refusal(400, "input: missing or empty")
        prompt = ask.prompt_tokens() if wishes.prompt_tokens is None else wishes.prompt_tokens
        produced = Production(request_id=client.header(b"x-request-id"), route="embeddings", model=ask.model)
        produced.outcome = "aborted"
        try:
            await _fail_early(client, wishes)
            async with self.places.taken(client):
                seconds = self.settings.latency_s + wishes.slow_first_byte_ms / 1000
                if self.settings.prefill:
                    seconds += prompt / self.settings.prefill
                if seconds:
                    await client.pause(seconds)
                produced.prompt = prompt
                await client.answer(200, self._embedded(ask, wishes, prompts, prompt))
            produced.outcome = "finished"
        except Refusal:
            produced.outcome = "refused"
            raise
        except Broken:
            produced.outcome = "broken"
        finally:
            self.journal.add(produced)

    def _embedded(self, ask: bodies.Ask, wishes: Instructions, prompts: list[Any], prompt: int) -> bytes:
        if wishes.garbage_body:
            return b"<html>It works!</html>"
        data = []
        for index, one in enumerate(prompts):
            vector = counting.embedding(msgspec.json.encode(one))
            shown = counting.base64_floats(vector) if ask.encoding_format == "base64" else vector
            data.append({"object": "embedding", "index": index, "embedding": shown})
        answer: dict[str, Any] = {"object": "list", "model": ask.model, "data": data}
        if not wishes.no_usage:
            answer["usage"] = bodies.usage(prompt, 0, None, wishes.absurd_usage)
        return msgspec.json.encode(answer)

    def _inference(self, path: str) -> Callable[[Client, bytes], Awaitable[None]] | None:
        """What answers for a generic model, by the Open Inference Protocol."""
        for name in self.settings.models:
            if path == f"/v2/models/{name}/infer":
                return partial(self._infer, name)
        return None

    async def _infer(self, model: str, client: Client, body: bytes) -> None:
        """The number of elements of each input; the sum is told as units, and journalled as the prompt."""
        try:
            ask = _inference_decoder.decode(body)
            wishes = ask.instructions()
        except ValueError as error:
            raise Refusal(400, str(error)) from error
        produced = Production(request_id=client.header(b"x-request-id"), route="infer", model=model)
        produced.outcome = "aborted"
        try:
            await _fail_early(client, wishes)
            async with self.places.taken(client):
                seconds = self.settings.latency_s + wishes.slow_first_byte_ms / 1000
                if seconds:
                    await client.pause(seconds)
                produced.prompt = ask.elements()
                await client.answer(200, bodies.inferred(model, ask, wishes))
            produced.outcome = "finished"
        except Refusal:
            produced.outcome = "refused"
            raise
        except Broken:
            produced.outcome = "broken"
        finally:
            self.journal.add(produced)

    async def _tokenize(self, client: Client, body: bytes) -> None:
        ask, _ = self._read(body, any_model=True)
        ask.prompt = ask.content if ask.content is not None else ask.prompt
        texts = [one for one in ask.prompts() if isinstance(one, str)]
        tokens = [token for text in texts for token in counting.token_ids(text)]
        answer = {"count": ask.prompt_tokens(), "max_model_len": self.settings.context, "tokens": tokens}
        await client.answer(200, msgspec.json.encode(answer))

    def _models(self) -> tuple[bytes, bytes]:
        data = [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "penstock",
                "max_model_len": self.settings.context,
            }
            for name in self.settings.models
        ]
        return msgspec.json.encode({"object": "list", "data": data}), b"application/json"

    def _log(self) -> tuple[bytes, bytes]:
        self.journal.flush()
        totals = {model: asdict(sums) for model, sums in self.journal.totals.items()}
        return msgspec.json.encode({"models": totals}), b"application/json"

    def _metrics(self) -> tuple[bytes, bytes]:
        label = _label(",".join(self.settings.models))
        lines = [
            "# TYPE vllm:num_requests_running gauge",
            f'vllm:num_requests_running{{model_name="{label}"}} {self.places.running}',
            "# TYPE vllm:num_requests_waiting gauge",
            f'vllm:num_requests_waiting{{model_name="{label}"}} {self.places.waiting}',
            "# TYPE vllm:prompt_tokens counter",
            "# TYPE vllm:generation_tokens counter",
        ]
        for model, sums in self.journal.totals.items():
            lines.append(f'vllm:prompt_tokens_total{{model_name="{_label(model)}"}} {sums.prompt}')
            lines.append(f'vllm:generation_tokens_total{{model_name="{_label(model)}"}} {sums.completion}')
        return "\n".join([*lines, ""]).encode(), b"text/plain; version=0.0.4; charset=utf-8"


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


async def _fail_early(client: Client, wishes: Instructions) -> None:
    if wishes.refuse_status:
        raise Refusal(wishes.refuse_status, "refused as the request asked")
    if wishes.hang:
        await client.pause(None)
    if wishes.break_before:
        await client.cut()
        raise Broken


def application(settings: Settings, journal: Journal | None = None) -> Model:
    """Make the ASGI application; its faults need ``client.Protocol`` below it."""
    return Model(settings, journal or Journal())


class Server:
    """Runs the simulated model on a socket of its own.

    Args:
        around: What is served in the model's place, and calls it.

    Example::

        async with Server(Settings(models=("chat",)), port=0, log=None) as server:
            ...  # server.url
    """

    def __init__(
        self,
        settings: Settings,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        log: Path | None = None,
        around: Callable[[Model], Callable[[Any, Any, Any], Awaitable[None]]] = lambda model: model,
    ) -> None:
        self.journal = Journal(path=log)
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((host, port))
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            around(application(settings, self.journal)),
            http=Protocol,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,  # as usual servers do: after uvicorn's 5 s, clients lose a request now and then
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Server:
        """Start; signals are left to whoever started it."""
        self._task = asyncio.create_task(self._server._serve([self._socket]))
        while not self._server.started:
            if self._task.done():
                await self._task
            await asyncio.sleep(0.001)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop; a caller that is still being served is cut off after a second."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self.journal.close()
        self._socket.close()
