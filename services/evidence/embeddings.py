"""Have the prompts changed? A sequential classifier two-sample test on their embeddings.

Used for drift. A logistic classifier learns, from the pairs before, to tell a prompt of the past from one of today, and bets on the next
pair, which it has not seen: which of the two is today's? If both come from one distribution no classifier does better than a coin, so its
wealth is an e-process against "no drift", whatever the dimension and the distribution. Sources: Lopez-Paz & Oquab, "Revisiting classifier
two-sample tests", ICLR 2017; Podkopaev & Ramdas, "Sequential predictive two-sample and independence testing", NeurIPS 2023.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from services.evidence.bets import adaptive_bets
from services.evidence.errors import PlanFault, ValueFault
from services.evidence.state import VERSION, Floats, pack, restoring, unpack

BLOCK = 16
"""Pairs after which the classifier learns anew, at first; later whenever they have grown by an eighth."""
MEMORY = 512
"""Pairs that it learns from: the newest."""
RIDGE = 1.0
"""Penalty on the squared weights of standardised differences."""


class EmbeddingDrift:
    """E-process against "a prompt of today is distributed as one of the past". Pairs are (past, today), one prompt a unit, at random.

    `dimensions` of the embeddings; `alpha`: the probability of ever seeing a drift where there is none.
    """

    def __init__(self, dimensions: int, alpha: float) -> None:
        if dimensions < 1 or not 0 < alpha < 1:
            raise PlanFault(f"embeddings: {dimensions} dimensions, level {alpha} must lie between 0 and 1")
        self._alpha = alpha
        self._weights: Floats = np.zeros(dimensions)
        self._learned: Floats = np.empty((0, dimensions))  # differences today − past
        self._scores: Floats = np.zeros(3)  # pairs bet on, sum of scores, sum of squares
        self._next = BLOCK
        self.pairs, self.right = 0, 0
        self.log_e = 0.0
        self.drifted = False

    @property
    def accuracy(self) -> float | None:
        """Share of the pairs, unseen when it was asked, in which the classifier told the two apart; ½ where there is no drift."""
        return self.right / self._scores[0] if self._scores[0] else None

    @property
    def e_value(self) -> float:
        """Kept finite for JSON. The alarm is at 1/alpha."""
        return math.exp(min(self.log_e, 700.0))

    def update(self, past: ArrayLike, today: ArrayLike) -> bool:
        """Adds pairs, a row each, and returns whether there is a drift. Raises ValueFault, and then nothing has been added."""
        before, after = np.asarray(past, np.float64), np.asarray(today, np.float64)
        if before.shape != after.shape or before.ndim != 2 or before.shape[1] != len(self._weights):
            raise ValueFault(f"embeddings: shapes {before.shape} and {after.shape} for {len(self._weights)} dimensions")
        if not (np.isfinite(before).all() and np.isfinite(after).all()):
            raise ValueFault("embeddings: an embedding that is not finite")
        differences, start = after - before, 0
        while start < len(differences):
            piece = differences[start : start + self._next - self.pairs]
            self._bet(piece)
            self._learned = np.concatenate((self._learned, piece))[-MEMORY:]
            self.pairs += len(piece)
            start += len(piece)
            if self.pairs == self._next:
                self._weights = _logistic(self._learned)
                self._next += max(BLOCK, self.pairs // 8)
        return self.drifted

    def _bet(self, differences: Floats) -> None:
        """Wealth 1 + λs with the score s = tanh of half the log odds: its sign is the guess, its size the confidence. Under the null past
        and today may be swapped, which turns s round: its mean is 0."""
        if self.drifted or not self._weights.any():
            return
        for row in differences:  # one by one: the same bits whatever the batches
            score = math.tanh(float((row * self._weights).sum()) / 2)
            bet = float(adaptive_bets(np.array(0.0), self._scores[0], -self._scores[1], self._scores[2]))
            self.log_e += math.log1p(bet * score)
            self._scores += (1.0, score, score * score)
            self.right += score > 0
            if self.log_e >= -math.log(self._alpha):
                self.drifted = True
                return

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "dimensions": len(self._weights),
            "alpha": self._alpha,
            "weights": pack(self._weights),
            "learned": pack(self._learned.ravel()),
            "scores": pack(self._scores),
            "next": self._next,
            "pairs": self.pairs,
            "right": self.right,
            "logE": self.log_e,
            "drifted": self.drifted,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "EmbeddingDrift":
        with restoring(data, "embeddings"):
            drift = cls(data["dimensions"], data["alpha"])
            drift._weights, drift._scores = unpack(data["weights"]), unpack(data["scores"])
            drift._learned = unpack(data["learned"]).reshape(-1, data["dimensions"])
            drift._next, drift.pairs, drift.right = data["next"], data["pairs"], data["right"]
            drift.log_e, drift.drifted = data["logE"], data["drifted"]
        return drift


def _logistic(differences: Floats) -> Floats:
    """Weights w that maximise Σ log σ(w·d) − penalty, by Newton steps on differences of unit scale. Pairs need no intercept."""
    scale = np.sqrt((differences**2).mean(axis=0))
    scale[scale == 0] = math.inf  # a dimension that never varies says nothing
    scaled = differences / scale
    weights: Floats = np.zeros(differences.shape[1])
    for _ in range(5):
        chance = 1 / (1 + np.exp(np.clip(scaled @ weights, -30, 30)))  # of the wrong order
        slope = scaled.T @ chance - RIDGE * weights
        curvature = (scaled * (chance * (1 - chance))[:, np.newaxis]).T @ scaled + RIDGE * np.eye(len(weights))
        weights = weights + np.linalg.solve(curvature, slope)
    found: Floats = weights / scale
    return found
