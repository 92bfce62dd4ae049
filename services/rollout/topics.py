"""What users ask about, then and now: prompts grouped by their embeddings, with names from their own words, and how groups, languages and
lengths have changed. Pure. Called by `prompt_drift` and the command line.

Groups are of both times together and blind to when a prompt came, so that of a group about which nobody asks more now, as many come from
each time as chance gives.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.rollout.embedding import Vector

Floats = NDArray[np.float64]
K = TypeVar("K", bound=Hashable)
Trend = Literal["new", "grows", "shrinks", "steady"]

NUMBERS: Final = (2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24)
"""Of topics, of which the best is chosen."""
LEAST: Final = 10
"""Users a topic on average, at least."""
WORDS: Final = 4
"""Words in a name."""
USERS: Final = 5
"""Different users who must have used a word before it is shown: what fewer have said may name one of them."""
LIFT: Final = 2
"""How much more often a word of a name is used in its topic than in all."""
CHOSEN: Final = 1_000
"""Prompts by which the number of topics is chosen; more would say the same."""
DIRECTIONS: Final = 32
FINE: Final = 0.95
"""Of the best silhouette. A topic told in two parts is seen; two topics told as one may hide what is new."""
RUNS: Final = 2
ROUNDS: Final = 30
LEVEL: Final = 0.05
"""That any of the differences told is none."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One user's prompt. `terms`: its different words; empty without the key."""

    vector: Vector
    language: str | None
    words: int
    terms: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Change:
    """Shares of users then and now; the difference now − then lies between `lower` and `upper`, all that are told together in 95 %."""

    then: float
    now: float
    lower: float
    upper: float

    @property
    def trend(self) -> Trend:
        """`new`: it has grown to ten times its share at least."""
        if self.lower > 0:
            return "new" if self.then <= self.now / 10 else "grows"
        return "shrinks" if self.upper < 0 else "steady"


@dataclass(frozen=True, slots=True)
class Topic:
    """`name`: the words that set it apart, most telling first; empty where none may be shown."""

    name: tuple[str, ...]
    change: Change


@dataclass(frozen=True, slots=True)
class Topics:
    """`users`: then and now. `words`: the 10th, 50th and 90th percentile of the prompts' lengths, then and now."""

    users: tuple[int, int]
    topics: tuple[Topic, ...]
    languages: dict[str | None, Change]
    words: tuple[tuple[int, ...], tuple[int, ...]]

    def share(self, trend: Trend) -> float:
        """Of users now in topics that do this."""
        return sum(one.change.now for one in self.topics if one.change.trend == trend)


def topics(then: Sequence[Asked], now: Sequence[Asked]) -> Topics | None:
    """A prompt a user each; None where there are too few. What changes comes first, then what is large now."""
    both = [*then, *now]
    if min(len(then), len(now)) < LEAST:
        return None
    vectors = np.asarray([one.vector for one in both], np.float64)
    labels = _grouped(_condensed(vectors)).tolist()
    changes = _changes(labels[: len(then)], labels[len(then) :])
    names = _names(both, labels)
    found = sorted(
        (Topic(names[label], change) for label, change in changes.items()),
        key=lambda one: (one.change.trend == "steady", -one.change.now),
    )
    quantiles = [
        tuple(int(q) for q in np.quantile([one.words for one in side], (0.1, 0.5, 0.9), method="lower"))
        for side in (then, now)
    ]
    languages = _changes([one.language for one in then], [one.language for one in now])
    return Topics((len(then), len(now)), tuple(found), languages, (quantiles[0], quantiles[1]))


def _changes(then: Sequence[K], now: Sequence[K]) -> dict[K, Change]:
    before, after = Counter(then), Counter(now)
    known = list(dict.fromkeys([*after, *before]))
    z = NormalDist().inv_cdf(1 - LEVEL / 2 / len(known))
    return {one: _change(before[one], len(then), after[one], len(now), z) for one in known}


def _change(x: int, n: int, y: int, m: int, z: float) -> Change:
    """Newcombe's interval of a difference of shares, from Wilson's of each (Statistics in Medicine 17, 1998, method 10)."""
    then, now = x / n, y / m
    (a, b), (c, d) = _wilson(then, n, z), _wilson(now, m, z)
    lower = now - then - math.hypot(now - c, b - then)
    upper = now - then + math.hypot(d - now, then - a)
    return Change(then, now, lower, upper)


def _wilson(share: float, n: int, z: float) -> tuple[float, float]:
    middle = share + z * z / (2 * n)
    width = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - width) / (1 + z * z / n), (middle + width) / (1 + z * z / n)


def _names(asked: Sequence[Asked], labels: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """Class-based TF-IDF: a word's share in the group times the logarithm of how much larger that is than its share in all. What every
    group uses, such as articles, weighs nothing, in any language.
    """
    everywhere = Counter(term for one in asked for term in one.terms)
    found = {}
    for label in set(labels):
        group = [one for one, its in zip(asked, labels, strict=True) if its == label]
        here = Counter(term for one in group for term in one.terms)

        def weight(term: str, here: Counter[str] = here, size: int = len(group)) -> float:
            share = here[term] / size
            return share * math.log(share / (everywhere[term] / len(asked)))

        telling = [
            term
            for term, users in here.items()
            if users >= USERS and users / len(group) >= LIFT * everywhere[term] / len(asked)
        ]
        found[label] = tuple(sorted(telling, key=lambda term: (-weight(term), term))[:WORDS])
    return found


def _condensed(vectors: Floats) -> Floats:
    """Of length 1 again, in the directions in which they differ most (Halko, Martinsson & Tropp, SIAM Review 53, 2011)."""
    vectors = vectors - vectors.mean(axis=0)  # many models put all texts in one corner
    if vectors.shape[1] > DIRECTIONS:
        guess = np.random.default_rng(0).standard_normal((vectors.shape[1], DIRECTIONS))
        for _ in range(2):
            guess, _ = np.linalg.qr(vectors.T @ (vectors @ guess))
        vectors = vectors @ guess
    condensed: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return condensed


def _grouped(vectors: Floats) -> NDArray[np.intp]:
    """Spherical k-means (Dhillon & Modha, Machine Learning 42, 2001), with the most groups whose silhouette is nearly the best."""
    rng = np.random.default_rng(0)
    some = vectors if len(vectors) <= CHOSEN else vectors[rng.choice(len(vectors), CHOSEN, replace=False)]
    numbers = [number for number in NUMBERS if number * LEAST <= len(some)]
    tried = [_centres(some, number, rng) for number in numbers]
    good = [_silhouette(some, one) for one in tried]
    centres = next(one for one, its in zip(reversed(tried), reversed(good), strict=True) if its >= FINE * max(good))
    found: NDArray[np.intp] = (vectors @ _settled(vectors, centres).T).argmax(axis=1)
    return found


def _centres(vectors: Floats, number: int, rng: np.random.Generator) -> Floats:
    runs = [_settled(vectors, _seeds(vectors, number, rng)) for _ in range(RUNS)]
    return max(runs, key=lambda centres: float((vectors @ centres.T).max(axis=1).sum()))


def _seeds(vectors: Floats, number: int, rng: np.random.Generator) -> Floats:
    """k-means++: the next is drawn with the distance from those that are there."""
    seeds = [vectors[rng.integers(len(vectors))]]
    far = np.full(len(vectors), 2.0)
    while len(seeds) < number:
        far = np.minimum(far, np.maximum(1 - vectors @ seeds[-1], 0))
        seeds.append(vectors[rng.choice(len(vectors), p=far / far.sum() if far.sum() > 0 else None)])
    return np.array(seeds)


def _settled(vectors: Floats, centres: Floats) -> Floats:
    labels = np.full(len(vectors), -1)
    for _ in range(ROUNDS):
        newer = (vectors @ centres.T).argmax(axis=1)
        if (newer == labels).all():
            break
        labels = newer
        sums = (labels == np.arange(len(centres))[:, np.newaxis]).astype(float) @ vectors
        sizes = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(sizes > 0, sums / np.maximum(sizes, 1e-12), centres)
    return centres


def _silhouette(vectors: Floats, centres: Floats) -> float:
    """How much nearer each is to its centre than to the next one, on average (Vendramin et al., Statistical Analysis 3, 2010)."""
    distances = np.sort(1 - vectors @ centres.T, axis=1)
    return float((1 - distances[:, 0] / np.maximum(distances[:, 1], 1e-12)).mean())
