"""Closed forms of users needed and harm seen, against simulated users through `Guardrail` itself."""

from __future__ import annotations

import math
import random
from statistics import median, quantiles
from typing import Any

import numpy as np
import pytest

from services.evidence import Guardrail, GuardrailPlan, UnitValue, adaptive_bets, design_bets
from services.rollout.power import (
    Stable,
    chance_of_alarm,
    chance_of_showing,
    harm_seen,
    margin_in_reach,
    pair_share,
    users_needed,
)


def plan(**changes: Any) -> GuardrailPlan:
    fields: dict[str, Any] = {
        "metric": "errors", "kind": "rate", "direction": "lower", "margin": 0.05, "relative": False, "mode": "nonInferior",
        "steps": 1, "alpha_harm": 0.01, "alpha_promote": 0.05, "design_prior": 0.05,
    }  # fmt: skip
    return GuardrailPlan(**{**fields, **changes})


TTFT: dict[str, Any] = {"kind": "quantile", "quantile": 0.5, "relative": True, "margin": 0.2, "design_prior": None}
SPEED: dict[str, Any] = {"kind": "mean", "direction": "higher", "relative": True, "margin": 0.1, "design_prior": None}


def crossings(made: GuardrailPlan, rate: float, effect: float, harm: bool, runs: int = 400) -> list[int]:
    """Pairs until the bets that `Guardrail` places reach their threshold, many runs at once."""
    draw, margin = np.random.default_rng(3), -made.margin if harm else made.margin
    constant = None if harm or made.design_prior is None else design_bets(made.design_prior, np.array([margin]))[0]
    total, squares, learned, design = (np.zeros(runs) for _ in range(4))
    found = np.zeros(runs, dtype=int)
    level = math.log(1 / (made.alpha_harm if harm else made.alpha_promote))
    for pair in range(1, 4_000):
        badness = (draw.random(runs) < rate + effect).astype(float) - (draw.random(runs) < rate)
        difference = -badness if harm else badness
        learned += np.log1p(adaptive_bets(np.array([margin]), pair - 1, total, squares) * (margin - difference))
        total, squares, wealth = total + difference, squares + difference**2, learned
        if constant is not None:
            design += np.log1p(constant * (margin - difference))
            wealth = np.logaddexp(learned, design) - math.log(2)
        found = np.where((found == 0) & (wealth >= level), pair, found)
        if found.all():
            break
    return [int(pairs) or 4_000 for pairs in found]


def drawn(kind: str, draw: random.Random, effect: float) -> float:
    """A user's value, worse by `effect`."""
    if kind == "quantile":
        return draw.lognormvariate(0.0, 0.4) * (1 + effect)
    return draw.gauss(100.0, 30.0) * (1 - effect)


def pairs_until(made: GuardrailPlan, effect: float, harm: bool, seed: int, most: int = 20_000, look: int = 20) -> int:
    """Pairs (users an arm) until harm is shown, or "not worse"."""
    draw, guardrail = random.Random(seed), Guardrail(made)
    for start in range(0, most, look):
        pairs = []
        for n in range(start, start + look):
            at, values = float(n), [max(0.0, drawn(made.kind, draw, worse)) for worse in (0.0, effect)]
            control = UnitValue(str(n), "control", at, at, 0, values[0])
            pairs.append((control, UnitValue(str(n), "candidate", at, at, 0, values[1])))
        guardrail.update_pairs(pairs)
        reading = guardrail.reading()
        if reading.harmful if harm else reading.non_inferior:
            return start + look
    return most


@pytest.mark.parametrize(
    ("fields", "stable"),
    [({}, Stable(rate=0.05)), ({"design_prior": None}, Stable(rate=0.05)), (TTFT, Stable(spread=0.4)), (SPEED, Stable(spread=0.3))],
)  # fmt: skip
def test_users_until_not_worse_is_shown(fields: dict[str, Any], stable: Stable) -> None:
    made = plan(**fields)
    rate = made.kind == "rate"
    seen = crossings(made, 0.05, 0.0, False) if rate else [pairs_until(made, 0.0, False, seed) for seed in range(40)]
    assert users_needed(made, stable, 0.5) == pytest.approx(median(seen), rel=0.3)
    assert users_needed(made, stable) == pytest.approx(quantiles(seen, n=5)[3], rel=0.3)


@pytest.mark.parametrize(
    ("fields", "stable", "effect"),
    [({}, Stable(rate=0.05), 0.2), (TTFT, Stable(spread=0.4), 0.5), (SPEED, Stable(spread=0.3), 0.25)],
)
def test_users_until_harm_is_shown(fields: dict[str, Any], stable: Stable, effect: float) -> None:
    made = plan(**fields)
    rate = made.kind == "rate"
    seen = (
        crossings(made, 0.05, effect, True) if rate else [pairs_until(made, effect, True, seed) for seed in range(40)]
    )
    users = next(n for n in range(10, 20_000, 2) if chance_of_alarm(made, stable, n, effect) >= 0.5)
    assert users == pytest.approx(median(seen), rel=0.3)


def test_harm_and_margin_are_the_chances_turned_round() -> None:
    made, stable = plan(), Stable(rate=0.05)
    harm = harm_seen(made, stable, 500)
    assert harm is not None
    assert chance_of_alarm(made, stable, 500, harm) == pytest.approx(0.8, abs=0.03)
    margin = margin_in_reach(made, stable, 500)
    assert margin is not None
    assert chance_of_showing(plan(margin=margin), stable, 500) == pytest.approx(0.8, abs=0.03)
    assert harm < (harm_seen(made, stable, 100) or 0), "more users see less harm"


def test_what_no_number_of_users_shows() -> None:
    far = plan(**{**TTFT, "quantile": 0.95})
    assert harm_seen(far, Stable(spread=0.4), 60) is None, "a p95 has no bound yet"
    assert margin_in_reach(far, Stable(spread=0.4), 60) is None
    assert chance_of_alarm(plan(), Stable(rate=0.05), 1e6, 0.04) == 0, "within the margin is no harm"
    assert chance_of_showing(plan(), Stable(rate=0.05), 0) == 0


def test_partners_are_found_where_users_come_often_enough() -> None:
    shares = [pair_share(plan(), per_second) for per_second in (0.0, 0.00001, 0.0005, 3.0)]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[1] < 0.1
    assert 0.85 < shares[3] < 0.97
    assert pair_share(plan(**TTFT), 0.001) == 1, "quantiles need no partner"
