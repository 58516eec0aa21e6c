"""Calls a model: picks a server, asks it, and asks another one if the first cannot have done anything.

A second server is asked once, and only where nothing was sent, or the first said that it is too busy (429, 503).
Everything else may have been carried out and is not repeated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from penstock.errors import UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from penstock.lanes.bodies import sanitised_error
from penstock.lanes.generic import ROUTE
from penstock.lanes.models import PATHS, ServedModel, Upstream
from penstock.lanes.upstreams import Balance, RetryBudget, Verdict
from penstock.ports import Clock, Observer, RequestRecord, UpstreamClient, UpstreamRequest, UpstreamResponse

ATTEMPTS_MAX: Final = 2
ERROR_BYTES_MAX: Final = 64 * 1024
_BUSY: Final = frozenset({429, 503})
CLIENTS_FAULT: Final = frozenset({400, 413, 415, 422})
_OUR_FAULT: Final = {
    401: "refuses Penstock's credential; correct the model's upstream credential",
    403: "refuses Penstock's credential; correct the model's upstream credential",
    404: "does not know the model or the endpoint; correct upstream_model or the upstream's url",
}


def was_sent(error: UpstreamError) -> bool:
    """The request may have been carried out: it was sent, and no status came back."""
    if isinstance(error, UpstreamTimeout):
        return error.phase != "connect"
    return isinstance(error, UpstreamBroken)


@dataclass(slots=True)
class Called:
    """A model server's answer with status 200, and whose it is."""

    response: UpstreamResponse
    model: ServedModel
    upstream: int


class Caller:
    """Calls any of some models. One per process, since it knows which servers work."""

    def __init__(self, client: UpstreamClient, clock: Clock, observer: Observer, models: Iterable[ServedModel]) -> None:
        self._client = client
        self._clock = clock
        self._observer = observer
        self._balances: dict[str, Balance] = {}
        self._retries: dict[str, RetryBudget] = {}
        self._templates: dict[tuple[str, int, str], tuple[str, dict[str, str]]] = {}
        for model in models:
            self._retries[model.name] = RetryBudget()
            self._balances[model.name] = Balance([upstream.weight for upstream in model.upstreams])
            for index, upstream in enumerate(model.upstreams):
                observer.upstream_changed(model.name, upstream_name(upstream), True)
                headers = {"content-type": "application/json", **upstream.headers}
                for route in PATHS:
                    self._templates[model.name, index, route] = (upstream.address(route), headers)
                if model.units is not None:
                    address = upstream.inference_address(model.upstream_model)
                    self._templates[model.name, index, ROUTE] = (address, headers)

    async def open(self, model: ServedModel, route: str, body: bytes, record: RequestRecord) -> Called:
        """Ask, and return once an answer with status 200 begins; ``release`` ends it.

        The reservation's id goes along as ``x-request-id``, so that the server's log can be compared with the ledger.

        Raises:
            UpstreamError: Its subclasses as ``UpstreamClient.open``; itself for an error status. Then ``status`` is
                set only if the client is to see it: 400, 413, 415, 422, 429, 503.
        """
        balance = self._balances[model.name]
        began_s = now_s = self._clock.monotonic_s()
        tried: list[int] = []
        retries = self._retries[model.name]
        retries.earn()
        while True:
            index = balance.pick(now_s=now_s, avoid=tried)
            assert index is not None
            tried.append(index)
            record.attempts += 1
            record.upstream = upstream_name(model.upstreams[index])
            url, headers = self._templates[model.name, index, route]
            headers = {**headers, "x-request-id": record.reservation}
            if record.trace is not None:
                headers["traceparent"] = record.trace.calling()
            request = UpstreamRequest(
                method="POST",
                url=url,
                headers=headers,
                body=body,
                connect_s=model.connect_s,
                first_byte_s=model.first_byte_s,
                between_chunks_s=model.between_chunks_s,
                total_s=max(0.001, model.total_s - (now_s - began_s)),
            )
            try:
                return await self._attempt(model, index, request)
            except UpstreamError as error:
                may_ask_another = error.status in _BUSY or not (was_sent(error) or type(error) is UpstreamError)
                if not may_ask_another or len(tried) == min(ATTEMPTS_MAX, len(model.upstreams)):
                    raise
                if not retries.spend():
                    record.extra["retry_budget"] = "used up"
                    raise
            now_s = self._clock.monotonic_s()

    def release(self, called: Called, verdict: Verdict) -> None:
        """The answer is over, or no longer wanted."""
        called.response.close()
        self._judge(called.model, called.upstream, verdict)

    async def _attempt(self, model: ServedModel, index: int, request: UpstreamRequest) -> Called:
        verdict = Verdict.NOTHING
        response = None
        try:
            response = await self._client.open(request)
            if response.status == 200:
                return Called(response, model, index)
            verdict = Verdict.FAILED if response.status >= 500 else Verdict.WORKED
            raise await _status_error(response, model)
        except (UpstreamUnreachable, UpstreamTimeout, UpstreamBroken):
            verdict = Verdict.FAILED
            raise
        finally:
            if response is None or response.status != 200:
                if response is not None:
                    response.close()
                self._judge(model, index, verdict)

    def _judge(self, model: ServedModel, index: int, verdict: Verdict) -> None:
        is_healthy = self._balances[model.name].done(index, verdict, now_s=self._clock.monotonic_s())
        if is_healthy is not None:
            self._observer.upstream_changed(model.name, upstream_name(model.upstreams[index]), is_healthy)


def upstream_name(upstream: Upstream) -> str:
    """What metrics and logs call it: its address."""
    return upstream.url


async def _status_error(response: UpstreamResponse, model: ServedModel) -> UpstreamError:
    """What an answer with another status than 200 means."""
    status = response.status
    if status in CLIENTS_FAULT:
        try:
            body = await response.read(ERROR_BYTES_MAX)
        except UpstreamError:  # the status alone says enough
            body = b""
        message = f"the model server refused the request with status {status}"
        return UpstreamError(message, status=status, body=sanitised_error(body, status, model))
    if status in _BUSY:
        wait_ms = _retry_after_ms(response.headers.get("retry-after"))
        return UpstreamError(
            f"the model server is too busy; retry in {wait_ms / 1000:g} s", status=status, retry_after_ms=wait_ms
        )
    if status in _OUR_FAULT:
        return UpstreamError(f"the model server {_OUR_FAULT[status]}")
    return UpstreamError(f"the model server answered with status {status}")


def _retry_after_ms(value: str | None) -> int:
    """Seconds of a Retry-After header as milliseconds, 1 s to 60 s; 1 s for a date or none."""
    return min(60, max(1, int(value))) * 1000 if value is not None and value.isdecimal() else 1000
