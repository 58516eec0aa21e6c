"""What a run came to, in the figures that are compared: waiting, draining, replicas, GPU hours, money."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from penstock.planning.forecasting.autoscaler import Setting
from penstock.planning.forecasting.loads import SECOND_US
from penstock.planning.forecasting.simulation import Run, Sample, World

HOUR_US: Final = 3_600 * SECOND_US
SHOWN: Final = (50, 95, 99)
SAMPLES_MAX: Final = 600
GRAIN_US: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is to be kept, by so many of a hundred requests.

    Args:
        within_us: Queue lane: from acceptance until a job is done. Realtime lane: from arrival to the first token.
    """

    within_us: int
    percentile: int = 95


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a replica costs.

    Args:
        gpus: Of one replica.
        usd_per_gpu_hour: Of one GPU.
    """

    gpus: int = 1
    usd_per_gpu_hour: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One setting's figures.

    Args:
        first_token_us: By percentile of ``SHOWN``: from arrival to the first token.
        drain_us: By percentile: from arrival until done.
        judged_us: What the objective looks at, at its own percentile.
        replicas_mean: Paid for, over the whole time.
        waiting_max: The most that waited at once, as seen at KEDA's looks.
        samples: At most ``SAMPLES_MAX``, for pictures; of each stretch the one with the most waiting.
    """

    setting: Setting
    requests: int
    first_token_us: dict[int, int]
    drain_us: dict[int, int]
    judged_us: int
    is_met: bool
    replicas_mean: float
    replicas_max: int
    waiting_max: int
    gpu_hours: float
    cost_usd: float
    lasted_us: int
    samples: tuple[Sample, ...]


class Times:
    """How often each time occurred, rounded up to a tenth of a millisecond: counting millions is faster than sorting.

    Example:
        >>> times = Times([100, 200, 300, 400])
        >>> times.percentile(50), times.percentile(99)
        (200, 400)
    """

    def __init__(self, times_us: Iterable[int]) -> None:
        counted = Counter(-(-time_us // GRAIN_US) for time_us in times_us)
        self._grains = sorted(counted)
        self._up_to = list(accumulate(counted[grain] for grain in self._grains))

    def percentile(self, percent: int) -> int:
        """The least time that so many of a hundred do not exceed (nearest rank)."""
        rank = max(1, -(-self._up_to[-1] * percent // 100))
        return self._grains[bisect_left(self._up_to, rank)] * GRAIN_US


def outcome(world: World, run: Run, *, objective: Objective, price: Price) -> Outcome:
    """Add a run up."""
    waited_us = list(map(int.__sub__, run.started_us, world.load.at_us))
    firsts, drains = (
        Times(map(int.__add__, waited_us, world.first_us)),
        Times(map(int.__add__, waited_us, world.whole_us)),
    )
    judged_us = (drains if world.is_queued else firsts).percentile(objective.percentile)
    gpu_hours = run.paid_us / HOUR_US * price.gpus
    return Outcome(
        setting=run.setting,
        requests=len(world.load),
        first_token_us={percent: firsts.percentile(percent) for percent in SHOWN},
        drain_us={percent: drains.percentile(percent) for percent in SHOWN},
        judged_us=judged_us,
        is_met=judged_us <= objective.within_us,
        replicas_mean=run.paid_us / max(1, run.ended_us),
        replicas_max=max(sample.replicas for sample in run.samples),
        waiting_max=max(sample.waiting for sample in run.samples),
        gpu_hours=gpu_hours,
        cost_usd=gpu_hours * price.usd_per_gpu_hour,
        lasted_us=run.ended_us,
        samples=_thinned(run.samples),
    )


def _thinned(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    step = -(-len(samples) // SAMPLES_MAX)
    stretches = (samples[index : index + step] for index in range(0, len(samples), step))
    return tuple(max(stretch, key=lambda sample: (sample.waiting, sample.replicas)) for stretch in stretches)
