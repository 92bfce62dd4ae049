"""The mean of bounded values, such as ratings or judge scores of one arm: a confidence sequence by betting.

Used by `preference`, and wherever one arm's mean is shown with bounds that hold at every look. Two bettors bet against "the mean is at
least m" and "at most m" for a grid of m at once (Waudby-Smith & Ramdas 2024); the m that neither has refuted make the interval.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from services.evidence.bets import Bettor
from services.evidence.errors import PlanFault, ValueFault
from services.evidence.state import VERSION, Floats, restoring

_GRID: Floats = np.linspace(-0.985, 0.985, 161)
_MIDDLE = 80


class BoundedMean:
    """Evidence on the mean of values within `bounds`, in order; each value's mean given those before is the one that is sought."""

    def __init__(self, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
        low, high = bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise PlanFault(f"bounded mean: {bounds} are no bounds")
        self._bounds = (low, high)
        self._low, self._high = (
            Bettor(_GRID, _MIDDLE),
            Bettor(_GRID, _MIDDLE),
        )  # against large means, against small ones
        self.n, self._total = 0, 0.0

    @property
    def mean(self) -> float | None:
        return self._total / self.n if self.n else None

    @property
    def log_below(self) -> float:
        """Log e-value against "the mean lies in the upper half of the bounds"."""
        return self._low.own

    @property
    def log_above(self) -> float:
        """Log e-value against "the mean lies in the lower half"."""
        return self._high.own

    def update(self, values: Iterable[float]) -> None:
        """Raises ValueFault for a value outside the bounds, and then nothing has been added."""
        fresh = np.array(list(values), np.float64)
        low, high = self._bounds
        if not ((fresh >= low) & (fresh <= high)).all():
            raise ValueFault(f"bounded mean: a value outside [{low}, {high}]")
        centred, start = 2 * (fresh - low) / (high - low) - 1, 0
        for value in fresh.tolist():
            self._total += value
        self.n += len(fresh)
        while start < len(centred):
            piece = centred[start : start + self._low.left]
            for bettor, sign in ((self._low, 1), (self._high, -1)):
                bettor.take(sign * piece, bettor.path(sign * piece))
            start += len(piece)

    def interval(self, alpha: float) -> tuple[float, float]:
        """Bounds of the mean that hold at all times with probability 1 − alpha, alpha/2 a side."""
        threshold, (low, high) = math.log(2 / alpha), self._bounds
        below, above = (int(np.cumprod(b.log_wealth()[::-1] >= threshold).sum()) for b in (self._low, self._high))
        lower = (1 - float(_GRID[-above])) / 2 if above else 0.0
        upper = (1 + float(_GRID[-below])) / 2 if below else 1.0
        return low + (high - low) * lower, low + (high - low) * upper

    def to_json(self) -> dict[str, Any]:
        bettors = {"low": self._low.to_json(), "high": self._high.to_json()}
        return {"version": VERSION, "bounds": self._bounds, "n": self.n, "total": self._total, **bettors}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "BoundedMean":
        with restoring(data, "bounded mean"):
            mean = cls((data["bounds"][0], data["bounds"][1]))
            mean.n, mean._total = data["n"], data["total"]
            mean._low.restore(data["low"])
            mean._high.restore(data["high"])
        return mean
