"""How much evidence a guardrail's test needs: chances of seeing harm and of showing "no worse" after so many users, in closed form.

Called by `planning`. Pure arithmetic on a guardrail's plan and on what is known of stable; looks at no rollout. Approximations, good to
about a third of the users (`tests/rollout/test_power.py` compares them with simulated rollouts through `Guardrail` itself):

- bets on pairs: the logarithm of the wealth is a random walk, so the time of its crossing is inverse Gaussian (Wald's approximation; an
  adaptive bet pays `REGRET` for what it has to learn);
- quantiles and means: what the tests need is exact for values spread as assumed, the estimates' own noise is normal.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Final, Literal

import numpy as np

from services.evidence import GuardrailPlan, Reading, UnitValue, asymptotic_halfwidth, design_bets
from services.evidence.batch import Batch
from services.evidence.bets import BOLDEST_ADAPTIVE
from services.evidence.means import BURN_IN
from services.evidence.mixtures import log_coin_martingales
from services.evidence.pairing import PairWindow
from services.evidence.quantiles import TUNED_VARIANCE

LIKELY: Final = 0.8
"""The probability with which harm shall be seen and promotion earned: the power that fixed tests are planned for."""
REGRET: Final = 1.5
"""Log wealth that an adaptive bet lacks against the best constant one, as seen in simulations over some thousands of pairs."""
MOST_USERS: Final = 1e9
_ARRIVALS: Final = 4_000
_NORMAL: Final = NormalDist()


@dataclass(frozen=True, slots=True)
class Stable:
    """What is known of stable's values of one metric.

    `rate`: share of users for a rate. `spread`: coefficient of variation of a mean (of a ratio, that of its users' linear parts), standard
    deviation of a quantile's metric's logarithm, standard deviation of the pairs' differences of a bounded mean as a share of its range.
    `missing`: share of users without a value, which counts as infinite in a quantile. `share`: of the users who say anything, where only
    those count.
    """

    rate: float = 0.0
    spread: float = 0.0
    missing: float = 0.0
    share: float = 1.0


COMPARING: Final = Stable(spread=1.0)
"""What is taken of people who compare answers: each compares one pair, and nobody calls it a tie. Ties and more pairs need fewer people."""


def chance_of_alarm(plan: GuardrailPlan, stable: Stable, users: float, effect: float) -> float:
    """Probability that harm of size `effect` (as badness: absolute for rates and bounded means, relative otherwise), there from the
    stage's start, is shown within `users` users an arm (pairs, for rates and bounded means).
    """
    if effect <= plan.margin or users < 1:
        return 0.0
    if plan.kind in ("rate", "boundedMean"):
        level = math.log(plan.steps / plan.alpha_harm) + REGRET
        margin, outcomes = _scaled(plan), _outcomes(plan, stable, effect)
        return _crossing(users, level, *_walk(outcomes, margin, _adaptive_bet(outcomes, margin, 1.0), 1.0))
    level = plan.alpha_harm / plan.steps
    if plan.kind in ("mean", "ratio"):
        return _normal(effect - plan.margin - _halfwidth(stable, users, level), _mean_noise(stable, users))
    return _quantile_chance(plan, stable, users, level, math.log1p(effect) - math.log1p(plan.margin))


def chance_of_showing(plan: GuardrailPlan, stable: Stable, users: float) -> float:
    """Probability that a candidate that does not differ is shown not to be worse within `users` users an arm (pairs, for rates and bounded
    means).
    """
    if users < 1:
        return 0.0
    if plan.kind in ("rate", "boundedMean"):
        margin, outcomes = _scaled(plan), _outcomes(plan, stable, 0.0)
        bets = [(_adaptive_bet(outcomes, margin, -1.0), REGRET)]
        if plan.design_prior is not None:
            bets.append((float(design_bets(plan.design_prior, np.array([margin]))[0]), 0.0))
        level = math.log(len(bets) / plan.alpha_promote)
        return max(_crossing(users, level + regret, *_walk(outcomes, margin, bet, -1.0)) for bet, regret in bets)
    if plan.kind in ("mean", "ratio"):
        return _normal(plan.margin - _halfwidth(stable, users, plan.alpha_promote), _mean_noise(stable, users))
    margin = math.log1p(plan.margin) if plan.direction == "lower" else -math.log1p(-plan.margin)
    return _quantile_chance(plan, stable, users, plan.alpha_promote, margin)


def users_needed(plan: GuardrailPlan, stable: Stable, probability: float = LIKELY) -> float:
    """Users an arm (pairs, for rates and bounded means) until a candidate that does not differ is shown not to be worse; infinite where
    a thousand million do not suffice.
    """
    return least(lambda users: chance_of_showing(plan, stable, users) >= probability, 1.0, MOST_USERS)


def harm_seen(plan: GuardrailPlan, stable: Stable, users: float, probability: float = LIKELY) -> float | None:
    """The smallest badness that `users` users an arm show; None: none that there can be."""
    most = most_harm(plan, stable)
    found = least(lambda effect: chance_of_alarm(plan, stable, users, effect) >= probability, plan.margin, most)
    return found if found <= most else None


def margin_in_reach(plan: GuardrailPlan, stable: Stable, users: float, probability: float = LIKELY) -> float | None:
    """The smallest margin within which `users` users an arm show a candidate that does not differ; None: none that may be written."""
    most = 100.0 if plan.relative and plan.direction == "lower" else 0.99 * (plan.bounds[1] - plan.bounds[0])

    def shown(margin: float) -> bool:
        return chance_of_showing(replace(plan, margin=margin), stable, users) >= probability

    found = least(shown, most / 1e5, most)
    return found if found <= most else None


def paired_users_lacking(plan: GuardrailPlan, reading: Reading) -> float:
    """Further users an arm until the bets on pairs show "not worse", if the arms go on as they did; infinite where they never would."""
    users = min(reading.n_control, reading.n_candidate)
    # Half a user towards one half, as for a design prior: nobody has failed yet does not mean that nobody will.
    known = reading.control is not None and reading.candidate is not None and users > 0
    if not known or reading.control is None or reading.candidate is None:
        return math.inf
    effect = plan.sign * (reading.candidate - reading.control)
    if plan.kind == "rate":
        rate = (reading.control * users + 0.5) / (users + 1)
        outcomes = _outcomes(plan, Stable(rate=rate), max(effect, -rate if plan.direction == "lower" else rate - 1))
    else:
        outcomes = _outcomes(plan, Stable(spread=math.sqrt(0.5)), effect)
    margin = _scaled(plan)
    drift, _ = _walk(outcomes, margin, _adaptive_bet(outcomes, margin, -1.0), -1.0)
    if drift <= 1e-12:
        return math.inf
    lacking = math.log(reading.promote_threshold) - math.log(max(reading.e_promote or 1.0, 1e-12))
    return max(1.0, lacking / drift) * max(1.0, users / reading.pairs if reading.pairs else 1.0)


@lru_cache(maxsize=4096)
def _paired(units: int, seconds: float, gap: float) -> float:
    """Share of users that find a partner where arrivals in both arms together are `gap` seconds apart on average."""
    draw, arrivals, at = random.Random(1), [], 0.0
    for number in range(_ARRIVALS):
        at += draw.expovariate(1.0) * gap
        arm: Literal["control", "candidate"] = "candidate" if draw.random() < 0.5 else "control"
        arrivals.append(UnitValue(str(number), arm, at, at, 0, 0.0))
    pairs = PairWindow(units, seconds).offer(Batch.of(arrivals))
    return 2 * len(pairs) / _ARRIVALS


def pair_share(plan: GuardrailPlan, users_per_second: float) -> float:
    """Share of an arm's users that find a partner within the plan's window, with so many users an arm and second; 1 where none is
    needed. Simulated once for a rate, to two digits.
    """
    if plan.kind not in ("rate", "boundedMean"):
        return 1.0
    if users_per_second <= 0:
        return 0.0
    return _paired(plan.pair_window_units, plan.pair_window_seconds, float(f"{1 / (2 * users_per_second):.2g}"))


def least(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest argument, to 1 %, from which a monotone condition holds; infinite where it does not hold at `high`."""
    if not holds(high):
        return math.inf
    if low > 0 and holds(low):
        return low
    while high - low > 0.01 * high:
        middle = math.sqrt(low * high) if low > 0 and high > 2 * low else (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _scaled(plan: GuardrailPlan) -> float:
    """The margin on the scale of pairs' differences, which lie in [−1, 1]."""
    return plan.margin / (plan.bounds[1] - plan.bounds[0]) if plan.kind == "boundedMean" else plan.margin


def _outcomes(plan: GuardrailPlan, stable: Stable, effect: float) -> tuple[float, float]:
    """Probabilities that a pair's difference (as badness) is +1 and −1, at a true badness of `effect`."""
    if plan.kind == "rate":
        bad = stable.rate if plan.direction == "lower" else 1 - stable.rate
        worse = min(1.0, max(0.0, bad + effect))
        return worse * (1 - bad), bad * (1 - worse)
    shift = effect / (plan.bounds[1] - plan.bounds[0])
    apart = max(stable.spread**2, abs(shift))
    return min(1.0, (apart + shift) / 2), max(0.0, (apart - shift) / 2)


def most_harm(plan: GuardrailPlan, stable: Stable) -> float:
    """The largest badness that there can be; of a metric without an end, a hundredfold worsening."""
    if plan.kind == "rate":
        return 1 - (stable.rate if plan.direction == "lower" else 1 - stable.rate)
    if plan.kind == "boundedMean":
        return plan.bounds[1] - plan.bounds[0]
    return 100.0 if plan.direction == "lower" else 1.0


def _adaptive_bet(outcomes: tuple[float, float], margin: float, sign: float) -> float:
    """The bet that aGRAPA settles on. `sign`: 1 bets on harm, −1 on "not worse"."""
    up, down = outcomes
    mean = sign * (up - down - margin)
    square = up * (1 - margin) ** 2 + down * (1 + margin) ** 2 + (1 - up - down) * margin**2
    return min(max(mean / square, 0.0), BOLDEST_ADAPTIVE / (1 + sign * margin))


def _walk(outcomes: tuple[float, float], margin: float, bet: float, sign: float) -> tuple[float, float]:
    """Mean and variance of what a pair adds to the log wealth."""
    up, down = outcomes
    gains = [
        (up, math.log1p(bet * sign * (1 - margin))),
        (down, math.log1p(bet * sign * (-1 - margin))),
        (max(0.0, 1 - up - down), math.log1p(bet * sign * -margin)),
    ]
    mean = sum(share * gain for share, gain in gains)
    return mean, sum(share * (gain - mean) ** 2 for share, gain in gains)


def _crossing(pairs: float, level: float, drift: float, variance: float) -> float:
    """Probability that a random walk has reached `level` within so many pairs (inverse Gaussian)."""
    if variance < 1e-15:
        return float(drift * pairs >= level)
    spread = math.sqrt(variance * pairs)
    back = _NORMAL.cdf(-(drift * pairs + level) / spread)
    tilt = 2 * drift * level / variance
    again = math.exp(min(tilt + math.log(back), 0.0)) if back > 0 else 0.0
    return min(1.0, _NORMAL.cdf((drift * pairs - level) / spread) + again)


def _normal(excess: float, noise: float) -> float:
    return float(excess >= 0) if noise == 0 else _NORMAL.cdf(excess / noise)


def _halfwidth(stable: Stable, users: float, level: float) -> float:
    if users < BURN_IN:
        return math.inf
    return asymptotic_halfwidth(4 * stable.spread**2, round(2 * users), level, sides=1)


def _mean_noise(stable: Stable, users: float) -> float:
    return stable.spread * math.sqrt(2 / users)


def _quantile_chance(plan: GuardrailPlan, stable: Stable, users: float, alpha: float, gap: float) -> float:
    """Chance that the two-sample test at `alpha` tells apart arms whose quantiles lie `gap` beyond the margin, in logarithms."""
    assert plan.quantile is not None  # noqa: S101  GuardrailPlan sees to it
    n, quantile = round(users), plan.quantile
    needed = _gap_shown(n, quantile, alpha, stable.spread, stable.missing)
    step = min(math.sqrt(quantile * (1 - quantile) / n), 0.9 * quantile)
    above, below = _log_quantile(stable, quantile + step), _log_quantile(stable, quantile - step)
    middle = _log_quantile(stable, quantile)
    if math.isinf(needed) or math.isinf(middle):
        return 0.0
    noise = (above - below) / 2 if above < math.inf else middle - below
    return _normal(gap - needed, math.sqrt(2) * noise)


@lru_cache(maxsize=4096)
def _gap_shown(n: int, quantile: float, alpha: float, spread: float, missing: float) -> float:
    """How far apart, in logarithms, the quantiles of two arms of n users must lie for an e-value of 1/alpha; infinite: nothing suffices.

    The null lets the common quantile lie anywhere between the two arms'. Wherever it is put, one arm has too many values below it, the
    other too few, and both together must be surprising enough.
    """
    stable = Stable(spread=spread, missing=missing)
    tuned = round(TUNED_VARIANCE / (quantile * (1 - quantile)))
    steps = np.linspace(0.0, 1.0, 201)
    more, fewer = quantile + (1 - quantile - 1e-9) * steps, quantile * (1 - 0.999 * steps)
    too_many = log_coin_martingales(n * more, n, quantile, alpha, tuned)
    too_few = log_coin_martingales(n * fewer, n, quantile, alpha, tuned)
    level, widest = -math.log(alpha), 0.0
    for share, evidence in zip(more, too_many, strict=True):
        value = _log_quantile(stable, float(share))
        alone = evidence + too_few[0] >= level
        place = 0 if alone else int(np.searchsorted(too_few, level - evidence))
        if place == len(fewer) or math.isinf(value):
            return math.inf
        widest = max(widest, value - _log_quantile(stable, float(fewer[place])))
        if alone:
            return widest
    return math.inf


def _log_quantile(stable: Stable, share: float) -> float:
    """Of a lognormal metric of median 1, some of whose values are missing and count as infinite."""
    if share >= 1 - stable.missing:
        return math.inf
    return stable.spread * _NORMAL.inv_cdf(share / (1 - stable.missing))
