"""Pairwise preference, by a judge or by people: is the candidate preferred more often than not?

Used on judgements of mirrored answers. One judgement a unit: 1 where the candidate is preferred, 0 where stable is, ½ for a tie. A judge is
asked in both orders; one that contradicts itself has seen no difference, which makes a tie and is counted. Bets against "the mean
preference is at most (at least) one half" are those of `bounded`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from services.evidence.bounded import BoundedMean
from services.evidence.errors import PlanFault, ValueFault
from services.evidence.state import VERSION, restoring

Answer = Literal["candidate", "stable", "tie"]
_WORTH = {"candidate": 1.0, "tie": 0.5, "stable": 0.0}


@dataclass(frozen=True, slots=True)
class Judged:
    """One unit's judgement: the answer with the candidate first, and with stable first; None where that order was not asked (people)."""

    first: Answer
    second: Answer | None = None

    @property
    def is_consistent(self) -> bool:
        return self.second is None or self.first == self.second

    @property
    def worth(self) -> float:
        """1: the candidate is preferred; ½: a tie, or the judge contradicts itself; 0: stable is preferred."""
        return _WORTH[self.first] if self.is_consistent else 0.5


@dataclass(frozen=True, slots=True)
class PreferenceReading:
    """What the judgements say now. `share`: the candidate's, a tie being half a preference; `lower`, `upper`: its bounds at all
    times, alpha each.

    `better`, `worse`: shown at alpha (each), now. `inconsistent`: judgements that turned with the order; `ties` are without them.
    """

    judged: int
    ties: int
    inconsistent: int
    share: float | None
    lower: float
    upper: float
    e_better: float
    e_worse: float
    threshold: float
    better: bool
    worse: bool


class Preference:
    """Sequential evidence on preferences. The order of the judgements must not depend on them; batches do not matter."""

    def __init__(self, alpha: float) -> None:
        if not 0 < alpha < 1:
            raise PlanFault(f"preference: alpha {alpha} must lie between 0 and 1")
        self._alpha = alpha
        self._worth = BoundedMean()
        self._counts = {"candidate": 0, "stable": 0, "tie": 0, "inconsistent": 0}

    def update(self, judgements: Iterable[Judged]) -> None:
        """Adds one judgement a unit. Raises ValueFault, and then nothing has been added."""
        fresh = list(judgements)
        for judged in fresh:
            if judged.first not in _WORTH or (judged.second is not None and judged.second not in _WORTH):
                raise ValueFault(f"preference: {judged!r} is no judgement")
        for judged in fresh:
            self._counts[judged.first if judged.is_consistent else "inconsistent"] += 1
        self._worth.update(judged.worth for judged in fresh)

    def reading(self) -> PreferenceReading:
        worth, threshold = self._worth, -math.log(self._alpha)
        lower, upper = worth.interval(2 * self._alpha)  # each end at alpha
        return PreferenceReading(
            judged=worth.n,
            ties=self._counts["tie"],
            inconsistent=self._counts["inconsistent"],
            share=worth.mean,
            lower=lower,
            upper=upper,
            e_better=math.exp(min(worth.log_above, 700.0)),
            e_worse=math.exp(min(worth.log_below, 700.0)),
            threshold=1 / self._alpha,
            better=worth.log_above >= threshold,
            worse=worth.log_below >= threshold,
        )

    def to_json(self) -> dict[str, Any]:
        return {"version": VERSION, "alpha": self._alpha, "counts": self._counts, "worth": self._worth.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Preference":
        with restoring(data, "preference"):
            preference = cls(data["alpha"])
            preference._counts = {name: data["counts"][name] for name in preference._counts}
            preference._worth = BoundedMean.from_json(data["worth"])
        return preference
