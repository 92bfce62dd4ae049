"""Pairwise preference: ties, judgements that turn with the order, verdicts."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.evidence import BoundedMean, Judged, PlanFault, Preference, StateFault, ValueFault
from services.evidence.preference import Answer

ANSWERS: tuple[Answer, ...] = ("candidate", "stable", "tie")


def _judged(rng: np.random.Generator, n: int, chances: tuple[float, float, float]) -> list[Judged]:
    return [Judged(ANSWERS[i], ANSWERS[i]) for i in rng.choice(3, n, p=chances)]


def test_a_preference_is_found_and_equals_are_not() -> None:
    rng = np.random.default_rng(0)
    found = {}
    for name, chances in (("better", (0.5, 0.3, 0.2)), ("same", (0.3, 0.3, 0.4)), ("worse", (0.2, 0.4, 0.4))):
        preference = Preference(0.05)
        preference.update(_judged(rng, 600, chances))
        found[name] = preference.reading()
    assert (found["better"].better, found["better"].worse) == (True, False)
    assert (found["same"].better, found["same"].worse) == (False, False)
    assert (found["worse"].better, found["worse"].worse) == (False, True)
    assert found["better"].lower > 0.5
    assert found["same"].lower < 0.5 < found["same"].upper
    assert found["worse"].upper < 0.5


def test_equals_are_rarely_told_apart() -> None:
    wrong = 0
    for seed in range(60):
        preference = Preference(0.05)
        preference.update(_judged(np.random.default_rng(seed), 300, (0.35, 0.35, 0.3)))
        wrong += preference.reading().better
    assert wrong <= 7


def test_a_judgement_that_turns_with_the_order_is_a_tie_and_counted() -> None:
    preference = Preference(0.05)
    preference.update(
        [Judged("candidate", "stable"), Judged("tie", "candidate"), Judged("tie", "tie"), Judged("stable")]
    )
    reading = preference.reading()
    assert (reading.judged, reading.ties, reading.inconsistent) == (4, 1, 2)
    assert reading.share == pytest.approx(1.5 / 4)
    empty = Preference(0.05).reading()
    assert (empty.share, empty.lower, empty.upper) == (None, 0.0, 1.0)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_batches_and_restarts_do_not_matter(data: st.DataObject) -> None:
    judged = data.draw(st.lists(st.builds(Judged, st.sampled_from(ANSWERS), st.sampled_from(ANSWERS)), max_size=80))
    cut = data.draw(st.integers(0, len(judged)))
    whole, pieces = Preference(0.05), Preference(0.05)
    whole.update(judged)
    pieces.update(judged[:cut])
    pieces = Preference.from_json(json.loads(json.dumps(pieces.to_json(), allow_nan=False)))
    pieces.update(judged[cut:])
    assert pieces.to_json() == whole.to_json()
    assert pieces.reading() == whole.reading()


def test_what_is_no_judgement() -> None:
    preference = Preference(0.05)
    with pytest.raises(ValueFault):
        preference.update([Judged("tie"), Judged("A")])  # type: ignore[arg-type]
    assert preference.reading().judged == 0
    with pytest.raises(PlanFault):
        Preference(1.0)
    with pytest.raises(StateFault):
        Preference.from_json({})


def test_a_bounded_mean_has_bounds_that_hold() -> None:
    """Ratings 1 to 5, looked at often; and a restart in between changes nothing."""
    missed = 0
    for seed in range(30):
        ratings = np.random.default_rng(seed).choice([1.0, 3.0, 4.0, 5.0], 300, p=[0.1, 0.2, 0.3, 0.4])  # mean 3.9
        mean = BoundedMean((1.0, 5.0))
        for start in range(0, 300, 60):
            mean.update(ratings[start : start + 60].tolist())
            lower, upper = mean.interval(0.05)
            missed += not lower <= 3.9 <= upper
            mean = BoundedMean.from_json(json.loads(json.dumps(mean.to_json(), allow_nan=False)))
    assert missed <= 5
    assert upper - lower < 0.8
    whole = BoundedMean((1.0, 5.0))
    whole.update(ratings.tolist())
    assert (whole.interval(0.05), whole.mean) == ((lower, upper), mean.mean)
    with pytest.raises(ValueFault):
        whole.update([3.0, 5.5])
    assert whole.n == 300
    with pytest.raises(PlanFault):
        BoundedMean((5.0, 1.0))
