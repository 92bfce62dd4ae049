"""A guardrail's books: order, duplicates, bad input, saving; and that its reading depends on the units alone."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.evidence import (
    AssignmentFault,
    ClockFault,
    Direction,
    EvidenceError,
    Guardrail,
    GuardrailPlan,
    PlanFault,
    StateFault,
    UnitValue,
    ValueFault,
)
from services.evidence.summaries import Arm

RATE = GuardrailPlan(
    metric="errors", kind="rate", direction="lower", margin=0.05, relative=False, mode="nonInferior", steps=3,
    alpha_harm=0.05, alpha_promote=0.05, design_prior=0.3,
)  # fmt: skip
BOUNDED = replace(RATE, metric="rating", kind="boundedMean", direction="higher", design_prior=None, bounds=(1.0, 5.0))
MEAN = replace(RATE, metric="tokens", kind="mean", direction="higher", relative=True, design_prior=None)
RATIO = replace(MEAN, metric="speed", kind="ratio")
QUANTILE = replace(RATE, metric="ttft", kind="quantile", relative=True, quantile=0.5, design_prior=None)
PLANS = {plan.metric: plan for plan in (RATE, BOUNDED, MEAN, RATIO, QUANTILE)}
UNIT = UnitValue("u", "control", 0.0, 60.0, 0, 1.0)


def _value(plan: GuardrailPlan, x: float) -> float:
    if plan.kind == "rate":
        return float(x < 0.4)
    if plan.kind == "boundedMean":
        return 1 + 4 * x
    return math.inf if plan.kind == "quantile" and x > 0.95 else 100 * x


@st.composite
def streams(draw: st.DrawFn, plan: GuardrailPlan) -> list[UnitValue]:
    """Up to 150 units; ties in closing time, steps that rise, arms and values at random, a past for some."""
    row = st.tuples(st.booleans(), st.floats(0, 1), st.integers(0, 2), st.none() | st.floats(0, 1))
    units = draw(st.lists(row, min_size=1, max_size=150))
    clock, made = 0.0, []
    for i, (candidate, x, wait, before) in enumerate(units):
        clock += wait * 2
        past = None if before is None else 1 + 4 * before if plan.kind == "boundedMean" else before
        arm: Arm = "candidate" if candidate else "control"
        step = i * plan.steps // len(units)
        weight = float(wait) if plan.kind == "ratio" else 1.0
        made.append(UnitValue(f"u{i:04d}", arm, clock, clock + 60, step, _value(plan, x), past, weight))
    return made


@pytest.mark.parametrize("metric", PLANS)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_batches_and_restarts_do_not_matter(metric: str, data: st.DataObject) -> None:
    units = data.draw(streams(PLANS[metric]))
    whole = Guardrail(PLANS[metric])
    whole.update(units)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(units)), max_size=4)))
    pieces = Guardrail(PLANS[metric])
    for start, end in zip([0, *cuts], [*cuts, len(units)], strict=True):
        pieces.update(data.draw(st.permutations(units[start:end])))  # any order within a look
        pieces = Guardrail.from_json(json.loads(json.dumps(pieces.to_json(), allow_nan=False)))
    assert pieces.reading() == whole.reading()
    assert json.dumps(pieces.to_json()) == json.dumps(whole.to_json())


@pytest.mark.parametrize("metric", PLANS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_unit_seen_again_is_counted_and_changes_nothing(metric: str, data: st.DataObject) -> None:
    units = data.draw(streams(PLANS[metric]))
    again = data.draw(st.lists(st.sampled_from(units), min_size=1, max_size=5))
    guardrail = Guardrail(PLANS[metric])
    guardrail.update(units)
    before = guardrail.reading()
    guardrail.update(again)
    assert guardrail.reading() == replace(before, excluded={"duplicate": len(again)})


@pytest.mark.parametrize("metric", PLANS)
def test_a_unit_repeated_within_a_look_counts_once(metric: str) -> None:
    plan = PLANS[metric]
    units = [
        UnitValue(f"{i:03d}", "candidate" if i % 3 else "control", i, i + 60, 0, _value(plan, i % 7 / 7))
        for i in range(50)
    ]
    once, twice = Guardrail(plan), Guardrail(plan)
    once.update(units)
    twice.update([*units[::-1], *units[10:20]])
    assert twice.reading() == replace(once.reading(), excluded={"duplicate": 10})


def test_what_is_remembered_does_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit that closed long ago is refused by its order, and one that comes back under a new time is a new unit."""
    monkeypatch.setattr("services.evidence.state.MEMORY", 20)
    units = [replace(UNIT, unit=f"{i:03d}", closes_at=60.0 + i) for i in range(50)]
    back = [replace(UNIT, unit="003", closes_at=120.0), replace(UNIT, unit="045", closes_at=121.0)]
    whole, pieces = Guardrail(RATE), Guardrail(RATE)
    whole.update([*units, *back])
    for value in [*units, *back]:
        pieces.update([value])
    assert whole.to_json() == pieces.to_json()
    assert whole.reading().excluded == {"duplicate": 1}
    with pytest.raises(ClockFault):
        whole.update([units[7]])
    assert len(json.dumps(whole.to_json()["seen"])) < 500


@pytest.mark.parametrize("metric", PLANS)
def test_readings_are_strict_json_at_every_point(metric: str) -> None:
    guardrail = Guardrail(PLANS[metric])
    for i in range(40):
        json.dumps(guardrail.reading().to_json(), allow_nan=False)
        arm: Arm = "control" if i % 2 else "candidate"
        x = 1.0 if i < 30 else 0.2
        guardrail.update([UnitValue(f"{i:03d}", arm, i, i + 60, 0, _value(PLANS[metric], x))])


@pytest.mark.parametrize(
    ("plan", "change", "fault"),
    [
        (RATE, {"value": 0.5}, ValueFault),
        (RATE, {"value": math.nan}, ValueFault),
        (BOUNDED, {"value": 5.1}, ValueFault),
        (MEAN, {"value": math.inf}, ValueFault),
        (MEAN, {"value": -1.0}, ValueFault),
        (QUANTILE, {"value": math.nan}, ValueFault),
        (QUANTILE, {"value": -0.1}, ValueFault),
        (RATE, {"past": 1.1}, ValueFault),
        (RATE, {"past": math.nan}, ValueFault),
        (MEAN, {"past": math.inf}, ValueFault),
        (RATE, {"arm": "stable"}, ValueFault),
        (RATE, {"step": 3}, ValueFault),
        (RATE, {"closes_at": -1.0}, ClockFault),
        (RATE, {"exposed_at": math.nan}, ClockFault),
        (RATE, {"unit": "late", "closes_at": 59.0}, ClockFault),
        (RATE, {"unit": "seen", "arm": "candidate"}, AssignmentFault),
    ],
)
def test_bad_input_is_refused_and_leaves_no_trace(
    plan: GuardrailPlan, change: dict[str, Any], fault: type[EvidenceError]
) -> None:
    guardrail = Guardrail(plan)
    guardrail.update([replace(UNIT, unit="seen")])
    before = guardrail.to_json()
    good = replace(UNIT, unit="z", closes_at=70.0)
    with pytest.raises(fault):
        guardrail.update([good, replace(UNIT, **change)])
    assert guardrail.to_json() == before


def test_one_look_with_a_unit_in_both_arms_is_refused() -> None:
    guardrail = Guardrail(RATE)
    with pytest.raises(AssignmentFault):
        guardrail.update([UNIT, replace(UNIT, arm="candidate", closes_at=61.0)])
    assert guardrail.reading().n_control == 0


@pytest.mark.parametrize(
    ("plan", "change"),
    [
        (RATE, {"relative": True}),
        (MEAN, {"relative": False}),
        (RATE, {"margin": 1.0}),
        (MEAN, {"margin": 1.0}),
        (RATE, {"margin": math.nan}),
        (RATE, {"steps": 0}),
        (RATE, {"alpha_harm": 0.0}),
        (QUANTILE, {"quantile": None}),
        (RATE, {"quantile": 0.5}),
        (MEAN, {"design_prior": 0.1}),
        (BOUNDED, {"bounds": (1.0, 1.0)}),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(plan: GuardrailPlan, change: dict[str, Any]) -> None:
    with pytest.raises(PlanFault, match=plan.metric):
        replace(plan, **change)


def test_state_of_another_version_or_damaged_is_refused() -> None:
    state = Guardrail(RATE).to_json()
    for damaged in ({**state, "version": 1}, {}, {**state, "evidence": {}}, {**state, "seen": []}):
        with pytest.raises(StateFault):
            Guardrail.from_json(damaged)


@pytest.mark.parametrize("metric", PLANS)
def test_rehearsed_pairs(metric: str) -> None:
    plan = replace(PLANS[metric], steps=1)
    guardrail = Guardrail(plan)
    halves = [
        (replace(UNIT, unit=f"{i:03d}", closes_at=60.0 + i, value=_value(plan, i % 7 / 10)),) * 2 for i in range(60)
    ]
    pairs = [(control, replace(same, arm="candidate")) for control, same in halves]
    guardrail.update_pairs(pairs[:40])
    guardrail = Guardrail.from_json(json.loads(json.dumps(guardrail.to_json())))
    guardrail.update_pairs(pairs[30:])
    reading = guardrail.reading()
    assert (reading.n_control, reading.n_candidate, reading.pairs, reading.expired) == (60, 60, 60, 0)
    assert (reading.excluded, reading.effect, reading.harmful) == ({"duplicate": 10}, 0.0, False)
    with pytest.raises(ValueFault, match="no pair"):
        guardrail.update_pairs([pairs[0][::-1]])
    with pytest.raises(AssignmentFault):
        guardrail.update([pairs[0][0]])


@pytest.mark.parametrize("plan", [MEAN, RATIO])
def test_pairing_sharpens_a_mean(plan: GuardrailPlan) -> None:
    """The same prompts on both sides: what prompts differ in cancels, which two independent arms cannot use."""
    paired, apart = (Guardrail(replace(plan, steps=1, margin=0.2)) for _ in range(2))
    for i in range(100):
        base, weight = 100 + 60 * math.sin(i), 1.0 + (i % 4 if plan is RATIO else 0)
        control = UnitValue(f"{i:03d}", "control", i, i + 60, 0, base * weight, None, weight)
        candidate = UnitValue(f"{i:03d}", "candidate", i, i + 60, 0, (base * 0.95 + i % 3) * weight, None, weight)
        paired.update_pairs([(control, candidate)])
        apart.update([control, replace(candidate, unit=f"{i:03d}c")])
    assert paired.reading().non_inferior
    assert not apart.reading().non_inferior


def test_a_missing_first_token_counts_as_infinitely_late() -> None:
    guardrail = Guardrail(replace(QUANTILE, steps=1))
    for i in range(200):
        arm: Arm = "control" if i % 2 else "candidate"
        guardrail.update([UnitValue(f"{i:03d}", arm, i, i + 60, 0, 1.0 if i % 2 else math.inf)])
    reading = guardrail.reading()
    assert reading.harmful
    assert (reading.control, reading.candidate, reading.lower) == (1.0, None, None)


def test_higher_is_better_turns_the_sides() -> None:
    """Good answers falling from 60 % to 30 % harm; errors falling by as much do not."""
    readings = {}
    directions: tuple[Direction, ...] = ("higher", "lower")
    for direction in directions:
        guardrail = Guardrail(replace(RATE, direction=direction, steps=1))
        for i in range(600):
            arm: Arm = "control" if i % 2 else "candidate"
            good = i // 2 % 10 < (6 if i % 2 else 3)
            guardrail.update([UnitValue(f"{i:03d}", arm, i, i + 60, 0, float(good))])
        readings[direction] = guardrail.reading()
    worse, better = readings["higher"], readings["lower"]
    assert worse.harmful
    assert not worse.non_inferior
    assert worse.effect == better.effect == pytest.approx(-0.3)
    assert worse.upper is not None
    assert worse.upper <= -0.05
    assert better.non_inferior
    assert not better.harmful


def test_only_the_last_steps_units_can_promote() -> None:
    """Plenty of evidence in the steps before; the last step starts with none."""
    guardrail = Guardrail(replace(RATE, steps=2))

    def add(start: int, count: int, step: int) -> None:
        for i in range(start, start + count):
            arm: Arm = "control" if i % 2 else "candidate"
            guardrail.update([UnitValue(f"{i:05d}", arm, i, i + 60, step, float(i // 2 % 20 == 0))])

    add(0, 1200, 0)
    before = guardrail.reading()
    assert before.e_promote is not None
    assert before.e_promote > before.promote_threshold
    assert not before.non_inferior
    add(1200, 20, 1)
    assert not guardrail.reading().non_inferior
    add(1220, 1200, 1)
    assert guardrail.reading().non_inferior
