"""Change detection against frozen history, for the watch after a promotion, when there is no control arm left.

Used by the controller in the stage `watch`. Source: Shin, Ramdas & Rinaldo, "E-detectors: a nonparametric framework for
sequential change detection", New England Journal of Statistics in Data Science 2024 (the Shiryaev–Roberts
e-detector).
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from services.evidence.errors import PlanFault, ValueFault
from services.evidence.state import VERSION, restoring

BETS = (0.05, 0.1, 0.2)
"""Bets λ of the baselines e = 1 + λ(x/m₀ − 1): small ones find small changes, large ones find large changes fast."""


class RateDetector:
    """Alarms when a rate of bad outcomes has risen above `m0`. Without a change it runs at least `arl` values on
    average before an alarm.

    `m0` in (0, 1] is the largest rate that counts as no change; `arl` is counted in values. Values lie in [0, 1].
    """

    def __init__(self, m0: float, arl: float) -> None:
        if not 0 < m0 <= 1 or not 1 < arl < math.inf:
            raise PlanFault(f"rate detector: m0 {m0} must lie in (0, 1] and arl {arl} above 1")
        self._m0, self._arl = m0, arl
        self._sums = [0.0] * len(BETS)
        self.count = 0
        self.alarmed = False

    @property
    def level(self) -> float:
        """The detector's value; the alarm is at `arl`."""
        return sum(self._sums) / len(BETS)

    def update(self, values: Iterable[float]) -> bool:
        """Adds values in the order of the evidence and returns whether there is an alarm; at an alarm the detector
        stops."""
        fresh = list(values)
        if bad := [x for x in fresh if not 0 <= x <= 1]:
            raise ValueFault(f"rate detector: {bad[0]!r} is no value in [0, 1]")
        for x in fresh:
            if self.alarmed:
                break
            self.count += 1
            self._sums = [(s + 1) * (1 + bet * (x / self._m0 - 1)) for s, bet in zip(self._sums, BETS, strict=True)]
            self.alarmed = self.level >= self._arl
        return self.alarmed

    def to_json(self) -> dict[str, Any]:
        plan = {"m0": self._m0, "arl": self._arl}
        return {"version": VERSION, **plan, "sums": self._sums, "count": self.count, "alarmed": self.alarmed}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RateDetector":
        with restoring(data, "rate detector"):
            detector = cls(data["m0"], data["arl"])
            detector._sums, detector.count, detector.alarmed = list(data["sums"]), data["count"], data["alarmed"]
        return detector
