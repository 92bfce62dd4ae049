"""A unit's own past as covariate: what could be foretold of its value is taken away, and the rest is less noisy.

Used by `rates` and `means`. The past is known before the unit is exposed and the arm is drawn by a hash, so the past of a pair's
candidate and that of its control have one distribution: their difference X has mean 0 whatever the arms do afterwards.
Hence D − βX has the mean of D for any β that was fixed
before the pair, and a bet on it is as valid as one on D. A unit without a past counts as one with the mean past of the units before it.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from services.evidence.batch import Flags, added
from services.evidence.bets import PLACES
from services.evidence.pairing import Pairs
from services.evidence.state import Floats, pack, unpack

REFRESH_SHARE = 16
"""β is estimated anew whenever the pairs have grown by this part."""
RIDGE = 1.0
"""Draws β towards 0 while little is known: this much of ΣX², in units of the squared range."""
BURN_IN = 30
"""Units with a past before a mean is adjusted."""
LARGEST_GAIN = 4.0
"""Factor of E[D²] that is believed at most."""


class PairCovariate:
    """D − βX for the pairs of one metric. β and the mean past rest on the pairs before; |β| ≤ 1.

    `scale` turns a value into badness, `middle` is the badness of the middle of the range.
    """

    def __init__(self, scale: float, middle: float) -> None:
        self._scale = scale
        self._sums: Floats = np.zeros(7)  # pairs, units with a past, Σpast, ΣDX, ΣX², ΣD², Σ(D − βX)²
        self._mean, self._beta, self._gain = middle, 0.0, 1.0
        self.left = 1

    @property
    def reach(self) -> float:
        """|D − βX| is at most this, and so is the place where `Bettor` counts it."""
        return 1 + math.ceil(PLACES * abs(self._beta) + 1e-9) / PLACES if self._beta else 1.0

    @property
    def sharper(self) -> float:
        return self._gain

    @property
    def spared(self) -> float:
        """The share of ΣD² that the pasts have taken away so far."""
        raw, adjusted = (float(total) for total in self._sums[5:])
        return max(0.0, 1 - (adjusted + RIDGE) / (raw + RIDGE))

    def adjust(self, badness: Floats, pairs: Pairs) -> tuple[Floats, bool]:
        """The differences of at most `left` pairs, adjusted; and whether β has changed after them."""
        pasts = [self._scale * past for past in (pairs.candidate_past, pairs.control_past)]
        known = [~np.isnan(past) for past in pasts]
        has_past = bool(known[0].any() or known[1].any())
        if not has_past and self._sums[1] == 0:  # nobody has a past: nothing to learn
            self._sums[[0, 5, 6]] = added(self._sums[[0, 5, 6]], [np.ones(len(badness)), badness**2, badness**2])
            return badness, self._refresh(len(badness))
        centred = [np.where(is_known, past - self._mean, 0.0) for past, is_known in zip(pasts, known, strict=True)]
        apart = centred[0] - centred[1]
        adjusted = badness - self._beta * apart
        units = known[0].astype(float) + known[1]
        past = sum(np.where(is_known, past, 0.0) for past, is_known in zip(pasts, known, strict=True))
        columns = [np.ones(len(badness)), units, past, badness * apart, apart**2, badness**2, adjusted**2]
        self._sums = added(self._sums, columns)
        return adjusted, self._refresh(len(badness))

    def _refresh(self, pairs: int) -> bool:
        self.left -= pairs
        if self.left:
            return False
        count, units, past, cross, squares, raw, adjusted = self._sums.tolist()
        self.left = max(1, int(count) // REFRESH_SHARE)
        if not units:
            return False
        self._mean = past / units
        self._beta = min(1.0, max(-1.0, cross / (squares + RIDGE)))
        self._gain = min(LARGEST_GAIN, max(1.0, (raw + RIDGE) / (adjusted + RIDGE)))
        return True

    def to_json(self) -> dict[str, Any]:
        return {"sums": pack(self._sums), "now": pack([self._mean, self._beta, self._gain]), "left": self.left}

    def restore(self, data: Mapping[str, Any]) -> None:
        self._sums, self.left = unpack(data["sums"]), data["left"]
        self._mean, self._beta, self._gain = unpack(data["now"]).tolist()


class MeanCovariate:
    """x − β(past − mean past) for the units of one metric: regression adjustment, the same in both arms.

    β is the slope within the arms and rests, like the mean past, on the units before the last check; a unit without a past is left as it
    is. The ratio of the arms' means keeps its target, since the adjustment has the same mean in both. Of a ratio metric the numerators are
    adjusted, and β is the slope of what the noise of the ratio is made of: numerator − rate · denominator.
    """

    def __init__(self) -> None:
        self._sums: Floats = np.zeros((2, 5))  # control, candidate: units with a past, Σx, Σpast, Σx·past, Σpast²
        self._mean, self._beta, self.rate = 0.0, 0.0, 0.0

    def adjust(self, values: Floats, noise: Floats, past: Floats, candidate: Flags) -> Floats:
        known = ~np.isnan(past)
        if not known.any():
            return values
        adjusted = values.copy()
        adjusted[known] -= self._beta * (past[known] - self._mean)
        for arm in (0, 1):
            rows = known & (candidate == bool(arm))
            x, before = noise[rows], past[rows]
            self._sums[arm] = added(self._sums[arm], [np.ones(len(x)), x, before, x * before, before**2])
        return adjusted

    def refresh(self, rate: float) -> None:
        """Estimates β anew; called at checks, whose places batches cannot move. `rate`: a ratio's value so far, 0 of a mean."""
        self.rate = rate
        n, x, before, cross, squares = self._sums.T
        if n.sum() < BURN_IN:
            return
        n = np.maximum(n, 1)
        spread = float((squares - before**2 / n).sum())
        self._mean = float(before.sum() / n.sum())
        known = spread > 1e-12 * float(squares.sum())  # otherwise all pasts are one
        self._beta = float((cross - x * before / n).sum()) / spread if known else 0.0

    def to_json(self) -> dict[str, Any]:
        return {"sums": pack(self._sums.ravel()), "now": pack([self._mean, self._beta, self.rate])}

    def restore(self, data: Mapping[str, Any]) -> None:
        self._sums = unpack(data["sums"]).reshape(2, 5)
        self._mean, self._beta, self.rate = unpack(data["now"]).tolist()
