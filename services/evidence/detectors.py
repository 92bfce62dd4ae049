"""Change detection against frozen history, for the watch after a promotion, when there is no control arm left.

Used by the controller in the stage `watch` and for drift of what is stable. Source: Shin, Ramdas & Rinaldo, "E-detectors: a nonparametric
framework for sequential change detection", New England Journal of Statistics in Data Science 2024 (the Shiryaev–Roberts e-detector).

What a detector takes are values of units (users), not of requests: requests of one user come in clusters, which look like change. While the
mean of each value given those before is at most m₀, the detector runs at least `arl` values on average until it alarms, whatever the
values' distribution; k such detectors of a fleet at least arl/k of their values each (`fleet_arl`).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from services.evidence.errors import PlanFault, ValueFault
from services.evidence.mixtures import bernoulli_interval
from services.evidence.state import VERSION, restoring

BETS = (0.05, 0.1, 0.2)
"""Bets λ of the baselines e = 1 + λ(x/m₀ − 1): small ones find small changes, large ones large changes fast."""
RUN_BET = BETS[1]
"""Bet of the cumulative sum that tells since when: where it last stood at its start, the change is taken to have begun (Page 1954)."""
HOURS = 168
"""Hours of a week."""
Shift = Literal["upward", "downward"]


class ShiftDetector:
    """Alarms when the mean of values in [0, 1] has risen above `m0`, or (downward) has fallen below it.

    `m0` is the largest (downward: smallest) mean that counts as no change, an upper (lower) bound of the history's; `arl` is counted in
    values. A value may bring the m₀ of its own hour. Upward for feedback, errors, refusals and late answers (`is_late`); downward for
    ratings and judge scores, scaled to [0, 1].
    """

    def __init__(self, m0: float, arl: float, shift: Shift = "upward") -> None:
        self._shift: Shift = shift
        if not 0 < self._against(m0) <= 1 or not 1 < arl < math.inf or shift not in ("upward", "downward"):
            raise PlanFault(f"detector: m0 {m0} must allow a {shift} shift within [0, 1], arl {arl} be above 1")
        self.m0, self.arl = m0, arl
        self._sums = [0.0] * len(BETS)
        self._run = [1.0, 0.0, 0.0]  # cumulative sum, values and their total since it last stood at its start
        self.count = 0
        self.alarmed = False

    def _against(self, value: float) -> float:
        return value if self._shift == "upward" else 1 - value

    @property
    def level(self) -> float:
        """The detector's value; the alarm is at `arl`."""
        return math.fsum(self._sums) / len(BETS)

    @property
    def run(self) -> tuple[int, float | None]:
        """How many of the newest values look like a change, none if the last one does not, and their mean. To tell, not to decide."""
        _, values, total = self._run
        return int(values), total / values if values else None

    def update(self, values: Iterable[float], m0: Iterable[float] | None = None) -> bool:
        """Adds values in the order of the evidence, each with its own `m0` if given, and returns whether there is an alarm; at an alarm the
        detector stops. Raises ValueFault, and then nothing has been added."""
        fresh = list(values)
        limits = [self.m0] * len(fresh) if m0 is None else list(m0)
        if bad := [x for x in fresh if not 0 <= x <= 1]:
            raise ValueFault(f"detector: {bad[0]!r} is no value in [0, 1]")
        if len(limits) != len(fresh) or any(not 0 < self._against(limit) <= 1 for limit in limits):
            raise ValueFault(f"detector: {len(fresh)} values need as many m0 that allow a {self._shift} shift")
        for x, limit in zip(fresh, limits, strict=True):
            if self.alarmed:
                break
            self.count += 1
            gain = self._against(x) / self._against(limit) - 1
            self._sums = [(s + 1) * (1 + bet * gain) for s, bet in zip(self._sums, BETS, strict=True)]
            height, number, total = max(1.0, self._run[0]) * (1 + RUN_BET * gain), *self._run[1:]
            self._run = [height, number + 1, total + x] if height > 1 else [1.0, 0.0, 0.0]
            self.alarmed = self.level >= self.arl
        return self.alarmed

    def to_json(self) -> dict[str, Any]:
        plan = {"m0": self.m0, "arl": self.arl, "shift": self._shift}
        now = {"sums": self._sums, "run": self._run, "count": self.count, "alarmed": self.alarmed}
        return {"version": VERSION, **plan, **now}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ShiftDetector":
        with restoring(data, "detector"):
            detector = cls(data["m0"], data["arl"], data["shift"])
            detector._sums, detector._run = list(data["sums"]), list(data["run"])
            detector.count, detector.alarmed = data["count"], data["alarmed"]
        return detector


def is_late(value: float, bound: float) -> float:
    """The coin of a quantile: 1 where a unit's value lies above `bound`, the upper confidence bound of the history's quantile p.

    While the quantile has not risen above it the coin's mean is at most m₀ = 1 − p: an upward shift of the coin is one of the quantile.
    """
    if math.isnan(value) or value < 0:
        raise ValueFault(f"detector: {value!r} is no duration")
    return float(value > bound)


@dataclass(frozen=True, slots=True)
class Hour:
    """History of one hour of the week: the sum of units' values in [0, 1], and their number."""

    total: float
    units: int


def history_bounds(hours: Mapping[int, Hour], alpha: float, shift: Shift = "upward") -> dict[int, float]:
    """m₀ for every hour of the week (0: Monday, 0 to 1 o'clock): an upper (downward: lower) bound of the hour's mean in the history.

    All bounds hold at once, at any amount of history, with probability 1 − alpha. An hour without history takes the bound of all hours
    together. The bound for coins holds for any values in [0, 1]: of a given mean, coins spread most. Raises ValueFault, and PlanFault where
    there is no history at all.
    """
    for hour, seen in hours.items():
        if not 0 <= hour < HOURS or not 0 <= seen.total <= seen.units:
            raise ValueFault(f"history: hour {hour} with a sum of {seen.total} from {seen.units} units")
    known = {hour: seen for hour, seen in hours.items() if seen.units}
    if not known or not 0 < alpha < 1:
        raise PlanFault(f"history: no units, or a level {alpha} outside (0, 1)")
    side, level = (1 if shift == "upward" else 0), alpha / (len(known) + 1)
    total, units = math.fsum(seen.total for seen in known.values()), sum(seen.units for seen in known.values())
    bounds = dict.fromkeys(range(HOURS), bernoulli_interval(total, units, level)[side])
    for hour, seen in known.items():
        bounds[hour] = bernoulli_interval(seen.total, seen.units, level)[side]
    return bounds


def fleet_arl(arl: float, detectors: int) -> float:
    """Average run length of a fleet of detectors, however dependent, until the first false alarm: at least this many values of each.

    At the first alarm the sum of the k detectors is at least arl, and it grows by at most k a value in the mean. To have a run length of A
    for the fleet, give each of k detectors k·A.
    """
    if detectors < 1 or not 1 < arl < math.inf:
        raise PlanFault(f"fleet: {detectors} detectors with an average run length of {arl}")
    return arl / detectors
