"""Sample ratio: do the arms receive the shares of units that they were promised? Used by the controller on exposures,
before any metric.

Source: Lindon & Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022. A rejection is
an assignment fault and ends the rollout in `error`, never in a verdict on the candidate.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from services.evidence.errors import PlanFault, ValueFault
from services.evidence.state import VERSION, restoring

CONCENTRATION = 100.0
"""k of the Dirichlet prior k·θ₀: expects deviations of a few percent of a share, which is what broken assignment looks
like."""


def log_multinomial_bayes_factor(counts: Sequence[int], expected: Sequence[float], k: float) -> float:
    """Log Bayes factor of Dirichlet(k·expected) shares against exactly the expected ones."""
    total = math.lgamma(k) - math.lgamma(k + sum(counts))
    for count, share in zip(counts, expected, strict=True):
        total += math.lgamma(k * share + count) - math.lgamma(k * share) - count * math.log(share)
    return total


class SampleRatio:
    """Sequential test of the arms' shares. `expected` is normalised to sum to 1; `rejected` stays once it is True."""

    def __init__(self, expected: Mapping[str, float], alpha: float = 0.001, k: float = CONCENTRATION) -> None:
        if len(expected) < 2 or any(not 0 < share < math.inf for share in expected.values()):
            raise PlanFault(f"sample ratio: at least two arms with positive shares, not {dict(expected)}")
        if not 0 < alpha < 1 or not 0 < k < math.inf:
            raise PlanFault(f"sample ratio: alpha {alpha} must lie in (0, 1) and k {k} be positive")
        whole = sum(expected.values())
        self._expected = {arm: share / whole for arm, share in expected.items()}
        self._alpha, self._k = alpha, k
        self.counts = dict.fromkeys(self._expected, 0)
        self.rejected = False

    @property
    def log_e(self) -> float:
        return log_multinomial_bayes_factor(list(self.counts.values()), list(self._expected.values()), self._k)

    @property
    def e_value(self) -> float:
        """The Bayes factor, kept finite for JSON."""
        return math.exp(min(self.log_e, 700.0))

    @property
    def threshold(self) -> float:
        return 1 / self._alpha

    def update(self, counts: Mapping[str, int]) -> None:
        """Adds new exposures per arm (increments, not totals). Raises ValueFault for an unknown arm or a negative
        count."""
        if unknown := set(counts) - set(self.counts):
            raise ValueFault(f"sample ratio: unknown arms {sorted(unknown)}")
        if any(count < 0 for count in counts.values()):
            raise ValueFault(f"sample ratio: negative increments {dict(counts)}")
        for arm, count in counts.items():
            self.counts[arm] += count
        self.rejected = self.rejected or self.log_e >= -math.log(self._alpha)

    def merge(self, other: "SampleRatio") -> None:
        """Adds the exposures of other units of the same rollout, counted by another store. The Bayes factor depends on the totals alone; a
        rejection by either stays. Raises PlanFault where the two test different shares."""
        if (other._expected, other._alpha, other._k) != (self._expected, self._alpha, self._k):
            raise PlanFault("sample ratio: only counts of one test can be merged")
        self.update(other.counts)
        self.rejected = self.rejected or other.rejected

    def to_json(self) -> dict[str, Any]:
        plan = {"expected": self._expected, "alpha": self._alpha, "k": self._k}
        return {"version": VERSION, **plan, "counts": self.counts, "rejected": self.rejected}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SampleRatio":
        with restoring(data, "sample ratio"):
            ratio = cls(data["expected"], data["alpha"], data["k"])
            ratio._expected = dict(data["expected"])  # as saved: normalising twice could move the last bit
            ratio.counts, ratio.rejected = dict(data["counts"]), data["rejected"]
        return ratio
