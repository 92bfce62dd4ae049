"""Quantiles, such as the median or 95th percentile of the time to first token: a confidence sequence for each arm,
compared.

Used by `Guardrail` for the kind `quantile`. Source: Howard & Ramdas, "Sequential estimation of quantiles with
applications to A/B testing and best-arm identification", Bernoulli 2022 (beta-binomial mixture). No
assumption on the distribution; values of +inf (no first token) are ordinary.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from services.evidence.errors import PlanFault
from services.evidence.mixtures import TUNED_FOR_UNITS, log_coin_martingale
from services.evidence.state import pack, unpack
from services.evidence.summaries import Conclusion, GuardrailPlan, UnitValue


@lru_cache(maxsize=8192)
def quantile_ranks(n: int, quantile: float, alpha: float) -> tuple[int, int]:
    """Ranks (from 1) of the order statistics that bound the quantile at all n at once; 0 and n + 1 where there is no
    bound yet.

    The number of values below the quantile is a sum of coins of that probability, which leaves the mixture's range with
    probability alpha.
    """
    threshold = -math.log(alpha)

    def surprise(count: int) -> float:
        return log_coin_martingale(count, n, quantile, alpha)

    above = range(math.ceil(n * quantile), n + 1)
    below = range(math.floor(n * quantile), -1, -1)
    too_many = bisect_left(above, threshold, key=surprise)
    too_few = bisect_left(below, threshold, key=surprise)
    upper = above[too_many] if too_many < len(above) else n + 1
    lower = below[too_few] + 1 if too_few < len(below) else 0
    return lower, upper


def quantile_interval(ordered: Sequence[float], quantile: float, alpha: float) -> tuple[float, float]:
    """Confidence sequence of a quantile of non-negative values: 0 and +inf where there is no bound yet."""
    lower, upper = quantile_ranks(len(ordered), quantile, alpha)
    return ordered[lower - 1] if lower else 0.0, ordered[upper - 1] if upper <= len(ordered) else math.inf


def quantile_ab_pvalue(
    first: Sequence[float],
    second: Sequence[float],
    quantile: float,
    alpha: float = 0.05,
    tuned_for: int = TUNED_FOR_UNITS,
) -> float:
    """Anytime-valid p-value of "both samples have the same quantile": the least evidence over every value that both
    could share."""
    samples = (sorted(first), sorted(second))

    def evidence(x: float) -> float:
        total = 0.0
        for ordered in samples:
            # Ties leave the count of values below x open between these two: take the one that speaks least against x.
            n, fewest, most = len(ordered), bisect_left(ordered, x), bisect_right(ordered, x)
            count = min(max(n * quantile, fewest), most)
            total += log_coin_martingale(count, n, quantile, alpha, tuned_for)
        return total

    return min(1.0, math.exp(-min(evidence(x) for x in {*first, *second})))


def relative_bounds(
    control: Sequence[float], candidate: Sequence[float], quantile: float, alpha: float
) -> tuple[float, float]:
    """Bounds of candidate/control − 1 for two ordered samples, alpha/2 for each arm; −1 and +inf where there is
    none."""
    control_low, control_high = quantile_interval(control, quantile, alpha / 2)
    candidate_low, candidate_high = quantile_interval(candidate, quantile, alpha / 2)
    lower, upper = -1.0, math.inf
    if control_high < math.inf and candidate_low > 0:
        lower = candidate_low / control_high - 1 if control_high > 0 else math.inf
    if 0 < control_low < math.inf:
        upper = candidate_high / control_low - 1
    return lower, upper


class QuantileEvidence:
    """Harm and non-inferiority of one quantile. Harm restarts at each step with level alpha_harm/steps.

    Each restart keeps its own ordered values: a look costs O(new units · steps · log n).
    """

    def __init__(self, plan: GuardrailPlan) -> None:
        if plan.quantile is None:
            raise PlanFault(f"guardrail {plan.metric!r} names no quantile")
        self._plan, self._quantile = plan, plan.quantile
        self._ordered: list[dict[str, list[float]]] = [{"control": [], "candidate": []} for _ in range(plan.steps)]
        self._by_step: list[dict[str, list[float]]] = [{"control": [], "candidate": []} for _ in range(plan.steps)]
        self._step, self._pairs = 0, 0
        self._harm = -math.inf  # the bound on the harmful side, as badness; fixed once it passes the margin

    @property
    def _harmful(self) -> bool:
        return self._harm > self._plan.margin

    def add(self, value: UnitValue) -> None:
        self._insert(value)
        self._look()

    def add_pair(self, control: UnitValue, candidate: UnitValue) -> None:
        self._insert(control)
        self._insert(candidate)
        self._pairs += 1
        self._look()

    def _insert(self, value: UnitValue) -> None:
        self._by_step[value.step][value.arm].append(value.value)
        for ordered in self._ordered[: value.step + 1]:
            insort(ordered[value.arm], value.value)
        self._step = max(self._step, value.step)

    def _look(self) -> None:
        if not self._harmful:
            level = self._plan.alpha_harm / self._plan.steps
            self._harm = max(self._badness(restart, level)[0] for restart in range(self._step + 1))

    def _badness(self, restart: int, alpha: float) -> tuple[float, float]:
        arms = self._ordered[restart]
        lower, upper = relative_bounds(arms["control"], arms["candidate"], self._quantile, alpha)
        return (lower, upper) if self._plan.sign > 0 else (-upper, -lower)

    def conclude(self) -> Conclusion:
        plan = self._plan
        current = self._badness(self._step, plan.alpha_promote)[1]
        lower, upper = (self._harm, current) if plan.sign > 0 else (-current, -self._harm)
        control, candidate = (self._estimate(ordered) for ordered in self._ordered[0].values())
        comparable = control is not None and candidate is not None and 0 < control < math.inf
        return Conclusion(
            control=control,
            candidate=candidate,
            effect=candidate / control - 1 if comparable and candidate is not None and control else None,
            lower=lower if lower > -1 else None,
            upper=upper,
            e_harm=None,
            e_promote=None,
            harmful=self._harmful,
            non_inferior=self._step == plan.steps - 1 and current <= plan.margin,
            pairs=self._pairs,
        )

    def _estimate(self, ordered: Sequence[float]) -> float | None:
        return ordered[math.ceil(self._quantile * len(ordered)) - 1] if ordered else None

    def to_json(self) -> dict[str, Any]:
        values = [{arm: pack(step[arm]) for arm in step} for step in self._by_step]
        return {"values": values, "step": self._step, "pairs": self._pairs, "harm": pack([self._harm])}

    def restore(self, data: Mapping[str, Any]) -> None:
        self._by_step = [{arm: unpack(step[arm]).tolist() for arm in step} for step in data["values"]]
        self._ordered = [
            {arm: sorted(x for later in self._by_step[step:] for x in later[arm]) for arm in ("control", "candidate")}
            for step in range(self._plan.steps)
        ]
        self._step, self._pairs = data["step"], data["pairs"]
        self._harm = float(unpack(data["harm"])[0])
