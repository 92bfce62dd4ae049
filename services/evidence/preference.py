"""Pairwise preference, by a judge or by people: is the candidate preferred more often than not?

Used on judgements of mirrored answers. One judgement a unit: 1 where the candidate is preferred, 0 where stable is, ½ for a tie. A judge is
asked in both orders; one that contradicts itself has seen no difference, which makes a tie and is counted. Bets against "the mean
preference is at most (at least) one half" are those of `bets`, for any values in [0, 1].
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from services.evidence.bets import Bettor
from services.evidence.errors import PlanFault, ValueFault
from services.evidence.state import VERSION, Floats, restoring

Answer = Literal["candidate", "stable", "tie"]
_WORTH = {"candidate": 1.0, "tie": 0.5, "stable": 0.0}
_GRID: Floats = np.linspace(-0.975, 0.975, 79) ** 3  # densest around 0, where preferences lie
_MIDDLE = 39


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
    """What the judgements say now. `share`: the candidate's, a tie being half a preference; `lower`, `upper`: its bounds at all times.

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
        # In units of 2·worth − 1: against "the mean is at least m", and against "the mean is at most −m" for the opposite.
        self._less, self._more = Bettor(_GRID, _MIDDLE), Bettor(_GRID, _MIDDLE)
        self._counts = {"candidate": 0, "stable": 0, "tie": 0, "inconsistent": 0}

    def update(self, judgements: Iterable[Judged]) -> None:
        """Adds one judgement a unit. Raises ValueFault, and then nothing has been added."""
        fresh = list(judgements)
        for judged in fresh:
            if judged.first not in _WORTH or (judged.second is not None and judged.second not in _WORTH):
                raise ValueFault(f"preference: {judged!r} is no judgement")
        for judged in fresh:
            self._counts[judged.first if judged.is_consistent else "inconsistent"] += 1
        values = np.array([2 * judged.worth - 1 for judged in fresh])
        start = 0
        while start < len(values):
            piece = values[start : start + self._less.left]
            for bettor, sign in ((self._less, 1), (self._more, -1)):
                bettor.take(sign * piece, bettor.path(sign * piece))
            start += len(piece)

    def reading(self) -> PreferenceReading:
        counts, threshold = self._counts, -math.log(self._alpha)
        judged = sum(counts.values())
        less, more = (int(np.cumprod(b.log_wealth()[::-1] >= threshold).sum()) for b in (self._less, self._more))
        return PreferenceReading(
            judged=judged,
            ties=counts["tie"],
            inconsistent=counts["inconsistent"],
            share=(counts["candidate"] + (counts["tie"] + counts["inconsistent"]) / 2) / judged if judged else None,
            lower=(1 - float(_GRID[-more])) / 2 if more else 0.0,
            upper=(1 + float(_GRID[-less])) / 2 if less else 1.0,
            e_better=math.exp(min(self._more.own, 700.0)),
            e_worse=math.exp(min(self._less.own, 700.0)),
            threshold=1 / self._alpha,
            better=self._more.own >= threshold,
            worse=self._less.own >= threshold,
        )

    def to_json(self) -> dict[str, Any]:
        bettors = {"less": self._less.to_json(), "more": self._more.to_json()}
        return {"version": VERSION, "alpha": self._alpha, "counts": self._counts, **bettors}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Preference":
        with restoring(data, "preference"):
            preference = cls(data["alpha"])
            preference._counts = {name: data["counts"][name] for name in preference._counts}
            preference._less.restore(data["less"])
            preference._more.restore(data["more"])
        return preference
