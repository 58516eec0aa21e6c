"""How many tokens a request holds: a bound that cannot be exceeded, or an estimate learned from what came before.

``strict`` never runs into overage. ``learned`` holds less and turns its mistakes into visible debt. Both look only
at what every caller knows of a request, so that the twins agree.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from penstock.quota.definitions import Model

BODY_UNBOUNDED = (1 << 31) - 1  # what a caller sends as body_bytes when bytes cannot bound the prompt
SAMPLES_MIN = 20
SAMPLES_MAX = 1_024


def _edges() -> tuple[int, ...]:
    """64 edges, each a sixth above the one before, the last above every answer."""
    edges = [16]
    while len(edges) < 63:
        edges.append(edges[-1] + edges[-1] // 6)
    return (*edges, 1 << 31)


EDGES = _edges()


def strict_prompt(model: Model, body_bytes: int, prompts: int, prompt_tokens: int | None) -> int:
    """The most tokens that a request's prompts can have.

    Args:
        prompt_tokens: Exact, if somebody counted; then that is the bound.

    Example:
        >>> strict_prompt(Model(name="m", context=8192, template_tokens=10), 500, 1, None)
        510
        >>> strict_prompt(Model(name="m", context=8192, template_tokens=10), BODY_UNBOUNDED, 2, None)
        16404
    """
    if prompt_tokens is not None:
        return prompt_tokens
    return min(body_bytes * model.tokens_per_byte_max, model.context * prompts) + model.template_tokens * prompts


@dataclass(slots=True)
class Estimator:
    """What one organisation's requests to one model were like. Plain data; halved as it fills, so that it forgets.

    Args:
        bins: Of completion tokens, by ``EDGES``.
        count: Samples since the start, halved with the bins.
        prompt_tokens, prompt_bytes: Sums over requests whose bytes say something about their tokens.
    """

    bins: list[int] = field(default_factory=lambda: [0] * len(EDGES))
    count: int = 0
    prompt_tokens: int = 0
    prompt_bytes: int = 0


def observe(estimator: Estimator, *, prompt: int, completion: int, body_bytes: int) -> None:
    """Learn from one settled request.

    Example:
        >>> seen = Estimator()
        >>> for _ in range(20): observe(seen, prompt=50, completion=100, body_bytes=200)
        >>> completion_q95(seen), learned_prompt(seen, 400)
        (106, 100)
    """
    estimator.bins[bisect_left(EDGES, completion)] += 1
    estimator.count += 1
    if body_bytes < BODY_UNBOUNDED:
        estimator.prompt_tokens += prompt
        estimator.prompt_bytes += body_bytes
    if estimator.count >= SAMPLES_MAX:
        estimator.bins = [count // 2 for count in estimator.bins]
        estimator.count = sum(estimator.bins)
        estimator.prompt_tokens //= 2
        estimator.prompt_bytes //= 2


def completion_q95(estimator: Estimator) -> int | None:
    """The smallest edge that 95 of 100 completions stayed within; None under 20 samples."""
    if estimator.count < SAMPLES_MIN:
        return None
    seen = 0
    for edge, count in zip(EDGES, estimator.bins, strict=True):
        seen += count
        if 100 * seen >= 95 * estimator.count:
            return edge
    raise AssertionError("an estimator's bins add up to its count")


def learned_prompt(estimator: Estimator, body_bytes: int) -> int | None:
    """Tokens that so many bytes usually are; None under 20 samples, or if no sample or not this one had bytes."""
    if estimator.count < SAMPLES_MIN or not estimator.prompt_bytes or body_bytes == BODY_UNBOUNDED:
        return None
    tokens_per_1000_bytes = -(-1000 * estimator.prompt_tokens // estimator.prompt_bytes)
    return -(-tokens_per_1000_bytes * body_bytes // 1000)
