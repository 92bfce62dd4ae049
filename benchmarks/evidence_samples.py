"""How many users a verdict takes, without a rollout around it: non-inferiority at the two operating points, and a slower p95 of TTFT.
Called by `benchmarks.evidence`.

Every evidence is `services.evidence`'s own: whole guardrails; their bets pair by pair; for the design prior alone its constant bet.
Beside each figure stands what no test could beat: if a test is wrong with probability α at most, however often it looks, and always ends
when the truth is P, then its expected number of pairs is at least ln(1/α)/KL(P, nearest null) (Wald 1945; data processing inequality).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from benchmarks.evidence_traffic import Floats
from benchmarks.evidence_understudy import first_harmful
from services.evidence import Guardrail, GuardrailPlan, UnitValue, design_bets, harm_level, stage_levels
from services.evidence.bets import Bettor, adaptive, by_design
from services.evidence.summaries import Arm

ALPHA = 0.05
MARGIN_TTFT, SLOWER = 0.2, 0.5


@dataclass(frozen=True)
class Point:
    """An operating point of non-inferiority: both arms fail at `rate`. `fixed`: users an arm of the fixed-sample test at 80 % power."""

    rate: float
    margin: float
    fixed: int


POINTS = {"p=.01": Point(0.01, 0.01, 1_224), "p=.3": Point(0.3, 0.05, 1_039)}
MOST = 12_000
"""Users an arm after which a run is given up."""
CORRELATION, PAST = 0.3, 10
"""With the covariate: users' failure rates are Beta-distributed with this correlation, and each brings the mean of so many earlier
values."""


def fixed_sample(rate: float, margin: float, power: float = 0.8) -> int:
    """Users an arm that the classical one-sided test of non-inferiority needs when both arms have the rate."""
    z = float(norm.ppf(1 - ALPHA) + norm.ppf(power))
    return math.ceil(2 * rate * (1 - rate) * (z / margin) ** 2)


def design_alone(
    point: Point, guardrails: int, runs: int, rng: np.random.Generator, most: int, worse: float = 0.0
) -> list[float]:
    """Pairs until the design prior's constant bet alone has shown all guardrails at once, a look after every pair; inf: not within
    `most`. `worse`: by how much the candidate is truly worse."""
    bet = float(design_bets(point.rate, np.array([point.margin]))[0])
    found: list[float] = []
    for _ in range(0, runs, 50):
        shown = np.ones((50, most), bool)
        for _ in range(guardrails):
            control, candidate = (rng.random((50, most)) < point.rate + extra for extra in (0.0, worse))
            gains = np.log1p(bet * (point.margin - (candidate.astype(float) - control)))
            shown &= np.cumsum(gains, axis=1) >= -math.log(ALPHA)
        found += np.where(shown.any(axis=1), shown.argmax(axis=1) + 1.0, math.inf).tolist()
    return found[:runs]


def mixture(
    point: Point, guardrails: int, prior: bool, runs: int, rng: np.random.Generator, most: int, worse: float = 0.0
) -> list[float]:
    """The same for the product's evidence, the mean of the design prior's bet and the adaptive one; where there is no history, of the
    adaptive bet alone. `worse`: by how much the candidate is truly worse."""
    rules = [adaptive, by_design(point.rate, np.array([point.margin]))] if prior else [adaptive]
    found = []
    for _ in range(runs):
        shown = np.ones(most, bool)
        for _ in range(guardrails):
            control, candidate = (rng.random(most) < point.rate + extra for extra in (0.0, worse))
            difference = candidate.astype(float) - control
            logs = [bet_path(Bettor(np.array([point.margin]), 0, rule), difference) for rule in rules]
            shown &= np.logaddexp.reduce(logs, axis=0) - math.log(len(logs)) >= -math.log(ALPHA)
        found.append(float(shown.argmax() + 1) if shown.any() else math.inf)
    return found


def bet_path(bettor: Bettor, differences: Floats) -> Floats:
    """Log wealth after every pair."""
    parts: list[Floats] = []
    start = 0
    while start < len(differences):
        part = differences[start : start + bettor.left]
        parts.append(bettor.path(part))
        bettor.take(part, parts[-1])
        start += len(part)
    return np.concatenate(parts)


def rate_plan(point: Point) -> GuardrailPlan:
    """One guardrail of a rate in a last step, with its design prior."""
    return GuardrailPlan(
        "errors", "rate", "lower", point.margin, False, "nonInferior", 1, ALPHA / 2, ALPHA, design_prior=point.rate
    )


def growing(most: int, part: int) -> Iterator[tuple[int, int]]:
    """Looks at 4, 8, … pairs and then whenever the pairs have grown by one `part`-th: (from, to)."""
    start = 0
    while start < most:
        end = min(most, start + max(4, start // part))
        yield start, end
        start = end


def with_past(point: Point, known: bool, runs: int, rng: np.random.Generator, most: int) -> list[float]:
    """Pairs until one whole guardrail has shown non-inferiority when users differ, with and without their past; looks whenever the
    pairs have grown by 1/48."""
    found = []
    for _ in range(runs):
        rail = Guardrail(rate_plan(point))
        columns = _draw(point, known, rng, most)
        found.append(math.inf)
        for start, end in growing(most, 48):
            rail.update_pairs(_pairs(columns, start, end))
            if rail.reading().non_inferior:
                found[-1] = float(end)
                break
    return found


def _draw(point: Point, known: bool, rng: np.random.Generator, most: int) -> list[Floats]:
    """Control's and candidate's values, and the two's pasts where they are known."""
    scale = 1 / CORRELATION - 1
    habits = [rng.beta(point.rate * scale, (1 - point.rate) * scale, most) for _ in range(2)]
    values = [(rng.random(most) < habit).astype(float) for habit in habits]
    return values + ([rng.binomial(PAST, habit) / PAST for habit in habits] if known else [])


def _pairs(columns: Sequence[Floats], start: int, end: int) -> list[tuple[UnitValue, UnitValue]]:
    rows = zip(range(start, end), *(column[start:end].tolist() for column in columns), strict=True)
    return [(_unit(row, "control", 0), _unit(row, "candidate", 1)) for row in rows]


def _unit(row: Sequence[Any], arm: Any, index: int) -> UnitValue:
    number, value = row[0], row[1 + index]
    past = {"past": row[3 + index]} if len(row) > 3 else {}
    # A pair of two users stands in for a mirrored pair: what it is worth to the bets is the same.
    return UnitValue(f"u{number}", arm, float(number), float(number), 0, value, **past)


def bound_rate(point: Point, alpha: float = ALPHA) -> float:
    """Pairs that any test of non-inferiority needs on average when both arms have the rate."""
    return math.log(1 / alpha) / _nearest(
        lambda q: _kl(point.rate, q) + _kl(point.rate, q + point.margin), 1e-6, 1 - point.margin - 1e-6
    )


@dataclass(frozen=True)
class Level:
    """At which level, in how many steps and for how many metrics slowness is looked for."""

    name: str
    alpha: float
    steps: int


def levels() -> list[Level]:
    """One metric at 5 %; then as production splits the level: canary of four steps, and rehearsal, for one and six metrics."""
    stage = stage_levels(ALPHA)
    return [
        Level("one metric, α = .05", ALPHA, 1),
        Level("canary, one metric", harm_level(stage["canary"], 1), 4),
        Level("canary, six metrics", harm_level(stage["canary"], 6), 4),
        Level("rehearsal, one metric", harm_level(stage["rehearsal"], 1), 1),
        Level("rehearsal, six metrics", harm_level(stage["rehearsal"], 6), 1),
    ]


def slower(level: Level, sigma: float, runs: int, rng: np.random.Generator, most: int) -> list[float]:
    """Users an arm until +50 % in TTFT is found harmful at p95 with a margin of 20 %; inf: not within `most`."""
    plan = GuardrailPlan(
        "ttft", "quantile", "lower", MARGIN_TTFT, True, "nonInferior", level.steps, level.alpha, ALPHA, quantile=0.95
    )
    found = []
    for _ in range(runs):
        times = np.exp(sigma * rng.standard_normal((2, most)))
        times[1] *= 1 + SLOWER
        rail, start, end = Guardrail(plan), 0, 32
        while start < most:
            before, new = copy.deepcopy(rail), _users(times, start, end)
            rail.update(new)
            if rail.reading().harmful:
                break
            start, end = end, min(most, 2 * end)
        found.append(first_harmful(before, new, np.arange(start, end, dtype=float)) + 1 if start < most else math.inf)
    return found


def _users(times: Floats, start: int, end: int) -> list[UnitValue]:
    """One user an arm and moment."""
    arms: tuple[tuple[Arm, Floats], ...] = (("control", times[0]), ("candidate", times[1]))
    return [
        UnitValue(f"{arm}{i}", arm, float(i), float(i), 0, value)
        for arm, row in arms
        for i, value in zip(range(start, end), row[start:end].tolist(), strict=True)
    ]


def bound_slower(level: float, sigma: float) -> float:
    """Users an arm that any test needs on average which assumes nothing of the distributions but what it bounds: "the candidate's p95 is
    at most (1 + margin) times control's".

    The nearest null moves, for some x, so much of the candidate's mass below x, and of control's above x/(1 + margin), that both have
    their p95 there.
    """

    def distance(log_x: float) -> float:
        candidate = norm.cdf((log_x - math.log(1 + SLOWER)) / sigma)
        control = norm.cdf((log_x - math.log(1 + MARGIN_TTFT)) / sigma)
        return (_kl(candidate, 0.95) if candidate < 0.95 else 0.0) + (_kl(control, 0.95) if control > 0.95 else 0.0)

    return math.log(1 / level) / _nearest(distance, math.log(1 + MARGIN_TTFT) + sigma, math.log(1 + SLOWER) + 3 * sigma)


def _kl(p: float, q: float) -> float:
    return sum(x * math.log(x / y) for x, y in ((p, q), (1 - p, 1 - q)) if x > 0)


def _nearest(distance: Callable[[float], float], low: float, high: float) -> float:
    return float(minimize_scalar(distance, bounds=(low, high), method="bounded", options={"xatol": 1e-9}).fun)
