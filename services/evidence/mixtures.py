"""Mixture martingales: the two-sided normal and beta-binomial mixtures, and the bounds that follow from them.

Used by `quantiles`. Source: Howard, Ramdas, McAuliffe, Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence
sequences", Annals of Statistics 2021, propositions 5 and 7; Howard & Ramdas, "Sequential estimation of quantiles",
Bernoulli 2022. Knows nothing of metrics.

Throughout, `s` is a sum of centred observations, `v` its intrinsic time (n·p·(1−p) for n coin flips), `alpha` an error
level over all times.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from services.evidence.state import Floats

TUNED_FOR_UNITS = 100
"""Sample size at which the bounds for proportions and quantiles are tightest."""


def mixture_precision(v: float, alpha: float) -> float:
    """ρ that makes the normal mixture's bound tightest near intrinsic time v (closed form, within 4 % of the
    optimum)."""
    level = 2 * math.log(1 / alpha)
    return v / (level + math.log1p(level))


@dataclass(frozen=True, slots=True)
class NormalMixture:
    """Two-sided normal mixture for 1-sub-Gaussian sums (2021, proposition 5)."""

    rho: float

    @classmethod
    def tuned(cls, v: float, alpha: float) -> "NormalMixture":
        return cls(mixture_precision(v, alpha))

    def log_martingale(self, s: float, v: float) -> float:
        return 0.5 * math.log(self.rho / (v + self.rho)) + s * s / (2 * (v + self.rho))

    def bound(self, v: float, alpha: float) -> float:
        """|s| stays below this at all times with probability 1 − alpha."""
        return math.sqrt((v + self.rho) * (math.log1p(v / self.rho) + 2 * math.log(1 / alpha)))


@dataclass(frozen=True, slots=True)
class BetaBinomialMixture:
    """Two-sided beta-binomial mixture for observations in [−g, h] (2021, proposition 7). For coins of probability p: g
    = p, h = 1 − p."""

    r: float
    g: float
    h: float

    @classmethod
    def tuned(cls, v: float, alpha: float, g: float, h: float) -> "BetaBinomialMixture":
        return cls(max(mixture_precision(v, alpha) - g * h, 1e-3 * g * h), g, h)

    def log_martingale(self, s: float, v: float) -> float:
        g, h, r = self.g, self.h, self.r
        whole = g + h
        return (
            v / (g * h) * math.log(whole)
            - (v / h + s) / whole * math.log(g)
            - (v / g - s) / whole * math.log(h)
            + _log_beta((r + v) / (g * whole) - s / whole, (r + v) / (h * whole) + s / whole)
            - _log_beta(r / (g * whole), r / (h * whole))
        )

    def bound(self, v: float, alpha: float) -> float:
        """s stays below this at all times with probability 1 − alpha; at most v/g, the largest sum there can be."""
        threshold, largest = math.log(1 / alpha), v / self.g
        if self.log_martingale(largest, v) <= threshold:
            return largest
        return _root(lambda s: self.log_martingale(s, v) - threshold, 0.0, largest)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _root(function: Callable[[float], float], low: float, high: float, tolerance: float = 2e-12) -> float:
    """Where `function` is 0 between `low` and `high`, at which its signs differ. Ridders' method: as fast as Brent's here, in few lines.

    Raises ValueError where the signs are the same. Source: C. Ridders, IEEE Transactions on Circuits and Systems 26 (1979).
    """
    at_low, at_high = function(low), function(high)
    if at_low * at_high > 0:
        raise ValueError(f"no change of sign between {low} and {high}")
    last = math.inf
    while at_low and at_high and high - low > tolerance:
        middle = (low + high) / 2
        at_middle = function(middle)
        slope = math.copysign(math.sqrt(at_middle**2 - at_low * at_high), at_low - at_high)
        guess = middle + (middle - low) * at_middle / slope
        at_guess = function(guess)
        if at_guess == 0 or abs(guess - last) <= tolerance:
            return guess
        last = guess
        points = sorted(((low, at_low), (middle, at_middle), (guess, at_guess), (high, at_high)))
        (low, at_low), (high, at_high) = next(
            (left, right) for left, right in itertools.pairwise(points) if left[1] * right[1] <= 0
        )
    return low if at_low == 0 else high if at_high == 0 else (low + high) / 2


@lru_cache(maxsize=64)
def _coin_mixture(p: float, alpha: float, units: int) -> BetaBinomialMixture:
    return BetaBinomialMixture.tuned(units * p * (1 - p), alpha, p, 1 - p)


def log_coin_martingale(successes: float, trials: int, p: float, alpha: float, units: int = TUNED_FOR_UNITS) -> float:
    """Log evidence against "every trial succeeds with probability p", tuned for `units` trials and level alpha."""
    if trials == 0:
        return 0.0
    return _coin_mixture(p, alpha, units).log_martingale(successes - trials * p, trials * p * (1 - p))


def log_coin_martingales(
    successes: Floats, trials: int, p: float, alpha: float, units: int = TUNED_FOR_UNITS
) -> Floats:
    """`log_coin_martingale` for many counts of successes at once."""
    if trials == 0:
        return np.zeros(len(successes))
    r, q = _coin_mixture(p, alpha, units).r, 1 - p
    wins, losses = r / q + successes, r / p + trials - successes
    whole = r / (p * q) + trials
    constant = math.lgamma(r / q) + math.lgamma(r / p) - math.lgamma(r / (p * q)) + math.lgamma(whole)
    logs: Floats = (
        _lgamma(wins) + _lgamma(losses) - constant - successes * math.log(p) - (trials - successes) * math.log(q)
    )
    return logs


def _lgamma(x: Floats) -> Floats:
    """Logarithm of the gamma function for x > 0, to 1e-13 of its size: Stirling's series at x + 8, brought back by the recurrence."""
    ends = x * (x + 7)
    product = ends * (ends + 6) * (ends + 10) * (ends + 12)  # x(x + 1)…(x + 7)
    y = x + 8
    z = 1 / (y * y)
    series = (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - z / 1188) * z) * z) * z) / y
    logs: Floats = (y - 0.5) * np.log(y) - y + (0.5 * math.log(2 * math.pi)) + series - np.log(product)
    return logs


def bernoulli_interval(successes: float, trials: int, alpha: float) -> tuple[float, float]:
    """Confidence sequence for a proportion: the p that the beta-binomial mixture does not reject at alpha, at all times
    at once."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes in {trials} trials")
    rate, threshold, edge = successes / trials, math.log(1 / alpha), 1e-9

    def excess(p: float) -> float:
        return log_coin_martingale(successes, trials, p, alpha) - threshold

    inside = min(max(rate, edge), 1 - edge)
    lower = _root(excess, edge, inside) if excess(edge) > 0 > excess(inside) else 0.0
    upper = _root(excess, inside, 1 - edge) if excess(1 - edge) > 0 > excess(inside) else 1.0
    return lower, upper
