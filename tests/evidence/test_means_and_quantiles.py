"""Error rates and power of the confidence sequences, by seeded simulation at moderate spread (lognormal, σ = 0.4)."""

import math
from typing import Literal

import numpy as np
import pytest

from services.evidence import (
    Guardrail,
    GuardrailPlan,
    Moments,
    UnitValue,
    ValueFault,
    asymptotic_halfwidth,
    quantile_ab_pvalue,
    quantile_ranks,
    relative_interval,
)
from services.evidence.means import _Products, _Sums, log_asymptotic_e
from services.evidence.quantiles import Bins, Sample, log_ratio_evidence
from services.evidence.summaries import Arm

Tested = Literal["mean", "ratio", "quantile"]


def _plan(kind: Tested, steps: int = 1) -> GuardrailPlan:
    return GuardrailPlan(
        metric="m", kind=kind, direction="lower", margin=0.2, relative=True, mode="nonInferior", steps=steps,
        alpha_harm=0.05, alpha_promote=0.05, quantile=0.5 if kind == "quantile" else None,
    )  # fmt: skip


def _verdicts(plan: GuardrailPlan, ratio: float, units: int, runs: int) -> tuple[int, int]:
    """In how many runs the candidate, `ratio` times as slow, was ever seen as harmful and ever as non-inferior."""
    harmful = passed = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        values = np.exp(0.4 * rng.standard_normal(units))
        guardrail, ever = Guardrail(plan), False
        arms: tuple[Arm, Arm] = ("control", "candidate")
        weights = (
            rng.geometric(0.3, units).astype(float) if plan.kind == "ratio" else np.ones(units)
        )  # requests of a user
        made = [
            UnitValue(
                f"{i:05d}", arms[i % 2], i, i + 60, i * plan.steps // units, value * (1, ratio)[i % 2], None, weight
            )
            for i, (value, weight) in enumerate(zip((values * weights).tolist(), weights.tolist(), strict=True))
        ]
        for start in range(0, units, 20):
            guardrail.update(made[start : start + 20])
            ever = ever or guardrail.reading().non_inferior
        harmful += guardrail.reading().harmful
        passed += ever
    return harmful, passed


@pytest.mark.parametrize(("kind", "steps"), [("mean", 1), ("mean", 3), ("ratio", 1), ("ratio", 3), ("quantile", 1)])
def test_at_the_margin_neither_verdict_is_common(kind: Tested, steps: int) -> None:
    harmful, passed = _verdicts(_plan(kind, steps), ratio=1.2, units=400, runs=50)
    assert max(harmful, passed) <= 6  # 2.5 expected at 5 %; more than 6 has probability 1 %


@pytest.mark.parametrize("kind", ["mean", "ratio", "quantile"])
def test_plain_cases_are_decided(kind: Tested) -> None:
    assert _verdicts(_plan(kind), ratio=1.6, units=600, runs=10) == (10, 0)
    assert _verdicts(_plan(kind), ratio=0.9, units=800, runs=10) == (0, 10)


def _sums(values: np.ndarray, weights: np.ndarray) -> _Sums:
    sums = _Sums(2)
    sums.add([values, weights])
    return sums


def test_a_ratio_of_sums_varies_as_repeated_draws_of_its_users_do() -> None:
    """The delta method against the spread of 2,000 draws; both arms of a pair have one user's number of requests."""
    rng = np.random.default_rng(5)
    runs, users = 2000, 300
    requests = rng.geometric(0.3, (runs, users)).astype(float)
    shared = np.exp(0.3 * rng.standard_normal((runs, users)))
    over = [requests * shared * np.exp(0.2 * rng.standard_normal((runs, users))) for _ in range(2)]
    ratios = [values.sum(axis=1) / requests.sum(axis=1) for values in over]
    variances, covariances = np.zeros((200, 2)), np.zeros(200)
    for run in range(200):
        arms = [_sums(values[run], requests[run]) for values in over]
        assert [arm.moments.mean for arm in arms] == pytest.approx([found[run] for found in ratios])
        variances[run] = [arm.moments.variance / users for arm in arms]
        products = _Products(2)
        products.add([over[0][run], requests[run]], [over[1][run], requests[run]])
        covariances[run] = products.covariance(arms[0].slopes, arms[1].slopes)
    assert variances.mean(axis=0) == pytest.approx(np.var(ratios, axis=1), rel=0.1)
    assert covariances.mean() == pytest.approx(np.cov(*ratios)[0, 1], rel=0.1)


def test_a_mean_is_a_ratio_by_ones() -> None:
    values = np.exp(np.random.default_rng(2).standard_normal(200))
    found, plain = _sums(values, np.ones(200)).moments, Moments()
    for value in values.tolist():
        plain.add(value)
    assert (found.n, found.mean, found.variance) == pytest.approx((200, plain.mean, plain.variance))


def test_nothing_by_nothing_is_no_ratio() -> None:
    guardrail = Guardrail(_plan("ratio"))
    guardrail.update(UnitValue(f"{i:03d}", "control", i, i, 0, 0.0, None, 0.0) for i in range(100))
    reading = guardrail.reading()
    assert (reading.n_control, reading.control, reading.lower, reading.upper) == (100, None, None, None)
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueFault, match="weight"):
            guardrail.update([UnitValue("x", "control", 200, 200, 0, 1.0, None, weight)])


def test_quantile_coverage_at_all_times_at_once() -> None:
    """The count of values below the true quantile is binomial: it must stay within the ranks at every n, in 95 % of runs."""
    rng = np.random.default_rng(3)
    for quantile in (0.5, 0.95):
        ranks = np.array([quantile_ranks(n, quantile, 0.05) for n in range(1, 601)])
        below = (rng.random((4000, 600)) < quantile).cumsum(axis=1)
        missed = ((below < ranks[:, 0]) | (below >= ranks[:, 1])).any(axis=1)
        assert missed.mean() <= 0.05


def _samples(control: np.ndarray, candidate: np.ndarray, quantile: float) -> tuple[Sample, Sample]:
    bins = Bins(1.0)
    counts = [np.bincount(bins.places(x), minlength=bins.count) for x in (control, candidate)]
    return Sample(counts[0], quantile, 0.05), Sample(counts[1], quantile, 0.05)


def test_the_product_of_the_arms_agrees_with_the_unbinned_test() -> None:
    """Binning may only take evidence away, and little of it."""
    rng = np.random.default_rng(1)
    control, candidate = (shift * np.exp(0.4 * rng.standard_normal(400)) for shift in (1.0, 1.3))
    binned = log_ratio_evidence(*_samples(control, candidate, 0.5), shift=0)
    exact = -math.log(quantile_ab_pvalue(control.tolist(), candidate.tolist(), 0.5, 0.05, tuned_for=120))
    assert 0.9 * exact < binned <= exact + 1e-9
    assert log_ratio_evidence(*_samples(candidate, control, 0.5), shift=0) < 0


@pytest.mark.parametrize("quantile", [0.5, 0.95])
def test_evidence_on_a_ratio_is_rarely_wrong(quantile: float) -> None:
    """At the margin itself, looked at often: the product of both arms reaches 20 in at most 5 % of runs."""
    wrong = 0
    for seed in range(60):
        control, candidate = np.exp(0.4 * np.random.default_rng(seed).standard_normal((2, 600)))
        looks = [_samples(control[:n], candidate[:n], quantile) for n in range(40, 600, 80)]
        wrong += any(log_ratio_evidence(*samples, shift=0) >= math.log(20) for samples in looks)
    assert wrong <= 7  # 3 expected at most; more than 7 has probability 1 %


def test_an_infinite_quantile_is_at_least_any_multiple_of_another() -> None:
    """Both arms never answer: candidate = 0.8 · control holds between infinities, so nothing is shown either way."""
    endless = np.full(400, math.inf)
    for shift in (-100, 0, 100):
        assert log_ratio_evidence(*_samples(endless, endless, 0.5), shift) <= 0
    assert log_ratio_evidence(*_samples(np.ones(400), endless, 0.5), 100) > math.log(20)


def test_asymptotic_evidence_is_the_sequence_read_the_other_way() -> None:
    half = asymptotic_halfwidth(4.0, 500, 0.02, sides=1)
    assert log_asymptotic_e(1.0, 4.0, 500, 1.0 - half, 0.02) == pytest.approx(-math.log(0.02))
    assert log_asymptotic_e(1.0, 4.0, 500, 1.1, 0.02) == -math.inf


def test_extreme_quantiles_need_many_units() -> None:
    first = {q: next(n for n in range(1, 2000) if quantile_ranks(n, q, 0.025)[1] <= n) for q in (0.5, 0.95, 0.99)}
    assert first[0.5] < 20 < 80 < first[0.95] < 300 < first[0.99]


def test_no_interval_where_there_is_no_ground_for_one() -> None:
    def moments(values: list[float]) -> Moments:
        found = Moments()
        for value in values:
            found.add(value)
        return found

    spread, flat, nothing = moments([1.0, 2.0] * 15), moments([1.0] * 30), moments([0.0] * 30)
    assert relative_interval(spread, spread, 0.05) is not None
    assert relative_interval(spread, moments([1.0, 2.0] * 14), 0.05) is None  # burn-in
    assert relative_interval(flat, flat, 0.05) is None  # no spread to learn from
    assert relative_interval(nothing, spread, 0.05) is None  # nothing to be relative to


def test_a_reading_is_not_trustworthy_before_its_bounds_exist() -> None:
    guardrail = Guardrail(_plan("mean"))
    for i in range(60):
        assert not guardrail.reading().trustworthy
        arm: Arm = "candidate" if i % 2 else "control"
        guardrail.update([UnitValue(f"{i:03d}", arm, i, i + 60, 0, 1.0 + i % 5)])
    assert guardrail.reading().trustworthy
