"""A user's own past as covariate: fewer users until a verdict, and no more false alarms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.evidence import Guardrail, GuardrailPlan, UnitValue, ValueFault
from services.evidence.bets import Bettor, by_design
from services.evidence.covariates import PairCovariate
from services.evidence.pairing import Pairs
from services.evidence.summaries import Arm

CORRELATION, REQUESTS = 0.3, 20


def _users(rng: np.random.Generator, n: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Each user's own rate (beta distributed: within-user correlation 0.3) and the mean of 20 past requests, unknown for a fifth."""
    a = rate * (1 / CORRELATION - 1)
    own = rng.beta(a, a * (1 - rate) / rate, n)
    past = rng.binomial(REQUESTS, own) / REQUESTS
    return own, np.where(rng.random(n) < 0.2, math.nan, past)


def _pairs_to_verdict(seed: int, effect: float, margin: float, limit: int, with_past: bool) -> float:
    """Pairs until non-inferiority is shown at one half of 5 % by either bettor's mixture; inf: not within `limit`."""
    rng, rate = np.random.default_rng(seed), 0.3
    (a, past_a), (b, past_b) = (_users(rng, limit, rate) for _ in range(2))
    control, candidate = (rng.random(limit) < a).astype(float), (rng.random(limit) < b).astype(float)
    candidate = np.maximum(candidate, rng.random(limit) < effect / (1 - rate))
    none = np.full(limit, math.nan)
    pairs = Pairs(
        np.zeros(limit, np.int64), control, candidate, past_a if with_past else none, past_b if with_past else none
    )
    grid = np.array([margin])
    bettors, covariate, start = [Bettor(grid, 0), Bettor(grid, 0, by_design(rate, grid))], PairCovariate(1.0, 0.5), 0
    while start < limit:
        end = min(limit, start + min(covariate.left, *(bettor.left for bettor in bettors)))
        differences, is_new = covariate.adjust(candidate[start:end] - control[start:end], pairs[start:end])
        paths = [bettor.path(differences) for bettor in bettors]
        crossed = np.logaddexp(*paths) - math.log(2) >= math.log(20)
        if crossed.any():
            return start + int(crossed.argmax()) + 1
        for bettor, path in zip(bettors, paths, strict=True):
            bettor.take(differences, path)
            if is_new:
                bettor.close(covariate.reach, covariate.sharper)
        start = end
    return math.inf


def test_a_known_past_saves_users() -> None:
    """The past of 20 requests explains a quarter of the variance of one more at a correlation of 0.3."""
    without, with_past = (
        np.median([_pairs_to_verdict(seed, 0.0, 0.05, 2500, known) for seed in range(24)]) for known in (False, True)
    )
    assert with_past < 0.88 * without


def test_at_the_margin_the_covariate_raises_no_false_alarms() -> None:
    shown = [_pairs_to_verdict(seed, 0.05, 0.05, 600, True) < math.inf for seed in range(40)]
    assert sum(shown) <= 6  # 2 expected at most


def _arms(i: int) -> Arm:
    return "candidate" if i % 2 else "control"


def test_a_mean_is_adjusted_for_the_past() -> None:
    plan = GuardrailPlan(
        metric="tokens", kind="mean", direction="higher", margin=0.1, relative=True, mode="nonInferior", steps=1,
        alpha_harm=0.05, alpha_promote=0.05,
    )  # fmt: skip
    rng = np.random.default_rng(4)
    own = 50 + 10 * rng.standard_normal(1000)
    now, past = (np.maximum(own + 5 * rng.standard_normal(1000), 0) for _ in range(2))
    widths = []
    for known in (False, True):
        guardrail = Guardrail(plan)
        guardrail.update(
            UnitValue(f"{i:04d}", _arms(i), i, i + 60, 0, float(now[i]), float(past[i]) if known and i % 10 else None)
            for i in range(1000)
        )
        reading = guardrail.reading()
        assert reading.lower is not None
        assert reading.upper is not None
        assert reading.lower < 0 < reading.upper
        widths.append(reading.upper - reading.lower)
        assert reading.known == (900 if known else 0)
        assert (reading.spared or 0) == pytest.approx(0.55 if known else 0, abs=0.15)  # 0.8² of nine tenths
    assert widths[1] < 0.75 * widths[0]


def test_a_past_that_says_nothing_does_little_harm() -> None:
    rng = np.random.default_rng(5)
    plan = GuardrailPlan(
        metric="errors", kind="rate", direction="lower", margin=0.05, relative=False, mode="nonInferior", steps=1,
        alpha_harm=0.05, alpha_promote=0.05,
    )  # fmt: skip
    values, noise = rng.random(4000) < 0.1, rng.random(4000)
    found = []
    for known in (False, True):
        guardrail = Guardrail(plan)
        guardrail.update(
            UnitValue(f"{i:04d}", _arms(i), i, i + 60, 0, float(values[i]), float(noise[i]) if known else None)
            for i in range(4000)
        )
        found.append(guardrail.reading().e_promote)
    assert found[0] is not None
    assert found[1] is not None
    assert math.log(found[1]) == pytest.approx(math.log(found[0]), rel=0.1)


def test_a_past_that_cannot_be_is_refused() -> None:
    plan = GuardrailPlan(
        metric="rating", kind="boundedMean", direction="higher", margin=0.5, relative=False, mode="harmOnly", steps=1,
        alpha_harm=0.05, alpha_promote=0.05, bounds=(1.0, 5.0),
    )  # fmt: skip
    with pytest.raises(ValueFault, match="past"):
        Guardrail(plan).update([UnitValue("u", "control", 0.0, 60.0, 0, 4.0, 0.5)])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_no_past_breaks_a_bet(data: st.DataObject) -> None:
    """Whatever values and pasts come, every margin's wealth stays a number: no bet is bolder than a difference can be large."""
    row = st.tuples(st.booleans(), st.booleans(), st.none() | st.sampled_from([0.0, 1.0]) | st.floats(0, 1))
    plan = GuardrailPlan(
        metric="errors", kind="rate", direction="lower", margin=0.05, relative=False, mode="nonInferior", steps=2,
        alpha_harm=0.05, alpha_promote=0.05, design_prior=0.01,
    )  # fmt: skip
    rows = data.draw(st.lists(row, min_size=40, max_size=120))
    guardrail = Guardrail(plan)
    guardrail.update(
        UnitValue(f"{i:04d}", "candidate" if candidate else "control", i, i + 60, int(i > 30), float(bad), past)
        for i, (candidate, bad, past) in enumerate(rows)
    )
    reading = guardrail.reading()
    assert reading.e_harm is not None
    assert reading.e_promote is not None
    assert reading.e_harm > 0
    assert reading.e_promote > 0
