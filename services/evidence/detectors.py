"""Change detection against frozen history, for the watch after a promotion, when there is no control arm left.

Used by the controller in the stage `watch` and for drift of what is stable. Source: Shin, Ramdas & Rinaldo, "E-detectors: a nonparametric
framework for sequential change detection", New England Journal of Statistics in Data Science 2024 (the Shiryaev–Roberts e-detector).

What a detector takes are values of units (users), not of requests: requests of one user come in clusters, which look like change. While the
mean of each value given those before is at most m₀, the detector runs at least `arl` values on average until it alarms, whatever the
values' distribution; k such detectors of a fleet at least arl/k of their values each (`fleet_arl`).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from services.evidence.errors import PlanFault, ValueFault
from services.evidence.state import VERSION, Floats, restoring

BETS = (0.01, 0.03, 0.1, 0.2)
"""Bets λ of the baselines e = 1 + λ(x − m₀)/m: small ones find small changes, large ones large changes fast."""
RUN_BET = BETS[2]
"""Bet of the cumulative sum that tells since when: where it last stood at its start, the change is taken to have begun (Page 1954)."""
HOURS = 168
"""Hours of a week."""
SLACKS = (0.0, 5.0, 10.0, 20.0, 40.0, 80.0)
"""Users; which one is best depends on how common the bad values are."""
TYPICAL_LOG_ARL = 14.0
TINY = 1e-300
Shift = Literal["upward", "downward"]


class ShiftDetector:
    """Alarms when the mean of values in [0, 1] has risen above `m0`, or (downward) has fallen below it.

    `m0` is the largest (downward: smallest) mean that counts as no change, an upper (lower) bound of the history's; `arl` is counted in
    values. A value may bring the m₀ of its own hour, which `m0` is then the widest of. Upward for feedback, errors, refusals and late
    answers (`is_late`); downward for ratings and judge scores, scaled to [0, 1].

    `slack`: by how much the values' means may exceed their m₀, added up over any run of values (see `history_bounds`). It is paid for: a
    bet λ could have gained a factor of exp(λ · slack / m) from it, which is taken off.
    """

    def __init__(self, m0: float, arl: float, shift: Shift = "upward", slack: float = 0.0) -> None:
        self._shift: Shift = shift
        if not 0 < self._against(m0) <= 1 or not 1 < arl < math.inf or shift not in ("upward", "downward"):
            raise PlanFault(f"detector: m0 {m0} must allow a {shift} shift within [0, 1], arl {arl} be above 1")
        if not 0 <= slack < math.inf:
            raise PlanFault(f"detector: slack {slack} must be at least 0")
        self.m0, self.arl, self.slack = m0, arl, slack
        self._price = [math.exp(-min(bet * slack / self._against(m0), 700.0)) for bet in BETS]
        self._sums = [0.0] * len(BETS)
        self._run = [1.0, 0.0, 0.0]  # cumulative sum, values and their total since it last stood at its start
        self.count = 0
        self.alarmed = False

    def _against(self, value: float) -> float:
        return value if self._shift == "upward" else 1 - value

    @property
    def level(self) -> float:
        """The detector's value; the alarm is at `arl`."""
        return math.fsum(total * price for total, price in zip(self._sums, self._price, strict=True)) / len(BETS)

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
        widest = self._against(self.m0)
        if len(limits) != len(fresh) or any(not 0 < self._against(limit) <= widest for limit in limits):
            raise ValueFault(
                f"detector: {len(fresh)} values need as many m0 that allow a {self._shift} shift and are no wider than {self.m0}"
            )
        for x, limit in zip(fresh, limits, strict=True):
            if self.alarmed:
                break
            self.count += 1
            gain = (self._against(x) - self._against(limit)) / widest
            self._sums = [(s + 1) * (1 + bet * gain) for s, bet in zip(self._sums, BETS, strict=True)]
            height, number, total = max(1.0, self._run[0]) * (1 + RUN_BET * gain), *self._run[1:]
            self._run = [height, number + 1, total + x] if height > 1 else [1.0, 0.0, 0.0]
            self.alarmed = self.level >= self.arl
        return self.alarmed

    def to_json(self) -> dict[str, Any]:
        plan = {"m0": self.m0, "arl": self.arl, "shift": self._shift, "slack": self.slack}
        now = {"sums": self._sums, "run": self._run, "count": self.count, "alarmed": self.alarmed}
        return {"version": VERSION, **plan, **now}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ShiftDetector":
        with restoring(data, "detector"):
            detector = cls(data["m0"], data["arl"], data["shift"], data["slack"])
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


@dataclass(frozen=True, slots=True)
class Bounds:
    """m₀ for every hour of the week, and the detector's slack with them."""

    by_hour: dict[int, float]
    slack: float


def history_bounds(hours: Mapping[int, Hour], alpha: float, shift: Shift = "upward", margin: float = 0.0) -> Bounds:
    """m₀ by hour of the week (0: Monday, 0 to 1 o'clock): what the history's users had at most (downward: at least), and `margin`.

    With probability 1 − alpha over the history: while each hour's mean is the history's, or worse by at most the margin, and brings no more
    users than it did, the users' means exceed their m₀ by `slack` at most, added up over any run of hours, and by nothing over whole
    weeks. Hours by themselves have few users and would need wide bounds; it is runs of hours that a detector adds up. All runs are bounded
    at once (Chernoff's bound, which holds for any values in [0, 1]), so the pattern over the week (each hour its own, days and weekends
    apart, or none) and the slack may be chosen afterwards: those that find a doubling first. An hour without history has the widest m₀.

    Raises ValueFault, and PlanFault where there is no history at all.
    """
    for hour, seen in hours.items():
        if not 0 <= hour < HOURS or not 0 <= seen.total <= seen.units:
            raise ValueFault(f"history: hour {hour} with a sum of {seen.total} from {seen.units} units")
    known = sorted(hour for hour, seen in hours.items() if seen.units)
    if not known or not 0 < alpha < 1 or not 0 <= margin < 1:
        raise PlanFault(f"history: no units, a level {alpha} outside (0, 1), or a margin {margin} outside [0, 1)")
    units = np.array([float(hours[hour].units) for hour in known])
    worse = np.array([hours[hour].total for hour in known])
    worse = worse if shift == "upward" else units - worse
    runs = _runs(units)
    # The most that a run may have had.
    reach = runs * _upper_means(_runs(worse) / runs, runs, math.log(len(known) ** 2 / alpha))
    plans = [
        _levelled(base, slack, units, runs, reach, margin)
        for base in _patterns(known, units, worse)
        for slack in SLACKS
    ]
    allowed = float(worse.sum() / units.sum()) + margin
    slack, found = min(plans, key=lambda plan: _users_to_alarm(plan[0], plan[1], units, allowed))
    widest = float(found.max())
    by_hour = dict.fromkeys(range(HOURS), widest) | dict(zip(known, found.tolist(), strict=True))
    return Bounds({hour: m0 if shift == "upward" else 1 - m0 for hour, m0 in by_hour.items()}, slack)


def _runs(column: Floats) -> Floats:
    """Sums over the runs of hours: row i from hour i on, column j over j + 1 hours, around the end of the week."""
    k = len(column)
    total = np.concatenate(([0.0], np.cumsum(np.tile(column, 2))))
    start = np.arange(k)[:, None]
    sums: Floats = total[start + 1 + np.arange(k)] - total[start]
    return sums


def _upper_means(mean: Floats, units: Floats, log_level: float) -> Floats:
    """Largest means that as many independent values in [0, 1] may have had: units · KL(mean, bound) = log_level."""
    mean = np.clip(mean, 0.0, 1.0)
    low, high = mean, np.ones_like(mean)
    for _ in range(40):
        middle = (low + high) / 2
        far = units * (_entropy(mean, middle) + _entropy(1 - mean, 1 - middle)) > log_level
        low, high = np.where(far, low, middle), np.where(far, middle, high)
    return high


def _entropy(true: Floats, other: Floats) -> Floats:
    """One outcome's part of a relative entropy."""
    part: Floats = true * np.log(np.maximum(true, TINY) / np.maximum(other, TINY))
    return part


def _patterns(known: Sequence[int], units: Floats, worse: Floats) -> Iterator[Floats]:
    """The mean of each hour, if it is its own, that of its hour on days and on weekends, or that of all."""
    for key in (lambda hour: hour, lambda hour: (hour % 24, hour >= 5 * 24), lambda _: 0):
        groups = [key(hour) for hour in known]
        totals: dict[object, list[float]] = {}
        for group, n, x in zip(groups, units.tolist(), worse.tolist(), strict=True):
            total = totals.setdefault(group, [0.0, 0.0])
            total[0], total[1] = total[0] + n, total[1] + x
        yield np.array([totals[group][1] / totals[group][0] for group in groups])


def _levelled(
    base: Floats, slack: float, units: Floats, runs: Floats, reach: Floats, margin: float
) -> tuple[float, Floats]:
    """The slack, and the pattern raised until no run can exceed it, nor the week anything."""
    excess = reach - _runs(base * units)
    excess[:, :-1] -= slack
    return slack, np.minimum(base + max(0.0, float((excess / runs).max())) + margin, 1.0)


def _users_to_alarm(slack: float, m0: Floats, units: Floats, mean: float) -> float:
    """About how many users a detector takes to see twice the mean that is allowed; where it never would, so many that bounds with
    the smaller mean win."""
    now, usual, widest = min(1.0, 2 * mean), float((m0 * units).sum() / units.sum()), float(m0.max())
    needed = math.inf
    for bet in BETS:
        growth = now * math.log1p(bet * (1 - usual) / widest) + (1 - now) * math.log1p(-bet * usual / widest)
        if growth > 0:
            needed = min(needed, (TYPICAL_LOG_ARL + bet * slack / widest) / growth)
    return needed if needed < math.inf else 1e12 * usual


def fleet_arl(arl: float, detectors: int) -> float:
    """Average run length of a fleet of detectors, however dependent, until the first false alarm: at least this many values of each.

    At the first alarm the sum of the k detectors is at least arl, and it grows by at most k a value in the mean. To have a run length of A
    for the fleet, give each of k detectors k·A.
    """
    if detectors < 1 or not 1 < arl < math.inf:
        raise PlanFault(f"fleet: {detectors} detectors with an average run length of {arl}")
    return arl / detectors
