"""Rates and bounded means: bets on paired differences, as e-processes for harm and for non-inferiority.

Used by `Guardrail` for the kinds `rate` and `boundedMean`. Source: Waudby-Smith & Ramdas, "Estimating means of bounded
random variables by betting", JRSS B 2024 (aGRAPA). A pair's difference D lies in [−1, 1] whatever the two
values' distributions are, so one machinery serves both kinds; only the design prior assumes coins, and only for its
choice of bet, never for its validity.

The bets are placed on a grid of margins at once: the margins that are not rejected are the confidence interval shown
beside the verdict.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from services.evidence.pairing import PairWindow
from services.evidence.state import Floats, pack, unpack
from services.evidence.summaries import Conclusion, GuardrailPlan, UnitValue

BOLDEST_ADAPTIVE = 0.5
"""Share of the largest admissible bet that the adaptive bettor may place: it loses at most half its wealth on a
pair."""
BOLDEST_DESIGN = 0.9
"""The same for the design-prior bettor, whose optimum is bold where failures are rare; short of 1, so that no pair
ruins it."""
PRIOR_SQUARE = 0.25
"""E[D²] of the one pseudo-pair (D = 0 in the mean) that the adaptive bettor starts from."""


class AdaptiveBets:
    """E-processes against "the mean difference is at least m", one for each row (process) and column (margin m in (−1,
    1)).

    Wealth ∏(1 + λ_t(m − D_t)), λ_t = E[m − D]/E[(m − D)²] as estimated from the row's own past, in [0, ½/(1 − m)]: aGRAPA.
    """

    def __init__(self, margins: Floats, processes: int = 1) -> None:
        self._margins = margins[np.newaxis, :]
        self._boldest = BOLDEST_ADAPTIVE / (1 - self._margins)
        self._past = np.zeros((3, processes, 1))  # count, sum of D, sum of D²
        self.log_wealth: Floats = np.zeros((processes, margins.size))

    def update(self, difference: float | Floats, rows: slice = slice(None)) -> None:
        """Settles one pair in the named processes; an array of shape (processes, 1) gives each its own difference."""
        margins, past = self._margins, self._past[:, rows]
        count, total, squares = past
        mean, square = total / (count + 1), (squares + PRIOR_SQUARE) / (count + 1)
        bets = np.clip((margins - mean) / (square - 2 * margins * mean + margins**2), 0.0, self._boldest)
        self.log_wealth[rows] += np.log1p(bets * (margins - difference))
        count += 1
        total += difference
        squares += difference * difference

    def to_json(self) -> dict[str, str]:
        return {"past": pack(self._past), "logWealth": pack(self.log_wealth)}

    def restore(self, data: Mapping[str, str]) -> None:
        self._past = unpack(data["past"]).reshape(self._past.shape)
        self.log_wealth = unpack(data["logWealth"]).reshape(self.log_wealth.shape)


def design_bets(rate: float, margins: Floats) -> Floats:
    """The constant bet λ for each margin m that maximises E[log(1 + λ(m − D))] when both arms fail at `rate`; 0 where m
    ≤ 0.

    The objective is concave, so its derivative is bisected. Bounded by 0.9/(1 − m).
    """
    one_sided = rate * (1 - rate)
    low, high = np.zeros_like(margins), BOLDEST_DESIGN / (1 - margins)
    for _ in range(60):
        middle = (low + high) / 2
        slope = np.zeros_like(margins)
        for difference, probability in ((-1, one_sided), (0, 1 - 2 * one_sided), (1, one_sided)):
            gain = margins - difference
            slope += probability * gain / (1 + middle * gain)
        low, high = np.where(slope > 0, middle, low), np.where(slope > 0, high, middle)
    return low


class DesignBets:
    """E-processes as in `AdaptiveBets`, one row, with the constant bets of a design prior. Valid whatever the true
    rates are."""

    def __init__(self, margins: Floats, rate: float) -> None:
        self._margins = margins
        self._bets = design_bets(rate, margins)
        self.log_wealth: Floats = np.zeros(margins.size)

    def update(self, difference: float) -> None:
        self.log_wealth += np.log1p(self._bets * (self._margins - difference))


class TwoSampleBernoulli:
    """E-process against "both arms have one rate", blocks of one pair: Turner, Ly & Grünwald, "Generic E-variables for
    exact sequential k-sample tests", JSPI 2024, with the Bayesian posterior mean under Beta(prior, prior)
    priors for each arm.
    """

    def __init__(self, prior: float = 0.18) -> None:
        self._prior = prior
        self._pairs = 0
        self._successes = [0, 0]
        self.log_e = 0.0

    def update(self, control: int, candidate: int) -> None:
        rates = [(self._prior + s) / (2 * self._prior + self._pairs) for s in self._successes]
        pooled = (rates[0] + rates[1]) / 2
        for rate, success in zip(rates, (control, candidate), strict=True):
            self.log_e += math.log(rate / pooled if success else (1 - rate) / (1 - pooled))
        self._pairs += 1
        self._successes[0] += control
        self._successes[1] += candidate


def _margin_grid(margin: float) -> Floats:
    """Margins from −0.93 to 0.93, densest around 0 where effects lie, and the plan's own."""
    return np.union1d(np.linspace(-0.975, 0.975, 79) ** 3, margin)


class PairedEvidence:
    """Harm and non-inferiority of one rate or bounded mean. Here a difference is a *badness*: positive where the
    candidate is worse."""

    def __init__(self, plan: GuardrailPlan) -> None:
        low, high = plan.bounds if plan.kind == "boundedMean" else (0.0, 1.0)
        self._plan, self._width = plan, high - low
        self._grid = _margin_grid(plan.margin / self._width)
        self._at = int(np.searchsorted(self._grid, plan.margin / self._width))
        self._window = PairWindow(plan.pair_window_units, plan.pair_window_seconds)
        self._sums = {"control": [0.0, 0.0], "candidate": [0.0, 0.0]}  # units, sum of values
        self._pairs, self._harmful = 0, False
        self._harm = AdaptiveBets(-self._grid, plan.steps)
        self._begin(step=0)

    def _begin(self, step: int) -> None:
        """Non-inferiority starts anew with each step, so that in the last one it rests on that step's units alone."""
        self._step = step
        self._adaptive = AdaptiveBets(self._grid)
        prior = self._plan.design_prior
        self._design = None if prior is None else DesignBets(self._grid, prior)

    def add(self, value: UnitValue) -> None:
        self._count(value)
        partner = self._window.offer(value)
        if partner is not None:
            self._settle(*((partner, value) if value.arm == "candidate" else (value, partner)))

    def add_pair(self, control: UnitValue, candidate: UnitValue) -> None:
        self._count(control)
        self._count(candidate)
        self._settle(control, candidate)

    def _count(self, value: UnitValue) -> None:
        sums = self._sums[value.arm]
        sums[0] += 1
        sums[1] += value.value

    def _settle(self, control: UnitValue, candidate: UnitValue) -> None:
        badness = self._plan.sign * (candidate.value - control.value) / self._width
        step = min(control.step, candidate.step)
        self._pairs += 1
        if step > self._step:
            self._begin(step)
        if step == self._step:
            self._adaptive.update(badness)
            if self._design:
                self._design.update(badness)
        if not self._harmful:  # stopped at its crossing: how looks were batched cannot hide an alarm
            self._harm.update(-badness, slice(step + 1))
            self._harmful = bool(self._log_harm()[self._at] >= -math.log(self._plan.alpha_harm))

    def _log_harm(self) -> Floats:
        """Average of the processes started at each step; one that has not started has wealth 1."""
        total: Floats = np.logaddexp.reduce(self._harm.log_wealth, axis=0)
        return total - math.log(self._plan.steps)

    def _log_promote(self) -> Floats:
        adaptive: Floats = self._adaptive.log_wealth[0]
        if self._design is None:
            return adaptive
        mixed: Floats = np.logaddexp(adaptive, self._design.log_wealth)
        return mixed - math.log(2)

    def conclude(self) -> Conclusion:
        plan, harm, promote = self._plan, self._log_harm(), self._log_promote()
        # H0 are nested, so a margin counts as rejected only if all weaker claims beyond it are: the bounds stay valid.
        beaten = int(np.cumprod(harm >= -math.log(plan.alpha_harm)).sum())
        cleared = int(np.cumprod(promote[::-1] >= -math.log(plan.alpha_promote)).sum())
        worse = float(self._grid[beaten - 1]) * self._width if beaten else None
        better = float(self._grid[-cleared]) * self._width if cleared else None
        if plan.sign < 0:
            worse, better = (None if better is None else -better), (None if worse is None else -worse)
        control, candidate = (s / n if n else None for n, s in self._sums.values())
        return Conclusion(
            control=control,
            candidate=candidate,
            effect=None if control is None or candidate is None else candidate - control,
            lower=worse,
            upper=better,
            e_harm=_from_log(harm[self._at]),
            e_promote=_from_log(promote[self._at]),
            harmful=self._harmful,
            non_inferior=self._step == plan.steps - 1 and bool(promote[self._at] >= -math.log(plan.alpha_promote)),
            pairs=self._pairs,
            expired=self._window.expired,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "window": self._window.to_json(),
            "sums": self._sums,
            "pairs": self._pairs,
            "harmful": self._harmful,
            "harm": self._harm.to_json(),
            "step": self._step,
            "adaptive": self._adaptive.to_json(),
            "design": None if self._design is None else pack(self._design.log_wealth),
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        self._window.restore(data["window"])
        self._sums = {arm: list(data["sums"][arm]) for arm in self._sums}
        self._pairs, self._harmful = data["pairs"], data["harmful"]
        self._harm.restore(data["harm"])
        self._begin(data["step"])
        self._adaptive.restore(data["adaptive"])
        if self._design is not None:
            self._design.log_wealth = unpack(data["design"])


def _from_log(log_e: float) -> float:
    """exp, kept finite: JSON knows no infinity."""
    return math.exp(min(float(log_e), 700.0))
