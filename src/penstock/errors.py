"""Every error that Penstock raises on purpose.

::

    PenstockError
    ├── ConfigurationError          penstock.yaml is wrong: every problem, each with its path
    ├── RequestError                the client's request is wrong; carries the HTTP answer's type, param and code
    │   ├── InvalidRequest          400
    │   ├── Unauthenticated         401
    │   ├── Forbidden               403
    │   ├── NotFound                404
    │   ├── MethodNotAllowed        405
    │   ├── TooSlow                 408
    │   ├── Conflict                409
    │   │   └── AlreadyReserved     the quota knows this reservation, in some state
    │   ├── Outdated                412
    │   ├── TooLarge                413
    │   ├── UnsupportedMedia        415
    │   ├── Mismatched              422
    │   └── Unconditional           428
    ├── QuotaDenied                 a limit refused: 429, or 400 if it will never fit
    ├── StoreUnavailable            quota or ledger cannot be reached or is not ready: 503
    ├── Deposed                     another keeper took over: this one may write no more
    ├── ProgramFailed               a child process did not start
    └── UpstreamError               the model server failed: 502, 504 on a timeout, or its own refusal passed on
        ├── UpstreamUnreachable     nothing was sent: another upstream may be tried
        ├── UpstreamTimeout         connect, first byte, between chunks or total
        └── UpstreamBroken          broke off, or answered garbage

A class exists only if some caller treats it differently. ``api`` turns the tree into HTTP, once.
"""

from __future__ import annotations

from typing import Any, ClassVar


class PenstockError(Exception):
    """Something went wrong."""

    def __init__(self, message: str | None = None, **data: Any) -> None:
        self.data = data
        template = message or (type(self).__doc__ or "").strip().splitlines()[0]
        super().__init__(template.format(**data) if data and message is None else template)

    @property
    def message(self) -> str:
        """What happened, how much, what next; safe to show to a client."""
        return str(self.args[0])


class ConfigurationError(PenstockError):
    """The configuration has problems."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class RequestError(PenstockError):
    """The request is wrong."""

    status: ClassVar[int] = 400
    type: ClassVar[str] = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class InvalidRequest(RequestError):
    """The request cannot be understood or will never be served."""


class Unauthenticated(RequestError):
    """No valid API key was given."""

    status = 401


class Forbidden(RequestError):
    """The key is valid, and its scope excludes this."""

    status = 403


class NotFound(RequestError):
    """There is no such thing, or it belongs to somebody else."""

    status = 404


class MethodNotAllowed(RequestError):
    """The path exists, and does not answer this method."""

    status = 405


class TooSlow(RequestError):
    """The body did not arrive in time."""

    status = 408


class Conflict(RequestError):
    """The same request is under way, or its outcome is unknown."""

    status = 409


class AlreadyReserved(Conflict):
    """The same request is under way already, or has ended.

    ``state`` is that of its reservation.
    """

    def __init__(self, message: str, *, state: str) -> None:
        super().__init__(message)
        self.state = state


class Outdated(RequestError):
    """Somebody else changed the record since it was read."""

    status = 412


class TooLarge(RequestError):
    """The body is larger than is read."""

    status = 413


class UnsupportedMedia(RequestError):
    """The body is declared as something other than JSON."""

    status = 415


class Mismatched(RequestError):
    """The same idempotency key came with another body."""

    status = 422


class Unconditional(RequestError):
    """The change does not say which state of the record it was made from."""

    status = 428


class QuotaDenied(PenstockError):
    """A limit refused. ``denied`` is the store's answer (``penstock.quota.operations.Denied``)."""

    def __init__(self, message: str, *, denied: Any) -> None:
        super().__init__(message)
        self.denied = denied


class StoreUnavailable(PenstockError):
    """The quota store cannot be reached or is not ready."""

    def __init__(self, message: str, *, retry_after_ms: int = 1000, code: str = "quota_unavailable") -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms
        self.code = code


class ProgramFailed(PenstockError):
    """A child process ended before it was ready, or was not ready in time."""


class Deposed(PenstockError):
    """Another keeper took over, so nothing was written."""


class UpstreamError(PenstockError):
    """The model server failed. ``status`` and ``body`` are its own answer, if it gave one."""

    def __init__(
        self, message: str, *, status: int | None = None, body: bytes = b"", retry_after_ms: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.retry_after_ms = retry_after_ms


class UpstreamUnreachable(UpstreamError):
    """The model server could not be reached; nothing was sent."""


class UpstreamTimeout(UpstreamError):
    """The model server was too slow. ``phase`` is connect, first_byte, between_chunks or total."""

    def __init__(self, message: str, *, phase: str) -> None:
        super().__init__(message)
        self.phase = phase


class UpstreamBroken(UpstreamError):
    """The model server broke off or answered garbage."""
