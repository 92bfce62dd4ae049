"""The field's rules as their documentation's examples have them: each walks through traffic that is plain to judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from benchmarks.evidence_peers import (
    Argo,
    Flagger,
    GrowthBook,
    History,
    Kayenta,
    Ladder,
    Minutes,
    RepeatedTests,
    Split,
    history,
)
from benchmarks.evidence_traffic import Outcomes, Stream, Traffic
from benchmarks.evidence_understudy import resource


def _split(users: float = 100_000.0, **kind: Any) -> Split:
    stream = Stream(Traffic(users_per_day=users, diurnal=False, bursts=False, **kind), np.random.default_rng(3))
    return Split(stream, stream.span(0.0, 3600.0, 0.5))


KNOWN = History(p95=0.2, p99=0.31, failing=0.009)


def test_argo_promotes_after_forty_minutes_and_aborts_at_the_fourth_bad_measurement() -> None:
    good = Argo().run(_split())
    assert (good.verdict, good.at) == ("advance", 2400.0)
    # Half of all requests fail: measured at 10, 15, 20 and 25 minutes, of which three may fail.
    bad = Argo().run(_split(incident=0.0, incident_minutes=60.0))
    assert (bad.verdict, bad.at, bad.why) == ("abort", 1500.0, "success")


def test_argo_fails_windows_without_requests_unless_fitted() -> None:
    assert Argo().run(_split(users=20.0)).verdict == "abort"
    assert Argo(KNOWN).run(_split(users=20.0)).verdict == "advance"


def test_argo_does_not_see_what_its_thresholds_allow() -> None:
    assert Argo().run(_split(errors=2.0)).verdict == "advance"
    assert Argo(KNOWN).run(_split(errors=5.0)).verdict == "abort"


def test_flagger_climbs_by_five_percent_a_minute() -> None:
    good = Flagger().run(_split(users=400_000.0))
    assert good.verdict == "advance"
    assert good.at >= 600.0, "ten good minutes at least"
    bad = Flagger().run(_split(users=400_000.0, errors=5.0))
    assert (bad.verdict, bad.why) == ("abort", "success")
    assert 600.0 <= bad.at <= 1200.0, "ten bad minutes"


def test_flagger_rolls_back_without_traffic_unless_fitted() -> None:
    starved = Flagger().run(_split(users=20.0))
    assert (starved.verdict, starved.at, starved.why) == ("abort", 600.0, "no values")
    assert Flagger(KNOWN).run(_split(users=20.0)).verdict == "advance"


def test_history_is_that_of_stable() -> None:
    calm, slow = (history(Traffic(ttft=effect, incident=1.0), np.random.default_rng(1)) for effect in (0.0, 5.0))
    assert calm == slow
    assert calm.p95 < calm.p99 < 0.5


def _minutes(rng: np.random.Generator, hours: int, failing: tuple[float, float], slower: float = 1.0) -> Minutes:
    minutes = Minutes()
    at = rng.uniform(0, hours * 3600, hours * 4_000)
    candidate = rng.random(at.size) < 0.5
    failed = rng.random(at.size) < np.where(candidate, failing[1], failing[0])
    ttft = 0.12 * np.exp(0.25 * rng.standard_normal(at.size)) * np.where(candidate, slower, 1.0)
    none = np.zeros(at.size, bool)
    minutes.add(at, candidate, Outcomes(failed, np.where(failed, np.inf, ttft), none), none)
    return minutes


def test_minutes_count_what_they_are_given() -> None:
    minutes = Minutes()
    at, candidate = np.array([0.0, 59.0, 61.0, 61.0]), np.array([False, True, True, True])
    failed = np.array([False, True, False, False])
    ttft = np.array([0.1, np.inf, 0.2, 0.4])
    minutes.add(at, candidate, Outcomes(failed, ttft, ~failed), np.zeros(4, bool))
    assert minutes.sums[0, 0, :4].tolist() == [1, 0, 1, 0.1]
    assert minutes.sums[1, 0, :3].tolist() == [1, 1, 0]
    assert minutes.sums[1, 1, 3] == pytest.approx(0.6)
    p95 = minutes.p95(0, 2)
    assert p95[0, 0] == 0.1
    assert p95[1, 1] == 0.4
    assert np.isnan(p95[1, 0])
    minutes.reach(10_000)
    assert minutes.sums.shape[1] >= 10_000


def test_repeated_tests_cry_wolf_and_see_harm() -> None:
    rng = np.random.default_rng(5)
    false = sum(RepeatedTests().look(_minutes(rng, 24, (0.02, 0.02)), 86_400) is not None for _ in range(20))
    assert false >= 4, "5 % nominal, looked at 1,440 times"
    seen = RepeatedTests().look(_minutes(rng, 4, (0.01, 0.05)), 4 * 3600)
    assert seen is not None
    assert (seen.verdict, seen.why) == ("abort", "errors")
    assert seen.at < 3600


def test_kayenta_judges_each_hour_by_mann_whitney_with_a_tolerance() -> None:
    rng = np.random.default_rng(6)
    slow = Kayenta().look(_minutes(rng, 2, (0.0, 0.0), slower=1.5), 7200, 0)
    assert slow is not None
    assert (slow.verdict, slow.at, slow.why) == ("abort", 3600.0, "ttft")
    assert Kayenta().look(_minutes(rng, 2, (0.5, 0.01)), 7200, 0) is None, "better is not high"
    idle = Kayenta()
    assert idle.look(_minutes(rng, 3, (0.0, 0.0)), 3 * 3600, 0) is None
    late = _minutes(rng, 6, (0.0, 0.0), slower=1.5)
    assert idle.look(late, 5 * 3600, 0) is None, "three judgements a step"
    seen = idle.look(late, 6 * 3600, 1)
    assert seen is not None
    assert seen.at == 6 * 3600
    x, y = rng.normal(0.8, 1, 60), rng.normal(0, 1, 60)
    shift = np.median(np.subtract.outer(x, y))
    p = mannwhitneyu(x - 0.25 * abs(shift), y, alternative="two-sided", method="asymptotic").pvalue
    assert Kayenta().high(y, x) == (p < 0.02)
    assert not Kayenta().high(np.full(60, np.nan), x), "no data is no failure"


def test_growthbook_holds_its_level_and_sees_harm() -> None:
    rng = np.random.default_rng(7)

    def aborts(rates: tuple[float, float]) -> bool:
        rule = GrowthBook()
        for look in range(60):
            candidate = rng.random(100) < 0.5
            errors = (rng.random(100) < np.where(candidate, rates[1], rates[0])).astype(float)
            rule.see({"errors": errors}, candidate)
            if rule.look(look * 600.0) is not None:
                return True
        return False

    assert sum(aborts((0.05, 0.05)) for _ in range(20)) <= 2
    assert sum(aborts((0.05, 0.15)) for _ in range(5)) == 5


def test_the_ladder_is_that_of_production() -> None:
    ladder = Ladder(resource("production").spec.rollout.canary.steps)
    assert ladder.weight == 0.01
    assert not ladder.pass_time(3600.0, 99)
    assert ladder.weight == 0.01, "one user is missing"
    assert not ladder.pass_time(7200.0, 1)
    assert ladder.weight == 0.05
    assert not ladder.pass_time(7200.0 + 259_200.0, 0)
    assert ladder.weight == 0.25, "the longest time is over"
    ladder.pass_time(300_000.0, 500)
    assert ladder.weight == 0.5
    assert not ladder.pass_time(300_000.0 + 86_000.0, 5_000)
    assert ladder.pass_time(300_000.0 + 86_400.0, 10)
