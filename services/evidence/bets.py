"""Bets on differences of pairs: e-processes against "the mean difference is at least m", for a grid of margins m at once.

Used by `rates`. Source: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS B 2024 (aGRAPA).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.evidence.batch import running
from services.evidence.state import Floats, pack, unpack

BOLDEST_ADAPTIVE = 0.5
"""Share of the largest admissible bet that the adaptive bettor may place: it loses at most half its wealth on a
pair."""
BOLDEST_DESIGN = 0.9
"""The same for the design-prior bettor, whose optimum is bold where failures are rare; short of 1, so that no pair
ruins it."""
PRIOR_SQUARE = 0.25
"""E[D²] of the one pseudo-pair (D = 0 in the mean) that the adaptive bettor starts from."""
BLOCK_SHARE = 16
"""A bet stands until the pairs have grown by this part: one pair at first, 6 % of them later."""
PLACES = 20
"""Places in which differences are counted, in a unit of difference."""
_CENTRES: Floats = np.arange(4 * PLACES + 1) / PLACES - 2
"""Where differences in [−2, 2] are counted; 0 and ±1 are among them."""


@dataclass(frozen=True, slots=True)
class Past:
    """What a bet may rest on.

    `reach`: differences lie in [−reach, reach]; `sharper`: the factor by which a covariate has made E[D²] smaller.
    """

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    reach: float = 1.0
    sharper: float = 1.0


Rule = Callable[[Floats, Past], Floats]
"""The bet for each margin, from the past alone."""


def adaptive_bets(margins: Floats, count: Any, total: Any, squares: Any, reach: float = 1.0) -> Floats:
    """λ = E[m − D]/E[(m − D)²] as estimated from the past pairs, in [0, ½/(reach − m)]: aGRAPA. The past may be arrays."""
    mean, square = total / (count + 1), (squares + PRIOR_SQUARE) / (count + 1)
    largest = BOLDEST_ADAPTIVE / (reach - margins)
    bets: Floats = np.clip((margins - mean) / (square - 2 * margins * mean + margins**2), 0.0, largest)
    return bets


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


def adaptive(margins: Floats, past: Past) -> Floats:
    """The rule that learns."""
    return adaptive_bets(margins, past.count, past.total, past.squares, past.reach)


def by_design(rate: float, margins: Floats) -> Rule:
    """The rule of a design prior: a constant bet, bolder where a covariate leaves less noise. Valid whatever the true rates are."""
    constant = design_bets(rate, margins)

    def rule(margins: Floats, past: Past) -> Floats:
        bets: Floats = np.minimum(constant * past.sharper, BOLDEST_DESIGN / (past.reach - margins))
        return bets

    return rule


class Bettor:
    """Wealth ∏(1 + λ_t(m − D_t)) for each margin m of a grid.

    A bet stands for a block of pairs, whose length depends on the number of pairs before it, so it rests on the past alone and knows no
    batches. At the plan's `own` margin wealth is exact after every pair. At the others differences between two counted places (0 and ±1 are
    such) are split between them: the logarithm being concave, that understates the wealth and costs no validity.
    """

    def __init__(self, margins: Floats, own: int, rule: Rule = adaptive) -> None:
        self._margins, self._at, self._rule = margins, own, rule
        self._past = Past()
        self._closed: Floats = np.zeros(len(margins))  # log wealth before the open block
        self._open: Floats = np.zeros(len(_CENTRES))  # differences of the open block
        self.own = 0.0
        self.left = 1
        self._bets = rule(margins, self._past)

    def path(self, differences: Floats) -> Floats:
        """Log wealth at the own margin after each of at most `left` pairs, were they taken."""
        gains = np.log1p(self._bets[self._at] * (self._margins[self._at] - differences))
        return running(self.own, gains)

    def take(self, differences: Floats, path: Floats) -> None:
        """Settles pairs, with their `path`."""
        place = (differences + 2) * PLACES
        lower = np.minimum(place.astype(np.int64), len(_CENTRES) - 2)
        upper_share = place - lower
        if upper_share.any():
            places, shares = (
                np.column_stack((lower, lower + 1)).ravel(),
                np.column_stack((1 - upper_share, upper_share)),
            )
            np.add.at(self._open, places, shares.ravel())
        else:
            np.add.at(self._open, lower, 1.0)
        self.own = float(path[-1])
        self.left -= len(differences)
        if self.left == 0:
            self.close(self._past.reach, self._past.sharper)

    def close(self, reach: float, sharper: float) -> None:
        """Ends the block; the next bet rests on all pairs so far."""
        self._closed, past = self.log_wealth(), self._past
        self._past = Past(
            past.count + float(self._open.sum()),
            past.total + float(self._open @ _CENTRES),
            past.squares + float(self._open @ _CENTRES**2),
            reach,
            sharper,
        )
        self._open = np.zeros(len(_CENTRES))
        self.left = max(1, round(self._past.count) // BLOCK_SHARE)
        self._bets = self._rule(self._margins, self._past)

    def log_wealth(self) -> Floats:
        """Of every margin, now."""
        held = np.flatnonzero(self._open)
        gains = np.log1p(self._bets[:, np.newaxis] * (self._margins[:, np.newaxis] - _CENTRES[held]))
        wealth: Floats = self._closed + gains @ self._open[held]
        wealth[self._at] = self.own
        return wealth

    def to_json(self) -> dict[str, Any]:
        past = self._past
        figures = [past.count, past.total, past.squares, past.reach, past.sharper, self.own]
        return {"past": pack(figures), "closed": pack(self._closed), "open": pack(self._open), "left": self.left}

    def restore(self, data: Mapping[str, Any]) -> None:
        *past, self.own = unpack(data["past"]).tolist()
        self._past = Past(*past)
        self._closed, self._open, self.left = unpack(data["closed"]), unpack(data["open"]), data["left"]
        self._bets = self._rule(self._margins, self._past)
