"""Whether requests should be sent here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from penstock.errors import StoreUnavailable
from penstock.ports import Clock
from penstock.quota.operations import Call, Inspect, Inspected

A = TypeVar("A")

STOPPING = "the process is stopping"


class FallibleStore(Protocol):
    """A quota store that knows whether it can be used."""

    @property
    def failure(self) -> str | None:
        """Why it cannot be used just now."""
        ...

    async def apply(self, call: Call[A]) -> A:
        """See ``penstock.ports.QuotaStore``."""
        ...


async def readiness(
    quota: FallibleStore, organisations: Iterable[str], clock: Clock, *, is_stopping: bool = False
) -> tuple[str, ...]:
    """Why no request should be sent here now, one sentence each; empty when ready."""
    if is_stopping:
        return (STOPPING,)
    if quota.failure is not None:
        return (f"the quota store cannot be used: {quota.failure}",)
    reasons: list[str] = []
    for name in organisations:
        try:
            standing = await quota.apply(Inspect(organisation=name, caller_now_ms=clock.now_ms(), holds_max=0))
        except StoreUnavailable as error:
            return (*reasons, error.message)
        if not isinstance(standing, Inspected):
            reasons.append(f"{name}: its quota is not ready")
    return tuple(reasons)
