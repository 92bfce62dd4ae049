"""Unbounded means, such as cost, and ratios of sums, such as tokens by seconds: asymptotic confidence sequences of the relative change.

Used by `Guardrail` for the kinds `mean` and `ratio`. Source: Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, "Time-uniform central
limit theory and asymptotic confidence sequences", Annals of Statistics 2024 (theorem 2.2, and its one-sided form);
the relative change, and a ratio with users as its units, by the delta method. Asymptotic: no bound is given before `BURN_IN` units an
arm, where the error rate has been seen to exceed its level.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.evidence.batch import Batch, added
from services.evidence.covariates import MeanCovariate
from services.evidence.schedule import Checks
from services.evidence.state import Floats, pack, unpack
from services.evidence.summaries import Conclusion, GuardrailPlan

BURN_IN = 30
"""Units an arm before the first bound."""
SMALLEST = 1e-50
"""A control's mean below this is nothing to be relative to."""
TUNED_FOR_UNITS = 1000
"""Number of units, both arms together, at which the sequence is tightest."""


@dataclass(slots=True)
class Moments:
    """Count, mean and sum of squared deviations, updated by Welford's method."""

    n: int = 0
    mean: float = 0.0
    deviations: float = 0.0

    @classmethod
    def from_sums(cls, total: float, squares: float, n: int) -> "Moments":
        return cls(n, total / n, squares - total * total / n)

    def add(self, value: float) -> None:
        self.n += 1
        step = value - self.mean
        self.mean += step / self.n
        self.deviations += step * (value - self.mean)

    def merged(self, other: "Moments") -> "Moments":
        """Those of both sets of values together (Chan, Golub & LeVeque 1979)."""
        n = self.n + other.n
        if not n:
            return Moments()
        apart = other.mean - self.mean
        deviations = self.deviations + other.deviations + apart * apart * self.n * other.n / n
        return Moments(n, self.mean + apart * other.n / n, deviations)

    @property
    def variance(self) -> float:
        """Sample variance; 0 below two values."""
        return self.deviations / (self.n - 1) if self.n > 1 else 0.0


def _rho2(alpha: float, tuned_for: int) -> float:
    return (-2 * math.log(alpha) + math.log1p(-2 * math.log(alpha))) / tuned_for


def asymptotic_halfwidth(
    variance: float, n: int, alpha: float, sides: int = 2, tuned_for: int = TUNED_FOR_UNITS
) -> float:
    """Half the width of the asymptotic confidence sequence around a mean of n values with this (per-value) variance."""
    rho2 = _rho2(alpha, tuned_for)
    scale = n * rho2 + 1
    log_term = math.log(math.sqrt(scale) / alpha) if sides == 2 else math.log1p(math.sqrt(scale) / (2 * alpha))
    return math.sqrt(variance * 2 * scale / (n * n * rho2) * log_term)


def relative_change(control: Moments, candidate: Moments, covariance: float = 0.0) -> tuple[float, float]:
    """candidate/control − 1 and the variance of that estimate by the delta method.

    `covariance` is that of the two arms' means, 0 unless they were measured in pairs. The control's mean must not be 0.
    """
    ratio = candidate.mean / control.mean
    spread = candidate.variance / candidate.n + ratio**2 * control.variance / control.n - 2 * ratio * covariance
    return ratio - 1, max(spread, 0.0) / control.mean**2


def relative_interval(
    control: Moments,
    candidate: Moments,
    alpha: float,
    covariance: float = 0.0,
    sides: int = 2,
    tuned_for: int = TUNED_FOR_UNITS,
) -> tuple[float, float] | None:
    """Confidence sequence of the relative change, or None where there is none to give: burn-in, a control of mean 0, no
    spread at all.

    With `sides=1` each end holds at alpha by itself, and only one of them may be used.
    """
    if min(control.n, candidate.n) < BURN_IN or control.mean < SMALLEST:
        return None
    effect, variance = relative_change(control, candidate, covariance)
    if variance == 0:
        return None
    n = control.n + candidate.n
    half = asymptotic_halfwidth(variance * n, n, alpha, sides, tuned_for)
    return effect - half, effect + half


def log_asymptotic_e(
    effect: float, variance: float, n: int, margin: float, alpha: float, tuned_for: int = TUNED_FOR_UNITS
) -> float:
    """Log of the asymptotic e-process against "the mean is at most `margin`": it reaches 1/a when the one-sided sequence at a ends there.

    `effect` is a mean of n values of this variance; `alpha` only says at which level the sequence is tightest.
    """
    if effect <= margin or variance <= 0:
        return -math.inf
    rho2 = _rho2(alpha, tuned_for)
    scale = n * rho2 + 1
    exponent = (effect - margin) ** 2 * n * n * rho2 / (2 * variance * scale)
    if exponent == 0:
        return -math.inf
    return exponent + math.log(2) + math.log(-math.expm1(-exponent)) - math.log(scale) / 2


class _Sums:
    """Sums, squares and products of one arm's columns about their first values; the same bits whatever the batches.

    One column is a mean's. Of two, numerators and denominators, the ratio of their sums is taken, and a unit's deviation is that of its
    linear part, (numerator − ratio · denominator) / mean denominator (delta method).
    """

    def __init__(self, columns: int) -> None:
        self._sums: Floats = np.zeros(1 + columns + columns * (columns + 1) // 2)
        self._origin: Floats = np.zeros(columns)

    def add(self, columns: Sequence[Floats]) -> None:
        if not len(columns[0]):
            return
        if not self._sums[0]:
            self._origin = np.array([column[0] for column in columns])
        centred = [column - origin for column, origin in zip(columns, self._origin, strict=True)]
        products = [one * other for i, one in enumerate(centred) for other in centred[i:]]
        self._sums = added(self._sums, [np.ones(len(columns[0])), *centred, *products])

    @property
    def means(self) -> list[float]:
        """Of the columns; there is at least one unit."""
        n, k = self._sums[0], len(self._origin)
        return [float(mean) for mean in self._origin + self._sums[1 : k + 1] / n]

    @property
    def slopes(self) -> list[float]:
        """A unit's linear part per column: 1 for a mean."""
        if len(self._origin) == 1:
            return [1.0]
        over, under = self.means
        return [1 / under, -over / under / under]

    @property
    def moments(self) -> Moments:
        """Those of the mean, or of the ratio; none where nothing is to be divided by."""
        n, *sums = self._sums.tolist()
        if not n:
            return Moments()
        if len(self._origin) == 1:
            total, squares = sums
            return Moments(int(n), float(self._origin[0]) + total / n, max(0.0, squares - total * total / n))
        over, under = self.means
        if under < SMALLEST:
            return Moments()
        ratio, (x, w, xx, xw, ww) = over / under, sums
        deviations = (xx - x * x / n) - 2 * ratio * (xw - x * w / n) + ratio * ratio * (ww - w * w / n)
        return Moments(int(n), ratio, max(0.0, deviations) / under / under)

    def to_json(self) -> str:
        return pack([*self._sums, *self._origin])

    def restore(self, text: str) -> None:
        saved, columns = unpack(text), len(self._origin)
        self._sums, self._origin = saved[:-columns], saved[-columns:]


class _Products:
    """Of pairs: sums of control's columns times candidate's, from which the covariance of the arms comes."""

    def __init__(self, columns: int) -> None:
        self._sums: Floats = np.zeros(1 + 2 * columns + columns * columns)
        self._origin: Floats = np.zeros((2, columns))

    def add(self, control: Sequence[Floats], candidate: Sequence[Floats]) -> None:
        if not len(control[0]):
            return
        if not self._sums[0]:
            self._origin = np.array([[column[0] for column in arm] for arm in (control, candidate)])
        arms = [
            [c - o for c, o in zip(arm, at, strict=True)]
            for arm, at in zip((control, candidate), self._origin, strict=True)
        ]
        products = [mine * theirs for mine in arms[0] for theirs in arms[1]]
        self._sums = added(self._sums, [np.ones(len(control[0])), *arms[0], *arms[1], *products])

    def covariance(self, control: Sequence[float], candidate: Sequence[float]) -> float:
        """Of the arms' means, given what a column is worth in each arm; 0 below two pairs."""
        n, k = float(self._sums[0]), self._origin.shape[1]
        if n < 2:
            return 0.0
        mine, theirs = self._sums[1 : k + 1], self._sums[k + 1 : 2 * k + 1]
        products = self._sums[2 * k + 1 :].reshape(k, k) - np.outer(mine, theirs) / n
        return float(np.array(control) @ products @ np.array(candidate)) / (n - 1) / n

    def to_json(self) -> str:
        return pack([*self._sums, *self._origin.ravel()])

    def restore(self, text: str) -> None:
        saved, shape = unpack(text), self._origin.shape
        self._sums, self._origin = saved[: -self._origin.size], saved[-self._origin.size :].reshape(shape)


Change = tuple[float, float, int]
"""Relative change, its variance times the number of units, their number."""


def _spared(raw: Sequence[Moments], adjusted: Sequence[Moments]) -> float:
    """The share of the arms' variances that the pasts took away."""
    before, after = (sum(moments.variance for moments in arms) for arms in (raw, adjusted))
    return max(0.0, 1 - after / before) if before > 0 else 0.0


class _Restart:
    """Sums of the units first exposed in one step or a later one."""

    def __init__(self, columns: int) -> None:
        self.control, self.candidate, self.products = _Sums(columns), _Sums(columns), _Products(columns)

    def change(self) -> Change | None:
        """None where there is no ground for a bound: see `relative_interval`."""
        control, candidate = self.control.moments, self.candidate.moments
        if min(control.n, candidate.n) < BURN_IN or control.mean < SMALLEST:
            return None
        covariance = self.products.covariance(self.control.slopes, self.candidate.slopes)
        effect, variance = relative_change(control, candidate, covariance)
        n = control.n + candidate.n
        return (effect, variance * n, n) if 0 < variance < math.inf else None

    def to_json(self) -> list[str]:
        return [sums.to_json() for sums in (self.control, self.candidate, self.products)]

    def restore(self, data: Sequence[str]) -> None:
        self.control.restore(data[0])
        self.candidate.restore(data[1])
        self.products.restore(data[2])


class MeanEvidence:
    """Harm and non-inferiority of one unbounded mean, or one ratio of sums, by the relative change. Here a change is a *badness*: positive
    where the candidate is worse. Harm is the average of the e-processes that start at each step, checked on the schedule of `Checks`."""

    def __init__(self, plan: GuardrailPlan) -> None:
        columns = 2 if plan.kind == "ratio" else 1
        self._plan = plan
        self._restarts = [_Restart(columns) for _ in range(plan.steps)]
        self._checks = Checks(plan.steps)
        self._covariate = MeanCovariate()
        self._raw = {"control": _Sums(columns), "candidate": _Sums(columns)}
        self._step, self._pairs = 0, 0
        self._alarm: tuple[float, float] | None = None  # log evidence and bound when harm was found

    def add(self, batch: Batch) -> None:
        for start, end, due in self._checks.pieces(batch.step):
            step, candidate, raw = batch.step[start:end], batch.candidate[start:end], batch.value[start:end]
            under = self._under(batch, start, end)
            noise = raw - self._covariate.rate * under[0] if under else raw
            values = self._covariate.adjust(raw, noise, batch.past[start:end], candidate)
            for arm, rows in (("control", ~candidate), ("candidate", candidate)):
                self._raw[arm].add([column[rows] for column in (raw, *under)])
            columns = [values, *under]
            for j, restart in enumerate(self._restarts[: int(step.max()) + 1]):
                restart.control.add([column[(step >= j) & ~candidate] for column in columns])
                restart.candidate.add([column[(step >= j) & candidate] for column in columns])
            self._look(int(step.max()), due)

    def add_pairs(self, control: Batch, candidate: Batch) -> None:
        """Both halves of a pair are one unit's, whose past is the same on both sides: no covariate."""
        steps = np.minimum(control.step, candidate.step)
        for start, end, due in self._checks.pieces(steps):
            mine, theirs = ([arm.value[start:end], *self._under(arm, start, end)] for arm in (control, candidate))
            self._raw["control"].add(mine)
            self._raw["candidate"].add(theirs)
            for j, restart in enumerate(self._restarts[: int(steps[start:end].max()) + 1]):
                rows = steps[start:end] >= j
                ours, others = ([column[rows] for column in columns] for columns in (mine, theirs))
                restart.control.add(ours)
                restart.candidate.add(others)
                restart.products.add(ours, others)
            self._pairs += end - start
            self._look(int(steps[start:end].max()), due)

    def _under(self, batch: Batch, start: int, end: int) -> list[Floats]:
        """The denominators of a ratio; a mean has none."""
        return [batch.weight[start:end]] if self._plan.kind == "ratio" else []

    def _look(self, step: int, due: bool) -> None:
        self._step = max(self._step, step)
        if not due:
            return
        self._covariate.refresh(self._rate())
        if self._alarm is None and self._plan.guards:
            changes = self._changes()
            log_e = self._log_harm(changes, self._plan.tolerance)
            if log_e >= -math.log(self._plan.alpha_harm):
                self._alarm = log_e, self._harm_bound(changes)

    def _rate(self) -> float:
        """A ratio's value over both arms so far; 0 for a mean."""
        arms = [sums.moments for sums in self._raw.values()] if self._plan.kind == "ratio" else []
        n = sum(moments.n for moments in arms)
        return sum(moments.mean * moments.n for moments in arms) / n if n else 0.0

    def _changes(self) -> list[Change]:
        """Of the restarts that have ground for a bound."""
        changes = [restart.change() for restart in self._restarts[: self._step + 1]]
        return [change for change in changes if change is not None]

    def _log_harm(self, changes: Sequence[Change], margin: float) -> float:
        """Log of the average of the processes started at each step; one without ground for a bound has wealth 1."""
        plan, total = self._plan, float(self._plan.steps - len(changes))
        for effect, variance, n in changes:
            log_e = log_asymptotic_e(plan.sign * effect, variance, n, margin, plan.alpha_harm / plan.steps)
            total += math.exp(min(log_e, 700.0))
        return math.log(total / plan.steps) if total else -math.inf

    def _harm_bound(self, changes: Sequence[Change]) -> float:
        """The largest badness that is rejected, −inf where none is."""
        if not changes:
            return -math.inf
        threshold = -math.log(self._plan.alpha_harm)
        high, width = max(self._plan.sign * effect for effect, _, _ in changes), 1e-3
        while self._log_harm(changes, high - width) < threshold:
            width *= 2
            if width > 1e6:
                return -math.inf
        low = high - width
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self._log_harm(changes, middle) >= threshold else (low, middle)
        return low

    def conclude(self) -> Conclusion:
        plan, alarm = self._plan, self._alarm
        control, candidate = (sums.moments for sums in self._raw.values())
        whole, current = self._restarts[0], self._restarts[self._step].change()
        adjusted = whole.control.moments, whole.candidate.moments
        better, log_promote = None, None
        if current is not None:
            effect, variance, n = plan.sign * current[0], current[1], current[2]
            better = effect + asymptotic_halfwidth(variance, n, plan.alpha_promote, sides=1)
            log_promote = log_asymptotic_e(-effect, variance, n, -plan.tolerance, plan.alpha_promote)
        worse, log_harm = None, None
        if alarm is not None:
            log_harm, worse = alarm
        elif plan.guards and (changes := self._changes()):
            log_harm = self._log_harm(changes, plan.tolerance)
            worse = min(self._harm_bound(changes), plan.tolerance)  # the next check decides
        known = control.n > 0 and candidate.n > 0 and adjusted[0].mean >= SMALLEST
        return Conclusion(
            control=control.mean if control.n else None,
            candidate=candidate.mean if candidate.n else None,
            effect=relative_change(*adjusted)[0] if known else None,
            worse=worse,
            better=better,
            log_harm=log_harm,
            log_promote=log_promote,
            harmful=alarm is not None,
            step=self._step,
            shown=better is not None and better <= plan.tolerance,
            pairs=self._pairs,
            spared=_spared([control, candidate], adjusted),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "restarts": [restart.to_json() for restart in self._restarts],
            "raw": {arm: sums.to_json() for arm, sums in self._raw.items()},
            "checks": self._checks.to_json(),
            "covariate": self._covariate.to_json(),
            "step": self._step,
            "pairs": self._pairs,
            "alarm": self._alarm,
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        for restart, saved in zip(self._restarts, data["restarts"], strict=True):
            restart.restore(saved)
        for arm, sums in self._raw.items():
            sums.restore(data["raw"][arm])
        self._checks.restore(data["checks"])
        self._covariate.restore(data["covariate"])
        self._step, self._pairs = data["step"], data["pairs"]
        self._alarm = None if data["alarm"] is None else (data["alarm"][0], data["alarm"][1])
