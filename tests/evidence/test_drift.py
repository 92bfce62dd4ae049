"""Drift of what is stable: run lengths without a change, delays after one; and the two-sample test on embeddings."""

import json
import math

import numpy as np
import pytest

from services.evidence import (
    EmbeddingDrift,
    Hour,
    PlanFault,
    ShiftDetector,
    StateFault,
    ValueFault,
    fleet_arl,
    history_bounds,
    is_late,
)


def _run_length(detector: ShiftDetector, values: np.ndarray) -> int:
    detector.update(values.tolist())
    return detector.count


def test_a_fall_of_ratings_is_found_and_calm_is_left_alone() -> None:
    """Ratings 1 to 5, scaled to [0, 1]: mean 0.75, then 0.6. Lengths are cut at 4,000, which only shortens them."""
    calm, fallen = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        calm.append(_run_length(ShiftDetector(0.75, 500, "downward"), rng.choice([0, 0.5, 1], 4000, p=[0.1, 0.3, 0.6])))
        fallen.append(
            _run_length(ShiftDetector(0.75, 500, "downward"), rng.choice([0, 0.5, 1], 4000, p=[0.2, 0.4, 0.4]))
        )
    assert np.mean(calm) >= 500
    assert np.mean(fallen) < 150


def test_a_slower_first_token_is_found_by_its_quantile() -> None:
    """p95 of the history is 1 s, its upper bound 1.1 s: 5 % of users wait longer at most, later 20 %."""
    lengths = []
    for seed, slower in ((0, 1.0), (1, 1.0), (2, 1.5), (3, 1.5)):
        waits = np.exp(0.3 * np.random.default_rng(seed).standard_normal(1500)) * math.exp(-0.3 * 1.645) * slower
        lengths.append(_run_length(ShiftDetector(0.05, 1000), np.array([is_late(wait, 1.1) for wait in waits])))
    assert lengths[:2] == [1500, 1500]
    assert max(lengths[2:]) < 400
    assert is_late(math.inf, 1.0) == 1.0
    with pytest.raises(ValueFault):
        is_late(math.nan, 1.0)


def test_hours_of_the_week_have_their_own_bounds() -> None:
    hours = {hour: Hour(20.0 if hour % 24 < 12 else 60.0, 200) for hour in range(24)}
    upper, lower = history_bounds(hours, 0.05), history_bounds(hours, 0.05, "downward")
    assert lower[0] < 0.1 < upper[0] < 0.3 < upper[12]
    assert lower[12] < 0.3
    assert lower[100] < 0.2 < upper[100] < upper[12]  # no history of its own: all hours together
    detector = ShiftDetector(0.5, 1000)
    rng = np.random.default_rng(1)
    clock = np.arange(2400) // 100 % 24
    rates = np.where(clock % 24 < 12, 0.1, 0.3)
    assert not detector.update((rng.random(2400) < rates).astype(float).tolist(), [upper[int(hour)] for hour in clock])
    with pytest.raises(ValueFault):
        history_bounds({0: Hour(5.0, 4)}, 0.05)
    with pytest.raises(PlanFault):
        history_bounds({}, 0.05)


def test_history_bounds_hold() -> None:
    """24 hours at once, ratings in between as well as coins: wrong in at most 20 % of histories."""
    wrong = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        hours = {hour: Hour(float(rng.beta(1, 3, 60).sum()), 60) for hour in range(24)}
        wrong += any(bound < 0.25 for hour, bound in history_bounds(hours, 0.2).items() if hour in hours)
    assert wrong <= 6


def test_a_fleet_of_detectors() -> None:
    assert fleet_arl(5000, 5) == 1000
    first = []
    for seed in range(15):
        values = np.random.default_rng(seed).random((4, 2000)) < 0.2
        first.append(min(_run_length(ShiftDetector(0.2, 400), row.astype(float)) for row in values))
    assert np.mean(first) >= fleet_arl(400, 4)
    with pytest.raises(PlanFault):
        fleet_arl(5000, 0)


def test_a_detector_refuses_bad_limits_and_leaves_no_trace() -> None:
    detector = ShiftDetector(0.2, 100, "downward")
    for values, limits in (([0.5], [1.0]), ([0.5, 0.5], [0.2]), ([1.5], None)):
        with pytest.raises(ValueFault):
            detector.update(values, limits)
    assert detector.count == 0
    with pytest.raises(PlanFault):
        ShiftDetector(1.0, 100, "downward")
    again = ShiftDetector.from_json(json.loads(json.dumps(detector.to_json())))
    assert again.update([0.0] * 60) == detector.update([0.0] * 60) is True


def _prompts(rng: np.random.Generator, n: int, drift: float) -> np.ndarray:
    return rng.standard_normal((n, 16)) + drift * (np.arange(16) < 4)


def test_embeddings_that_drift_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    drift = EmbeddingDrift(16, 0.01)
    assert drift.update(_prompts(rng, 800, 0.0), _prompts(rng, 800, 0.4))
    assert drift.pairs <= 800
    assert drift.accuracy is not None
    assert drift.accuracy > 0.6


def test_embeddings_that_do_not_drift_rarely_alarm() -> None:
    alarms = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        alarms += EmbeddingDrift(16, 0.1).update(_prompts(rng, 300, 0.2), _prompts(rng, 300, 0.2))
    assert alarms <= 6  # 3 expected at most


def test_embeddings_batches_restarts_and_bad_input() -> None:
    rng = np.random.default_rng(2)
    past, today = _prompts(rng, 200, 0.0), _prompts(rng, 200, 0.3)
    whole, pieces = EmbeddingDrift(16, 0.01), EmbeddingDrift(16, 0.01)
    whole.update(past, today)
    for start, end in ((0, 7), (7, 90), (90, 91), (91, 200)):
        pieces.update(past[start:end], today[start:end])
        pieces = EmbeddingDrift.from_json(json.loads(json.dumps(pieces.to_json(), allow_nan=False)))
    assert pieces.to_json() == whole.to_json()
    for bad in (past[:, :3], np.full((200, 16), math.nan)):
        with pytest.raises(ValueFault):
            whole.update(past, bad)
    assert pieces.to_json() == whole.to_json()
    with pytest.raises(PlanFault):
        EmbeddingDrift(0, 0.01)
    with pytest.raises(StateFault):
        EmbeddingDrift.from_json({"version": 0})
