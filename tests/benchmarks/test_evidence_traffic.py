"""The simulated traffic is what its description says: rates, correlation, daily wave, bursts, incidents, idle and cold candidates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.evidence_traffic import DAY, Requests, Stream, Traffic, propensity, request_rate
from benchmarks.evidence_understudy import unit_values


def _day(seed: int = 1, users: float = 40_000.0, **kind: Any) -> tuple[Stream, Requests]:
    stream = Stream(Traffic(users_per_day=users, **kind), np.random.default_rng(seed))
    return stream, stream.span(0.0, DAY, 0.5)


def _users(stream: Stream, requests: Requests, candidate: bool, weight: float = 0.5) -> dict[str, Any]:
    everyone = np.ones(requests.exposed_at.size, bool)
    to = np.full(requests.at.size, candidate)
    return unit_values(requests, stream.outcomes(requests, to, weight, 0.0), everyone, everyone).metrics


@pytest.mark.parametrize("correlation", [0.05, 0.3])
def test_effects_are_as_many_margins_as_told(correlation: float) -> None:
    stream, requests = _day(users=60_000.0, correlation=correlation, errors=2.0, feedback=1.0, ttft=2.5)
    stable, candidate = (_users(stream, requests, arm) for arm in (False, True))
    assert stable["errors"].mean() == pytest.approx(0.01, abs=0.002)
    assert candidate["errors"].mean() == pytest.approx(0.03, abs=0.003)
    assert stable["feedback"].mean() == pytest.approx(0.05, abs=0.004)
    assert candidate["feedback"].mean() == pytest.approx(0.10, abs=0.005)
    slower = np.quantile(candidate["ttft"], 0.9) / np.quantile(stable["ttft"], 0.9)
    assert slower == pytest.approx(1.5, abs=0.06)


def test_requests_of_a_user_resemble_each_other() -> None:
    a, b = propensity("errors", 0.0, 0.3)
    assert 1 / (a + b + 1) == pytest.approx(0.3), "the correlation of two draws under a Beta distribution"
    assert request_rate("errors", 0.0, 0.3) < 0.01, "a user has several requests in the horizon"


def test_requests_have_a_heavy_tail() -> None:
    _, requests = _day()
    counts = np.bincount(requests.user)
    assert counts.min() == 1
    assert counts.max() == 200
    assert np.median(counts) == 1
    assert 4 < counts.mean() < 6


def test_arrivals_come_in_waves_and_bursts() -> None:
    def spread(**kind: Any) -> tuple[float, float]:
        _, requests = _day(**kind)
        hours = np.histogram(requests.exposed_at, 24)[0]
        minutes = np.histogram(requests.exposed_at, 1440)[0]
        return hours.max() / hours.min(), minutes.var() / minutes.mean()

    steady, waves = spread(diurnal=False, bursts=False), spread()
    assert steady[0] < 1.2
    assert steady[1] == pytest.approx(1.0, abs=0.2), "Poisson"
    assert waves[0] > 4
    assert waves[1] > 3


def test_an_incident_strikes_both_arms_alike_and_passes() -> None:
    stream, requests = _day(incident=10.0, incident_minutes=60.0)
    for candidate in (False, True):
        seen = stream.outcomes(requests, np.full(requests.at.size, candidate), 0.5, 0.0)
        during = (requests.at >= 36_000) & (requests.at < 39_600)
        assert seen.failed[during].mean() == pytest.approx(0.5, abs=0.05)
        assert seen.failed[~during].mean() < 0.01
        assert np.isinf(seen.ttft[seen.failed]).all()


def test_a_candidate_turns_bad_at_its_onset() -> None:
    stream, requests = _day(errors=5.0)
    seen = stream.outcomes(requests, np.ones(requests.at.size, bool), 0.5, DAY / 2)
    late = requests.at >= DAY / 2
    assert seen.failed[late].mean() > 4 * seen.failed[~late].mean()


def test_an_idle_candidate_looks_fast_and_a_cold_one_slow() -> None:
    stream, requests = _day(idle=True)
    at = {weight: np.quantile(_users(stream, requests, True, weight)["ttft"], 0.95) for weight in (0.01, 0.5)}
    assert at[0.01] < 0.92 * at[0.5]
    assert at[0.5] == pytest.approx(np.quantile(_users(stream, requests, False)["ttft"], 0.95), rel=0.01)
    stream, requests = _day(warm_up=True)
    seen = stream.outcomes(requests, np.ones(requests.at.size, bool), 0.5, 0.0).ttft
    assert np.median(seen[requests.at < 300]) > 1.8 * np.median(seen[requests.at > 7200])


def test_runs_can_be_repeated_and_differ_by_seed() -> None:
    first, again, other = (_day(seed, 1_000.0)[1] for seed in (1, 1, 2))
    assert np.array_equal(first.at, again.at)
    assert not np.array_equal(first.at[:10], other.at[:10])
