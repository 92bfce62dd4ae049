"""The building blocks against reference values of independent implementations (named in golden.json)."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.evidence import (
    BetaBinomialMixture,
    Moments,
    NormalMixture,
    TwoSampleBernoulli,
    bernoulli_interval,
    log_multinomial_bayes_factor,
    quantile_ab_pvalue,
    relative_change,
    relative_interval,
)
from services.evidence.mixtures import mixture_precision

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("golden.json").read_text())


def test_normal_mixture() -> None:
    want = GOLDEN["normal_mixture_two_sided"]
    mixture = NormalMixture.tuned(100, 0.05)
    assert mixture_precision(100, 0.05) == pytest.approx(want["rho"], rel=1e-6)
    assert mixture.log_martingale(10, 100) == pytest.approx(want["log_mixture(10,100)"], rel=1e-6)
    assert mixture.bound(100, 0.05) == pytest.approx(want["bound(100)"], rel=1e-6)


def test_beta_binomial_mixture() -> None:
    want = GOLDEN["beta_binomial_mixture_two_sided(.2,.8)"]
    mixture = BetaBinomialMixture.tuned(100, 0.05, 0.2, 0.8)
    assert mixture.log_martingale(10, 100) == pytest.approx(want["log_mixture(10,100)"], rel=1e-6)
    assert mixture.bound(100, 0.05) == pytest.approx(want["bound(100)"], rel=1e-5)


def test_bernoulli_interval() -> None:
    for case in GOLDEN["bernoulli_confidence_interval"]:
        lower, upper = bernoulli_interval(case["successes"], case["trials"], 0.05)
        assert [lower, upper] == pytest.approx([case["lower"], case["upper"]], abs=1e-6)


@pytest.mark.parametrize(("shift", "want"), GOLDEN["quantile_ab_pvalue"]["p50"].items())
def test_quantile_ab_pvalue(shift: str, want: float) -> None:
    first = [float(x) for x in range(1, 1001)]
    assert quantile_ab_pvalue(first, [x + int(shift) for x in first], 0.5) == pytest.approx(want, rel=1e-5)


def test_multinomial_sequential() -> None:
    want = GOLDEN["multinomial_sequential"]
    expected = (0.1, 0.4, 0.5)
    draws = np.random.RandomState(1).multinomial(1, (0.1, 0.3, 0.6), size=1000).argmax(axis=1)
    counts, largest = [0, 0, 0], 0.0
    for draw in draws:
        counts[draw] += 1
        largest = max(largest, log_multinomial_bayes_factor(counts, expected, 100))
        if largest >= math.log(20):
            break
    assert sum(counts) == want["stops_at"]
    assert math.exp(-largest) == pytest.approx(want["p"], rel=1e-5)


def test_asymptotic_relative_difference() -> None:
    want = GOLDEN["asymptotic_cs_relative_difference (delta method; the absolute difference is .23438)"]
    control = Moments.from_sums(1396.87, 52377.9767, 3000)
    candidate = Moments.from_sums(2422.7, 134698.29, 3461)
    assert relative_change(control, candidate)[0] == pytest.approx(want["effect_p"], abs=1e-5)
    assert relative_interval(control, candidate, 0.05) == pytest.approx(tuple(want["ci"]), abs=1e-5)


def test_two_sample_bernoulli() -> None:
    want = GOLDEN["two_sample_bernoulli_e"]
    test, logs = TwoSampleBernoulli(0.18), []
    for i in range(100):
        test.update(int(i % 5 == 4), i % 2)
        logs.append(test.log_e)
    assert math.exp(logs[49]) == pytest.approx(want["E(50)"], rel=1e-6)
    assert next(t for t, log_e in enumerate(logs, start=1) if log_e >= math.log(20)) == want["first_at_least_20"]
