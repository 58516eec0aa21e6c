"""KEDA and the horizontal pod autoscaler, as far as they decide how many replicas there are and when.

::

    0 replicas    KEDA looks each ``polling``: something is there -> ``max(1, min)``
    1 or more     the HPA looks every 15 s: each trigger asks for ceil(value / target), or for what there is if that is
                  within 10 % of it; the largest counts
                  out: at once, doubling or four more in 15 s, whichever is more
                  in:  to the most that was asked for within ``window``, one in each period of that length
    back to 0     KEDA, once nothing was there for ``cooldown``

Source: Kubernetes' ``pkg/controller/podautoscaler`` and KEDA's ``pkg/scaling``, as documented; timings as the chart
sets them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from penstock.planning.forecasting.loads import SECOND_US

SYNC_US: Final = 15 * SECOND_US
TOLERANCE_PERCENT: Final = 10
OUT_PERIOD_US: Final = 15 * SECOND_US
OUT_PODS: Final = 4
IN_PERIOD_LEAST_US: Final = 60 * SECOND_US
IN_PERIOD_MOST_US: Final = 1_800 * SECOND_US


class Trigger(StrEnum):
    """What replicas follow."""

    QUEUE = "queue"
    """Jobs that wait or run, by what one replica works on at once."""
    TOKENS = "tokens"
    """The keeper's figure: ``penstock.planning.scaling``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way to scale, under a name.

    Args:
        triggers: What is followed; none: ``replicas_min`` stay as they are.
        polling_us: How often KEDA looks.
        cooldown_us: How long nothing must be there before the last replica goes.
        window_us: How long fewer must be enough before one goes.
    """

    name: str
    triggers: tuple[Trigger, ...]
    replicas_min: int
    replicas_max: int
    polling_us: int = 15 * SECOND_US
    cooldown_us: int = 300 * SECOND_US
    window_us: int = 300 * SECOND_US

    def __post_init__(self) -> None:
        if not 0 <= self.replicas_min <= self.replicas_max or self.replicas_max < 1:
            bounds = f"{self.replicas_min} to {self.replicas_max}"
            raise ValueError(f"{self.name}: replicas are {bounds}; wanted 0 <= min <= max, and a max of 1 or more")
        if self.polling_us < SECOND_US or self.cooldown_us < 0 or self.window_us < 0:
            raise ValueError(f"{self.name}: polling is 1 s or more, cooldown and window are not below 0")
        if not self.triggers and self.replicas_min != self.replicas_max:
            raise ValueError(f"{self.name}: without a trigger the number of replicas is fixed; set min and max to it")

    @property
    def is_fixed(self) -> bool:
        """Nothing ever changes."""
        return self.replicas_min == self.replicas_max


class Autoscaler:
    """Its decisions for one pool; ``replicas`` is what was asked for last."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.replicas = setting.replicas_min
        self._active_us = 0
        self._wanted: deque[tuple[int, int]] = deque()
        self._changes: deque[tuple[int, int]] = deque()
        self._in_period_us = min(IN_PERIOD_MOST_US, max(IN_PERIOD_LEAST_US, setting.window_us))

    def poll(self, now_us: int, *, is_active: bool) -> None:
        """What KEDA does: from nothing to something, and back; the HPA's policies do not count its changes."""
        setting = self.setting
        if is_active:
            self._active_us = now_us
            if self.replicas == 0:
                self.replicas = max(1, setting.replicas_min)
        elif setting.replicas_min == 0 < self.replicas and now_us - self._active_us >= setting.cooldown_us:
            self.replicas = 0
            self._wanted.clear()

    def sync(self, now_us: int, values: Sequence[tuple[int, int]]) -> None:
        """What the HPA does.

        Args:
            values: Of each trigger: its value, and what of it one replica should have.
        """
        if self.replicas == 0 or not values:
            return
        setting = self.setting
        asked = max(self._asked(value, target) for value, target in values)
        asked = min(setting.replicas_max, max(1, setting.replicas_min, asked))
        self._wanted.append((now_us, asked))
        while self._wanted[0][0] < now_us - setting.window_us:
            self._wanted.popleft()
        if asked > self.replicas:
            self._set(now_us, min(asked, self._out_limit(now_us)))
        elif asked < self.replicas:
            least = max(wanted for _, wanted in self._wanted)
            if least < self.replicas:
                self._set(now_us, max(least, self._in_limit(now_us)))

    def _asked(self, value: int, target: int) -> int:
        there = target * self.replicas
        if abs(value - there) * 100 <= TOLERANCE_PERCENT * there:
            return self.replicas
        return -(-value // target)

    def _out_limit(self, now_us: int) -> int:
        before = self.replicas - sum(by for at, by in self._changes if by > 0 and at > now_us - OUT_PERIOD_US)
        return max(2 * before, before + OUT_PODS)

    def _in_limit(self, now_us: int) -> int:
        before = self.replicas - sum(by for at, by in self._changes if by < 0 and at > now_us - self._in_period_us)
        return min(self.replicas, before - 1)

    def _set(self, now_us: int, replicas: int) -> None:
        if replicas != self.replicas:
            self._changes.append((now_us, replicas - self.replicas))
            self.replicas = replicas
        while self._changes and self._changes[0][0] <= now_us - IN_PERIOD_MOST_US:
            self._changes.popleft()
