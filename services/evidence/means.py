"""Unbounded means, such as tokens per second: asymptotic confidence sequences of the relative change.

Used by `Guardrail` for the kind `mean`. Source: Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, "Time-uniform central
limit theory and asymptotic confidence sequences", Annals of Statistics 2024 (theorem 2.2, and its one-sided form);
the relative change by the delta method. Asymptotic: no bound is given before `BURN_IN` units an arm, where the error
rate has been seen to exceed its level.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.evidence.summaries import Conclusion, GuardrailPlan, UnitValue

BURN_IN = 30
"""Units an arm before the first bound."""
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

    @property
    def variance(self) -> float:
        """Sample variance; 0 below two values."""
        return self.deviations / (self.n - 1) if self.n > 1 else 0.0


def asymptotic_halfwidth(
    variance: float, n: int, alpha: float, sides: int = 2, tuned_for: int = TUNED_FOR_UNITS
) -> float:
    """Half the width of the asymptotic confidence sequence around a mean of n values with this (per-value) variance."""
    rho2 = (-2 * math.log(alpha) + math.log1p(-2 * math.log(alpha))) / tuned_for
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
    if min(control.n, candidate.n) < BURN_IN or control.mean <= 0:
        return None
    effect, variance = relative_change(control, candidate, covariance)
    if variance == 0:
        return None
    n = control.n + candidate.n
    half = asymptotic_halfwidth(variance * n, n, alpha, sides, tuned_for)
    return effect - half, effect + half


@dataclass(slots=True)
class _Restart:
    """Moments of the units first exposed in one step or a later one. `difference` holds pairs only; it gives their
    covariance."""

    control: Moments
    candidate: Moments
    difference: Moments

    def interval(self, alpha: float) -> tuple[float, float] | None:
        covariance = 0.0
        if self.difference.n:
            cov = (self.control.variance + self.candidate.variance - self.difference.variance) / 2
            covariance = cov / self.difference.n
        return relative_interval(self.control, self.candidate, alpha, covariance, sides=1)


class MeanEvidence:
    """Harm and non-inferiority of one unbounded mean, by the relative change. Harm restarts at each step with level
    alpha_harm/steps."""

    def __init__(self, plan: GuardrailPlan) -> None:
        self._plan = plan
        self._restarts = [_Restart(Moments(), Moments(), Moments()) for _ in range(plan.steps)]
        self._step, self._pairs = 0, 0
        self._harm: float | None = None  # the bound on the harmful side, as badness; fixed once it passes the margin

    @property
    def _harmful(self) -> bool:
        return self._harm is not None and self._harm > self._plan.margin

    def add(self, value: UnitValue) -> None:
        for restart in self._restarts[: value.step + 1]:
            (restart.control if value.arm == "control" else restart.candidate).add(value.value)
        self._look(value.step)

    def add_pair(self, control: UnitValue, candidate: UnitValue) -> None:
        step = min(control.step, candidate.step)
        for restart in self._restarts[: step + 1]:
            restart.control.add(control.value)
            restart.candidate.add(candidate.value)
            restart.difference.add(candidate.value - control.value)
        self._pairs += 1
        self._look(step)

    def _look(self, step: int) -> None:
        self._step = max(self._step, step)
        if not self._harmful:
            level = self._plan.alpha_harm / self._plan.steps
            bounds = [self._badness(restart.interval(level)) for restart in self._restarts[: self._step + 1]]
            self._harm = max((bound[0] for bound in bounds if bound), default=None)

    def _badness(self, interval: Sequence[float] | None) -> tuple[float, float] | None:
        if interval is None:
            return None
        low, high = sorted(self._plan.sign * end for end in interval)
        return low, high

    def conclude(self) -> Conclusion:
        plan, whole = self._plan, self._restarts[0]
        current = self._badness(self._restarts[self._step].interval(plan.alpha_promote))
        ends = (self._harm, current[1] if current else None)
        lower, upper = ends if plan.sign > 0 else tuple(None if end is None else -end for end in reversed(ends))
        known = whole.control.n > 0 and whole.candidate.n > 0 and whole.control.mean > 0
        return Conclusion(
            control=whole.control.mean if whole.control.n else None,
            candidate=whole.candidate.mean if whole.candidate.n else None,
            effect=relative_change(whole.control, whole.candidate)[0] if known else None,
            lower=lower,
            upper=upper,
            e_harm=None,
            e_promote=None,
            harmful=self._harmful,
            non_inferior=self._step == plan.steps - 1 and current is not None and current[1] <= plan.margin,
            pairs=self._pairs,
        )

    def to_json(self) -> dict[str, Any]:
        restarts = [
            [[m.n, m.mean, m.deviations] for m in (r.control, r.candidate, r.difference)] for r in self._restarts
        ]
        return {"restarts": restarts, "step": self._step, "pairs": self._pairs, "harm": self._harm}

    def restore(self, data: Mapping[str, Any]) -> None:
        self._restarts = [_Restart(*(Moments(*moments) for moments in restart)) for restart in data["restarts"]]
        self._step, self._pairs, self._harm = data["step"], data["pairs"], data["harm"]
