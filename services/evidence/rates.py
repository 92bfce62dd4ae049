"""Rates and bounded means: bets on paired differences, as e-processes for harm and for non-inferiority.

Used by `Guardrail` for the kinds `rate` and `boundedMean`. A pair's difference D lies in [−1, 1] whatever the two
values' distributions are, so one machinery serves both kinds; only the design prior assumes coins, and only for its
choice of bet, never for its validity.

The bets are placed on a grid of margins at once: the margins that are not rejected are the confidence interval shown
beside the verdict.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from services.evidence.batch import Batch, running
from services.evidence.bets import Bettor, by_design
from services.evidence.covariates import PairCovariate
from services.evidence.pairing import Pairs, PairWindow
from services.evidence.state import Floats
from services.evidence.summaries import Conclusion, GuardrailPlan


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
        low, high = plan.range
        self._plan, self._width = plan, high - low
        self._grid = _margin_grid(plan.tolerance / self._width)
        self._at = int(np.searchsorted(self._grid, plan.tolerance / self._width))
        self._window = PairWindow(plan.pair_window_units, plan.pair_window_seconds)
        scale = plan.sign / self._width
        self._covariate = PairCovariate(scale, scale * (low + high) / 2)
        self._sums = {"control": [0.0, 0.0], "candidate": [0.0, 0.0]}  # units, sum of values
        self._pairs, self._harmful = 0, False
        self._harm = [Bettor(-self._grid, self._at) for _ in range(plan.steps)]
        self._begin(step=0)

    def _begin(self, step: int) -> None:
        """Non-inferiority starts anew with each step, so that in the last one it rests on that step's units alone."""
        self._step = step
        self._promote = [Bettor(self._grid, self._at)]
        if self._plan.design_prior is not None:
            self._promote.append(Bettor(self._grid, self._at, by_design(self._plan.design_prior, self._grid)))
        for bettor in self._promote:
            bettor.close(self._covariate.reach, self._covariate.sharper)

    def add(self, batch: Batch) -> None:
        self._count("control", batch.value[~batch.candidate])
        self._count("candidate", batch.value[batch.candidate])
        self._settle(self._window.offer(batch))

    def add_pairs(self, control: Batch, candidate: Batch) -> None:
        self._count("control", control.value)
        self._count("candidate", candidate.value)
        self._settle(Pairs.of(control, candidate))

    def _count(self, arm: str, values: Floats) -> None:
        sums = self._sums[arm]
        if len(values):
            sums[:] = sums[0] + len(values), float(running(sums[1], values)[-1])

    def _settle(self, pairs: Pairs) -> None:
        """In pieces over which no bet, no covariate and no step changes."""
        badness = self._plan.sign * (pairs.candidate - pairs.control) / self._width
        changes = [*(np.flatnonzero(np.diff(pairs.step)) + 1).tolist(), len(pairs)] if len(pairs) else []
        start = 0
        for change in changes:
            step = int(pairs.step[start])
            if step > self._step:
                self._begin(step)
            while start < change:
                bettors = [*(self._promote if step == self._step else ()), *self._open_harm(step)]
                end = min(change, start + min(self._covariate.left, *(bettor.left for bettor in bettors), change))
                adjusted, is_new = self._covariate.adjust(badness[start:end], pairs[start:end])
                self._bet(adjusted, step)
                if is_new:
                    for bettor in (*self._harm, *self._promote):
                        bettor.close(self._covariate.reach, self._covariate.sharper)
                start = end
        self._pairs += len(pairs)

    def _open_harm(self, step: int) -> list[Bettor]:
        """The processes that take pairs of a step. None after an alarm: it is stopped at its crossing, so batches cannot hide it."""
        return [] if self._harmful or not self._plan.guards else self._harm[: step + 1]

    def _bet(self, badness: Floats, step: int) -> None:
        if step == self._step:
            for bettor in self._promote:
                bettor.take(badness, bettor.path(badness))
        bettors = self._open_harm(step)
        if not bettors:
            return
        paths = [bettor.path(-badness) for bettor in bettors]
        still = [np.full(len(badness), bettor.own) for bettor in self._harm[step + 1 :]]
        crossed = _mean_wealth([*paths, *still]) >= -math.log(self._plan.alpha_harm)
        taken = int(crossed.argmax()) + 1 if crossed.any() else len(badness)
        self._harmful = bool(crossed.any())
        for bettor, path in zip(bettors, paths, strict=True):
            bettor.take(-badness[:taken], path[:taken])

    def conclude(self) -> Conclusion:
        plan = self._plan
        harm = _mean_wealth([bettor.log_wealth() for bettor in self._harm])
        promote = _mean_wealth([bettor.log_wealth() for bettor in self._promote])
        # H0 are nested, so a margin counts as rejected only if all weaker claims beyond it are: the bounds stay valid.
        beaten = int(np.cumprod(harm >= -math.log(plan.alpha_harm)).sum()) if plan.guards else 0
        cleared = int(np.cumprod(promote[::-1] >= -math.log(plan.alpha_promote)).sum())
        worse = float(self._grid[beaten - 1]) * self._width if beaten else None
        better = float(self._grid[-cleared]) * self._width if cleared else None
        control, candidate = (s / n if n else None for n, s in self._sums.values())
        return Conclusion(
            control=control,
            candidate=candidate,
            effect=None if control is None or candidate is None else candidate - control,
            worse=worse,
            better=better,
            log_harm=float(harm[self._at]) if plan.guards else None,
            log_promote=float(promote[self._at]),
            harmful=self._harmful,
            step=self._step,
            shown=bool(promote[self._at] >= -math.log(plan.alpha_promote)),
            pairs=self._pairs,
            expired=self._window.expired,
            spared=self._covariate.spared,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "window": self._window.to_json(),
            "covariate": self._covariate.to_json(),
            "sums": self._sums,
            "pairs": self._pairs,
            "harmful": self._harmful,
            "harm": [bettor.to_json() for bettor in self._harm],
            "step": self._step,
            "promote": [bettor.to_json() for bettor in self._promote],
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        self._window.restore(data["window"])
        self._covariate.restore(data["covariate"])
        self._sums = {arm: list(data["sums"][arm]) for arm in self._sums}
        self._pairs, self._harmful = data["pairs"], data["harmful"]
        self._begin(data["step"])
        for bettor, saved in zip((*self._harm, *self._promote), (*data["harm"], *data["promote"]), strict=True):
            bettor.restore(saved)


def _mean_wealth(logs: Sequence[Floats]) -> Floats:
    """Log of the average of several processes; one that has not started has wealth 1."""
    mean: Floats = np.logaddexp.reduce(np.array(logs), axis=0) - math.log(len(logs))
    return mean
