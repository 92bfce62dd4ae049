"""What several stores have seen, as one: units, moments, exposures."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.evidence import (
    AssignmentFault,
    Guardrail,
    GuardrailPlan,
    Moments,
    PlanFault,
    SampleRatio,
    UnitValue,
    ValueFault,
    merge_units,
)

PLAN = GuardrailPlan(
    metric="errors", kind="rate", direction="lower", margin=0.05, relative=False, mode="nonInferior", steps=1,
    alpha_harm=0.05, alpha_promote=0.05,
)  # fmt: skip
UNITS = [
    UnitValue(f"{i:03d}", "candidate" if i % 2 else "control", i // 3, i // 3 + 60, 0, float(i % 5 == 0))
    for i in range(60)
]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(homes=st.lists(st.sets(st.integers(0, 2), min_size=1), min_size=60, max_size=60))
def test_stores_that_share_units_give_the_evidence_of_one(homes: list[set[int]]) -> None:
    stores = [[unit for unit, home in zip(UNITS, homes, strict=True) if store in home] for store in range(3)]
    merged, one = Guardrail(PLAN), Guardrail(PLAN)
    merged.update(merge_units(*stores[::-1]))
    one.update(UNITS)
    assert merged.to_json() == one.to_json()


def test_stores_that_contradict_each_other() -> None:
    with pytest.raises(AssignmentFault):
        merge_units(UNITS, [replace(UNITS[0], arm="candidate")])
    with pytest.raises(ValueFault, match="twice"):
        merge_units(UNITS, [replace(UNITS[0], value=0.0)])


def test_moments_and_exposures_add_up() -> None:
    values = np.random.default_rng(0).lognormal(3, 1, 100)
    whole, parts = Moments(), [Moments(), Moments(), Moments()]
    for i, value in enumerate(values):
        whole.add(float(value))
        parts[min(i // 30, 1)].add(float(value))
    merged = parts[0].merged(parts[1]).merged(parts[2])
    assert merged.n == 100
    assert merged.mean == pytest.approx(whole.mean)
    assert merged.variance == pytest.approx(whole.variance)
    assert Moments().merged(Moments()) == Moments()
    first, second = (SampleRatio({"control": 0.5, "candidate": 0.5}) for _ in range(2))
    first.update({"control": 200})
    second.update({"candidate": 190})
    first.merge(second)
    assert first.counts == {"control": 200, "candidate": 190}
    assert first.rejected  # 200 to none was seen: a rejection stays
    with pytest.raises(PlanFault):
        first.merge(SampleRatio({"control": 0.6, "candidate": 0.4}))
