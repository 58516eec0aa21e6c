"""Rate-limit headers: the tightest tokens limit and the tightest requests limit of what a request fell under.

Both families are sent: the six ``x-ratelimit-*`` that OpenAI's clients know, and the IETF draft's two. What depends
only on a limit and its cap is worked out once and kept.

Source:
    draft-ietf-httpapi-ratelimit-headers; OpenAI's rate limit guide for the first family.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from penstock.quota.definitions import Metric
from penstock.quota.limits import parse_limit_id
from penstock.quota.operations import Reading

Headers = list[tuple[bytes, bytes]]

_LETTERS = {1_000: "s", 60_000: "m", 3_600_000: "h", 86_400_000: "d", 604_800_000: "w", 0: "month"}
_KEPT_MAX = 8192
_TOKENS, _REQUESTS = Metric.TOKENS, Metric.REQUESTS


class _Face(NamedTuple):
    """What a limit looks like in headers, as far as only its identity and cap decide."""

    cap: int
    metric: Metric
    name: str
    policy: str


_faces: dict[str, _Face] = {}
_forms: dict[tuple[str, str], tuple[int, int, bytes]] = {}  # by the ids of both limits: both caps, and the lines


def _face(reading: Reading) -> _Face:
    limit = parse_limit_id(reading.limit)
    letter = _LETTERS.get(limit.period_ms)
    initial = limit.metric.value[0]
    name = f"{initial}p{letter}" if letter else f"{initial}p{limit.period_ms}ms"
    policy = f'"{name}";q={reading.cap}' + (f";w={max(1, limit.period_ms // 1000)}" if limit.period_ms else "")
    face = _Face(reading.cap, limit.metric, name, policy)
    if len(_faces) >= _KEPT_MAX:
        _faces.clear()
    _faces[reading.limit] = face
    return face


def _form(requests: Reading | None, tokens: Reading | None) -> bytes:
    """The lines with a place for each number that changes; kept for each pair of limits."""
    ids = requests.limit if requests else "", tokens.limit if tokens else ""
    caps = requests.cap if requests else 0, tokens.cap if tokens else 0
    known = _forms.get(ids)
    if known is not None and known[:2] == caps:
        return known[2]
    faces = []
    lines = ""
    for reading in (requests, tokens):
        if reading is not None:
            face = _faces[reading.limit]
            faces.append(face)
            unit = face.metric.value
            lines += f"x-ratelimit-limit-{unit}: {face.cap}\r\n"
            lines += f"x-ratelimit-remaining-{unit}: %d\r\nx-ratelimit-reset-{unit}: %b\r\n"
    lines += f"ratelimit-policy: {', '.join(face.policy for face in faces)}\r\n"
    lines += "ratelimit: " + ", ".join(f'"{face.name}";r=%d;t=%d' for face in faces) + "\r\n"
    if len(_forms) >= _KEPT_MAX:
        _forms.clear()
    form = lines.encode()
    _forms[ids] = *caps, form
    return form


def go_duration(duration_ms: int) -> bytes:
    """Milliseconds as Go prints a duration, which is what OpenAI's headers carry.

    Example:
        >>> [go_duration(ms) for ms in (0, 12, 1_000, 1_250, 360_000, 3_600_001)]
        [b'0s', b'12ms', b'1s', b'1.25s', b'6m0s', b'1h0m0.001s']
    """
    if duration_ms < 1000:
        return b"%dms" % duration_ms if duration_ms > 0 else b"0s"
    seconds, rest_ms = divmod(duration_ms, 1000)
    fraction = b"." + (b"%03d" % rest_ms).rstrip(b"0") if rest_ms else b""
    if seconds < 60:
        return b"%d%ss" % (seconds, fraction)
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return b"%dm%d%ss" % (minutes, seconds, fraction)
    hours, minutes = divmod(minutes, 60)
    return b"%dh%dm%d%ss" % (hours, minutes, seconds, fraction)


def rate_headers(readings: Iterable[Reading]) -> Headers:
    """The headers for these readings; none for a metric that nothing limits."""
    return [(name, value) for name, _, value in (line.partition(b": ") for line in rate_lines(readings).splitlines())]


def rate_lines(readings: Iterable[Reading]) -> bytes:
    """The same as they go over the wire, each ended by CR LF.

    Tightest is the least available; of equals, the one that takes longest to reset.
    """
    tokens: Reading | None = None
    requests: Reading | None = None
    for reading in readings:
        face = _faces.get(reading.limit)
        if face is None or face.cap != reading.cap:
            face = _face(reading)
        metric = face.metric
        if metric is _TOKENS:
            if tokens is None or _tighter(reading, tokens):
                tokens = reading
        elif metric is _REQUESTS and (requests is None or _tighter(reading, requests)):
            requests = reading
    if requests is None and tokens is None:
        return b""
    shown: tuple[int | bytes, ...] = ()
    state: tuple[int, ...] = ()
    for tightest in (requests, tokens):
        if tightest is not None:
            available, resets_in_ms = tightest.available, tightest.resets_in_ms
            shown += available, go_duration(resets_in_ms)
            state += available, -(-resets_in_ms // 1000)
    return _form(requests, tokens) % (shown + state)


def _tighter(one: Reading, other: Reading) -> bool:
    if one.available != other.available:
        return one.available < other.available
    return one.resets_in_ms > other.resets_in_ms


def retry_headers(retry_after_ms: int) -> Headers:
    """When to come back: OpenAI's clients read the first, everybody else the second (whole seconds, rounded up)."""
    return [(b"retry-after-ms", b"%d" % retry_after_ms), (b"retry-after", b"%d" % -(-retry_after_ms // 1000))]
