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


def _excess(hours: dict[int, Hour], means: dict[int, float], alpha: float, margin: float) -> float:
    """By how much the worst run of hours, or four whole weeks, exceeds what the bounds promise."""
    bounds = history_bounds(hours, alpha, margin=margin)
    over = np.array([hours[hour].units * (means[hour] + margin - bounds.by_hour[hour]) for hour in hours])
    runs = [
        over.take(range(start, start + length), mode="wrap").sum()
        for start in range(len(over))
        for length in range(1, len(over))
    ]
    return max(max(runs) - bounds.slack, over.sum())


def test_hours_of_the_week_have_their_own_bounds() -> None:
    """Few users at night, three times the bad marks by day: the detector keeps quiet, and sees a rise that no hour shows by itself."""
    hours = {hour: Hour(6.0 if 8 <= hour % 24 < 20 else 0.5, 20 if 8 <= hour % 24 < 20 else 5) for hour in range(168)}
    upper, lower = history_bounds(hours, 0.05, margin=0.03), history_bounds(hours, 0.05, "downward", 0.03)
    assert upper.by_hour[4] < upper.by_hour[12]
    assert max(lower.by_hour.values()) < 0.3 < upper.by_hour[12]
    rng = np.random.default_rng(1)
    found = []
    for factor in (1.0, 1.7):
        detector = ShiftDetector(max(upper.by_hour.values()), 1000, slack=upper.slack)
        for hour in np.arange(4 * 168) % 168:
            users = hours[int(hour)].units
            values = rng.random(users) < factor * hours[int(hour)].total / users
            detector.update(values.astype(float).tolist(), [upper.by_hour[int(hour)]] * users)
        found.append(detector.alarmed)
    assert found == [False, True]
    with pytest.raises(ValueFault):
        history_bounds({0: Hour(5.0, 4)}, 0.05)
    with pytest.raises(PlanFault):
        history_bounds({}, 0.05)


def test_an_hour_without_history_has_the_widest_bound() -> None:
    bounds = history_bounds({0: Hour(2.0, 100), 1: Hour(40.0, 100)}, 0.05).by_hour
    assert bounds[100] == max(bounds.values())


@pytest.mark.parametrize("users", [5, 60])
def test_history_bounds_hold(users: int) -> None:
    """Two days at once, ratings in between as well as coins: wrong in at most 20 % of histories."""
    wrong = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        means = {hour: 0.1 + 0.3 * (hour % 24 >= 12) for hour in range(48)}
        hours = {hour: Hour(float(rng.beta(2 * m, 2 - 2 * m, users).sum()), users) for hour, m in means.items()}
        wrong += _excess(hours, means, 0.2, 0.02) > 1e-9
    assert wrong <= 6


def test_slack_is_paid_for() -> None:
    """Values that exceed their m₀ by the slack in sum gain no more than chance: run lengths hold; and a real change takes longer to see."""
    lengths: dict[float, list[int]] = {0.0: [], 10.0: []}
    for seed in range(30):
        rng = np.random.default_rng(seed)
        means = np.where(np.arange(3000) % 200 < 100, 0.3, 0.1)  # 10 more than m₀ within a hundred values, then 10 less
        values = (rng.random(3000) < means).astype(float)
        for slack, found in lengths.items():
            found.append(_run_length(ShiftDetector(0.2, 1000, slack=slack), values))
    assert np.mean(lengths[10.0]) >= 1000
    assert np.mean(lengths[0.0]) < np.mean(lengths[10.0])
    with pytest.raises(PlanFault):
        ShiftDetector(0.2, 1000, slack=-1.0)


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
