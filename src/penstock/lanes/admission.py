"""One request that was let in: what it holds, what it is charged in each case, and its end."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from penstock.errors import Forbidden, PenstockError, UpstreamError
from penstock.lanes.calling import Called, Caller, was_sent
from penstock.lanes.chunks import RefusedInStream
from penstock.lanes.counting import Bounds
from penstock.lanes.leases import Lease, Leases
from penstock.lanes.measuring import local_charge
from penstock.lanes.models import ServedModel
from penstock.lanes.requests import InferenceRequest
from penstock.lanes.settling import Settling
from penstock.lanes.upstreams import Verdict
from penstock.ports import Clock
from penstock.quota.events import Usage
from penstock.quota.operations import Reserve, Settle, Void


def _no_progress() -> tuple[int, int]:
    return 0, 0


class Admission(msgspec.Struct, kw_only=True, eq=False):
    """A reservation, from its grant to its end. Ends once; later ends do nothing.

    Args:
        tokens_held: What the store holds for it.
        called: The model server's answer, while there is one.
        progress: Prompt tokens if somebody counted them, else 0, and completion tokens so far.
    """

    request: InferenceRequest
    model: ServedModel
    reserve: Reserve
    tokens_held: int
    bounds: Bounds
    clock: Clock
    caller: Caller
    settling: Settling
    leases: Leases
    called: Called | None = None
    progress: Callable[[], tuple[int, int]] = _no_progress
    is_cancelled: bool = False
    is_ended: bool = False
    _lease: Lease | None = None

    def begin(self) -> None:
        """Renew its lease from now on."""
        self._lease = Lease(
            organisation=self.reserve.organisation,
            reservation=self.reserve.reservation,
            progress=lambda: self.progress(),
            cancel=self._cancel,
            touched_s=self.clock.monotonic_s(),
        )
        self.leases.hold(self._lease)

    def local(self, completion: int) -> Usage:
        """The charge where the model server's count is missing."""
        return local_charge(self.request, self.model, self.bounds, completion)

    async def settle(self, usage: Usage) -> None:
        """Charge ``usage``; durable when it returns."""
        if self._end():
            self._record(usage)
            if self.request.record.trace is not None:
                self.request.record.trace.settling()
            cost_nanos = await self.settling.settle(self._settle_call(usage), self.reserve)
            self.request.record.cost_nanos = cost_nanos

    async def finish(self, usage: Usage, last: bytes) -> None:
        """Charge ``usage``, after the answer was stored that ends in ``last``, if it is to be."""
        if self.request.keep is None:
            await self.settle(usage)
            return
        try:
            await self.request.keep(last, usage, self.reserve)
        finally:
            await self.settle(usage)

    async def void(self, reason: str) -> None:
        """Charge nothing."""
        if self._end():
            call = Void(
                organisation=self.reserve.organisation,
                caller_now_ms=self.clock.now_ms(),
                reservation=self.reserve.reservation,
                reason=reason,
            )
            await self.settling.void(call, self.reserve)

    async def fail(self, error: UpstreamError, completion: int = 0) -> PenstockError:
        """Charge what the failure leaves to charge; give the error to show.

        Nothing was sent, or an error came before any token: void. Sent, and no answer: the prompt's estimate.
        """
        self.release(Verdict.FAILED)
        refused = completion == 0 and (isinstance(error, RefusedInStream) or not was_sent(error))
        if refused and not self.is_cancelled:
            await self.void(type(error).__name__)
        else:
            await self.settle(self.local(completion))
        if self.is_cancelled:
            return Forbidden("the request was cancelled; what was produced until then is charged", code="cancelled")
        return error

    def release(self, verdict: Verdict) -> None:
        """The model server's answer is over, or no longer wanted."""
        called = self.called
        if called is not None:
            self.called = None
            self.caller.release(called, Verdict.NOTHING if self.is_cancelled else verdict)

    def _cancel(self) -> None:
        self.is_cancelled = True
        if self.called is not None:
            self.called.response.close()  # whoever waits for it is told

    def _end(self) -> bool:
        if self.is_ended:
            return False
        self.is_ended = True
        if self._lease is not None:
            self.leases.release(self._lease)
            self._lease = None  # which knows us: without the circle no collector has to find us
        self.progress = _no_progress
        return True

    def _settle_call(self, usage: Usage) -> Settle:
        return Settle(
            organisation=self.reserve.organisation,
            caller_now_ms=self.clock.now_ms(),
            reservation=self.reserve.reservation,
            usage=usage,
        )

    def _record(self, usage: Usage) -> None:
        record = self.request.record
        record.prompt_tokens = usage.prompt
        record.cached_tokens = usage.cached
        record.completion_tokens = usage.completion
        record.usage_source = str(usage.source)
