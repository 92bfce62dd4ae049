"""Goals: an improvement shown alone and among several; and how a rollout's error budget is divided."""

from dataclasses import replace

import numpy as np
import pytest

from services.evidence import (
    Guardrail,
    GuardrailPlan,
    PlanFault,
    Reading,
    UnitValue,
    combine,
    combine_goals,
    error_budget,
)
from services.evidence.summaries import Arm

GOAL = GuardrailPlan(
    metric="thumbs", kind="rate", direction="higher", margin=0.0, relative=False, mode="goal", steps=1,
    alpha_harm=0.05, alpha_promote=0.05,
)  # fmt: skip
GOALS = {
    "rate": GOAL,
    "mean": replace(GOAL, metric="speed", kind="mean", relative=True),
    "ratio": replace(GOAL, metric="speed", kind="ratio", relative=True),
    "quantile": replace(GOAL, metric="ttft", kind="quantile", relative=True, quantile=0.5, direction="lower"),
}


def _reading(plan: GuardrailPlan, gain: float, seed: int = 0, units: int = 1600, steps: int = 1) -> Reading:
    """`gain`: how much better the candidate is, in the plan's terms."""
    rng = np.random.default_rng(seed)
    guardrail, gain = Guardrail(replace(plan, steps=steps)), -plan.sign * gain
    noise = rng.random(units) if plan.kind == "rate" else np.exp(0.3 * rng.standard_normal(units))
    values = [
        float(x < 0.4 + gain * (i % 2)) if plan.kind == "rate" else float(x * (1 + gain * (i % 2)))
        for i, x in enumerate(noise)
    ]
    arms: tuple[Arm, Arm] = ("control", "candidate")
    guardrail.update(UnitValue(f"{i:05d}", arms[i % 2], i, i + 60, 0, x) for i, x in enumerate(values))
    return guardrail.reading()


@pytest.mark.parametrize("kind", GOALS)
def test_an_improvement_is_shown_and_no_harm_is_sought(kind: str) -> None:
    better, worse = _reading(GOALS[kind], 0.25), _reading(GOALS[kind], -0.25)
    assert better.improved
    assert not better.non_inferior
    assert (worse.improved, worse.harmful, worse.e_harm) == (False, False, None)
    assert better.trustworthy


@pytest.mark.parametrize("kind", GOALS)
def test_a_least_improvement_can_be_asked_for(kind: str) -> None:
    asked = replace(GOALS[kind], margin=0.2)
    assert not _reading(asked, 0.15).improved
    assert _reading(asked, 0.45, units=2400).improved


def test_only_the_last_step_counts() -> None:
    reading = _reading(GOAL, 0.25, steps=2)
    assert not reading.improved
    assert not combine_goals([reading], 0.05).reached


@pytest.mark.parametrize("kind", GOALS)
def test_nothing_improved_is_rarely_an_improvement(kind: str) -> None:
    assert sum(_reading(GOALS[kind], 0.0, seed, units=400).improved for seed in range(40)) <= 4


def test_several_goals() -> None:
    plain = _reading(GOAL, 0.0)
    goals = [replace(plain, metric=name, e_promote=e) for name, e in (("a", 90.0), ("b", 45.0), ("c", 0.5))]
    assert combine_goals(goals, 0.05, "holm").improved == ("a", "b")  # 90 ≥ 60, 45 ≥ 40, .5 < 20
    assert combine_goals(goals, 0.02, "holm").improved == ()
    assert not combine_goals(goals, 0.02, "holm").reached
    average = combine_goals(goals, 0.05, "average")
    assert average.reached
    assert average.e_value == pytest.approx(135.5 / 3)
    # Three goals that each fall short: together they show that something improved, not which.
    together = combine_goals([replace(goal, e_promote=30.0) for goal in goals], 0.05)
    assert (together.reached, together.improved) == (True, ())
    assert not combine_goals([replace(goal, e_promote=30.0) for goal in goals], 0.05, "holm").reached
    assert not combine_goals([], 0.05).reached
    with pytest.raises(PlanFault):
        combine_goals(goals, 0.0)


def test_goals_are_no_guardrails() -> None:
    assert not combine([_reading(GOAL, 0.25)]).promotable


def test_budget() -> None:
    metrics = {"gate": ["accuracy"], "rehearsal": ["errors", "ttft"], "canary": ["errors", "ttft", "feedback"]}
    harm = replace(_reading(replace(GOAL, mode="harmOnly"), 0.0), metric="errors", e_harm=4.0, harm_threshold=20.0)
    budget = error_budget(0.05, metrics, {"rehearsal": [harm], "canary": [replace(harm, metric="ttft", harmful=True)]})
    levels = {(share.stage, share.metric): (share.level, share.spent) for share in budget.shares}
    assert budget.given == pytest.approx(0.05)
    assert levels["rehearsal", "errors"] == pytest.approx((0.01, 0.002))
    assert levels["canary", "ttft"] == pytest.approx((0.025 / 3, 0.025 / 3))
    assert levels["canary", "feedback"][1] is None
    without = error_budget(0.05, {**metrics, "rehearsal": []}, {}, segments=("mobile", "web"))
    assert without.left == pytest.approx(0.02)
    assert len(without.shares) == 8
    assert without.to_json()["shares"][0]["segment"] == "mobile"
