"""Error rates and power of the confidence sequences, by seeded simulation at moderate spread (lognormal, σ = 0.4)."""

from typing import Literal

import numpy as np
import pytest

from services.evidence import Guardrail, GuardrailPlan, Moments, UnitValue, quantile_ranks, relative_interval
from services.evidence.summaries import Arm


def _plan(kind: Literal["mean", "quantile"], steps: int = 1) -> GuardrailPlan:
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
        guardrail, ever, arms = Guardrail(plan), False, ("control", "candidate")
        made = [
            UnitValue(f"{i:05d}", arms[i % 2], i, i + 60, i * plan.steps // units, float(value * (1, ratio)[i % 2]))
            for i, value in enumerate(values)
        ]
        for start in range(0, units, 20):
            guardrail.update(made[start : start + 20])
            ever = ever or guardrail.reading().non_inferior
        harmful += guardrail.reading().harmful
        passed += ever
    return harmful, passed


@pytest.mark.parametrize(("kind", "steps"), [("mean", 1), ("mean", 3), ("quantile", 1)])
def test_at_the_margin_neither_verdict_is_common(kind: Literal["mean", "quantile"], steps: int) -> None:
    harmful, passed = _verdicts(_plan(kind, steps), ratio=1.2, units=400, runs=50)
    assert max(harmful, passed) <= 6  # 2.5 expected at 5 %; more than 6 has probability 1 %


@pytest.mark.parametrize("kind", ["mean", "quantile"])
def test_plain_cases_are_decided(kind: Literal["mean", "quantile"]) -> None:
    assert _verdicts(_plan(kind), ratio=1.6, units=600, runs=10) == (10, 0)
    assert _verdicts(_plan(kind), ratio=0.9, units=800, runs=10) == (0, 10)


def test_quantile_coverage_at_all_times_at_once() -> None:
    """The count of values below the true quantile is binomial: it must stay within the ranks at every n, in 95 % of runs."""
    rng = np.random.default_rng(3)
    for quantile in (0.5, 0.95):
        ranks = np.array([quantile_ranks(n, quantile, 0.05) for n in range(1, 601)])
        below = (rng.random((4000, 600)) < quantile).cumsum(axis=1)
        missed = ((below < ranks[:, 0]) | (below >= ranks[:, 1])).any(axis=1)
        assert missed.mean() <= 0.05


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
