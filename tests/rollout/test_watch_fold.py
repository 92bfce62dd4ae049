"""The watch's detectors: what they find against frozen history, how rarely they alarm for nothing; batches change nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest

from services.rollout.resources import LLMService
from services.rollout.watch_fold import LENGTH_MARGIN, Watch, begin_drift, begin_watch, hour_of_week
from services.store import ClosedUnit, History
from tests.fakes.records import exposure, feedback, observation
from tests.fakes.rollout_world import service

SALT = b"salt"
PROMOTED = 1_795_305_600.0  # a Sunday, midnight UTC
GUARDRAILS: list[dict[str, Any]] = [
    {"metric": "errors", "margin": 0.05, "mode": "nonInferior"},
    {"metric": "ttft", "margin": 0.2, "quantile": 0.9},
    {"metric": "tokensPerSecond", "margin": 0.5},
    {"metric": "feedback", "margin": 0.1},
    {"metric": "rating", "margin": 0.5},
]


def rules(**changes: Any) -> LLMService:
    return service(**{"guardrails": GUARDRAILS, "alpha": 0.1, "rollbackWindow": "1h", **changes})


def users(
    seed: int,
    start: float,
    count: int,
    *,
    failure: float = 0.02,
    ttft: float = 0.1,
    bad: float = 0.1,
    rating: float = 4.0,
) -> Iterator[ClosedUnit]:
    """One every three seconds; the tenth of them rate."""
    draw = random.Random(seed)
    for number in range(count):
        at = start + 3.0 * number
        failed = draw.random() < failure
        first = None if failed else ttft * draw.lognormvariate(0, 0.3)
        row = observation(at, outcome="error" if failed else "ok", ttft=first, arm="stable")
        marks = [feedback(row.request_id, at + 1)] if draw.random() < bad else []
        if number % 10 == 0:
            marks.append(
                feedback(
                    row.request_id, at + 2, kind="rating", value=float(min(5, max(1, round(draw.gauss(rating, 0.7)))))
                )
            )
        yield ClosedUnit(exposure(at, unit=f"{seed}-{number:05}", arm="stable"), (row,), tuple(marks))


def history(visits: Iterable[ClosedUnit], share: float = 1.0) -> History:
    found = tuple(visits)
    return History(found, {int(visit.exposure.first_at // 3600): share for visit in found})


def watch(seed: int = 1, resource: LLMService | None = None) -> Watch:
    return begin_watch(resource or rules(), history(users(seed, PROMOTED - 3600 * 2, 2400)), SALT, PROMOTED)


def fold(over: Watch, visits: Sequence[ClosedUnit]) -> Watch:
    over.fold_prompt(visits, SALT)
    over.fold_said(visits, SALT)
    return over


@pytest.mark.parametrize(
    ("worse", "metric", "says"),
    [
        ({"failure": 0.4}, "errors", "% of"),
        ({"ttft": 0.25}, "ttft", "later than"),
        ({"bad": 0.6}, "feedback", "before"),
        ({"rating": 1.0}, "rating", "at least"),
    ],
)
def test_what_becomes_worse_is_named_with_its_size_and_since_when(
    worse: dict[str, float], metric: str, says: str
) -> None:
    begun = watch()
    assert begun.metrics == ["errors", "ttft", "feedback", "rating"]
    good = list(users(2, PROMOTED, 400))
    found = fold(begun, good)
    assert found.alarm(PROMOTED) is None
    turned = PROMOTED + 1200
    alarm = fold(found, list(users(3, turned, 800, **worse))).alarm(PROMOTED + 3000)
    assert alarm is not None
    assert alarm.metric == metric
    assert says in alarm.message
    assert "since 2026-11-22 00:" in alarm.message
    assert turned - 60 <= alarm.evidence["since"] <= turned + 300
    assert alarm.evidence["mean"] != pytest.approx(alarm.evidence["before"], rel=0.3)
    assert alarm.evidence["until"] == PROMOTED + 3000


def test_within_the_margin_there_is_no_alarm_and_false_ones_are_rare() -> None:
    alarms = [
        fold(watch(seed), list(users(1000 + seed, PROMOTED, 1200, failure=0.04, ttft=0.11))).alarm(0.0)
        for seed in range(12)
    ]
    assert sum(alarm is not None for alarm in alarms) <= 1


def test_batches_and_restarts_change_nothing() -> None:
    visits = list(users(4, PROMOTED, 500, failure=0.3))
    whole, parts = fold(watch(), visits), watch()
    for start in range(0, 500, 37):
        parts = Watch.from_json(json.loads(json.dumps(fold(parts, visits[start : start + 37]).to_json())), {})
    assert parts.alarm(1.0) == whole.alarm(1.0) is not None
    assert parts.to_json() == whole.to_json()


def test_all_detectors_share_one_run_length() -> None:
    begun = watch()
    assert begun.arl == pytest.approx(20.0)  # watches: one over half of alpha
    assert [one.detector.arl for one in begun.watched] == pytest.approx(
        [4 * 20 * crowd for crowd in (1200, 1200, 1200, 120)], rel=0.05
    )
    sampled = begin_watch(rules(), history(users(1, PROMOTED - 3600 * 2, 2400), share=0.5), SALT, PROMOTED)
    assert sampled.watched[0].detector.arl == pytest.approx(2 * begun.watched[0].detector.arl), (
        "half of each hour was read"
    )


def test_values_that_cannot_be_are_left_out_and_counted() -> None:
    begun = watch()
    visit = next(users(5, PROMOTED, 1))
    marks = (feedback(visit.observations[0].request_id, PROMOTED + 1, kind="rating", value=0.0),)
    fold(begun, [ClosedUnit(visit.exposure, visit.observations, marks)])
    assert {one.metric: one.excluded for one in begun.watched} == {"errors": 0, "ttft": 0, "feedback": 0, "rating": 1}


def test_without_history_nothing_is_watched_and_a_short_one_has_no_far_quantile() -> None:
    assert begin_watch(rules(), history([]), SALT, PROMOTED).metrics == []
    few = history(users(1, PROMOTED - 3600, 20))
    assert begin_watch(rules(), few, SALT, PROMOTED).metrics == ["errors", "feedback", "rating"]
    hasty = rules(rollbackWindow="10s")  # over before a horizon is
    assert watch(resource=hasty).metrics == ["errors", "ttft"]


def test_hours_of_the_week_begin_on_monday() -> None:
    assert hour_of_week(PROMOTED) == 6 * 24
    assert hour_of_week(PROMOTED + 24 * 3600) == 0


WEEK_OF = 7 * 24 * 3600.0


def stable_users(seed: int, start: float, count: int, *, tokens: float = 40.0, failing: str = "") -> list[ClosedUnit]:
    """One every four minutes of two tenants in turn; answers of about so many tokens. Of the tenant `failing` half have errors."""
    draw, found = random.Random(seed), []
    for number in range(count):
        at, tenant = start + 240.0 * number, ("shop", "bank")[number % 2]
        failed = draw.random() < (0.5 if tenant == failing else 0.02)
        answered = round(tokens * draw.lognormvariate(0, 0.2))
        outcome = "error" if failed else "ok"
        row = observation(at, arm="stable", tenant=tenant, outcome=outcome, tokens_out=None if failed else answered)
        found.append(ClosedUnit(exposure(at, unit=f"{seed}-{number}", arm="stable"), (row,), ()))
    return found


def drifting(after: list[ClosedUnit], **changes: Any) -> str | None:
    """The key of the detector that alarms, of those frozen with a week before."""
    frozen = stable_users(1, PROMOTED - WEEK_OF, 7 * 24 * 15)
    over = begin_drift(rules(**changes), frozen, (), SALT, WEEK_OF)
    for visit in after:
        fold(over, [visit])
        alarm = over.alarm(visit.exposure.closes_at)
        if alarm is not None:
            return alarm.metric
    return None


@pytest.mark.parametrize(
    ("tokens", "found"), [(40.0, None), (100.0, "longAnswers"), (15.0, "shortAnswers")], ids=["same", "long", "short"]
)
def test_answers_that_become_longer_or_shorter(tokens: float, found: str | None) -> None:
    assert drifting(stable_users(2, PROMOTED, 1_000, tokens=tokens)) == found


def test_the_lengths_that_count_lie_beyond_what_was_common() -> None:
    frozen = stable_users(1, PROMOTED - WEEK_OF, 7 * 24 * 15)
    lengths = sorted(row.tokens_out for visit in frozen for row in visit.observations if row.tokens_out)
    late = {one.metric: one.late for one in begin_drift(rules(), frozen, (), SALT, WEEK_OF).watched}
    long, short = late["longAnswers"], late["shortAnswers"]
    assert long is not None
    assert short is not None
    assert long == pytest.approx(lengths[round(0.95 * len(lengths))] * (1 + LENGTH_MARGIN), rel=0.05)
    assert 1 / short == pytest.approx(lengths[round(0.05 * len(lengths))] / (1 + LENGTH_MARGIN), rel=0.05)


def test_the_segment_that_fares_worse_is_named() -> None:
    segments = [{"name": "banks", "tenants": ["bank"]}]
    after = stable_users(2, PROMOTED, 1_500, failing="bank")
    assert drifting(after, segments=segments) == "errors[banks]"
    assert drifting(after) == "errors"
    assert drifting(stable_users(2, PROMOTED, 1_500, failing="shop"), segments=segments) == "errors"


def test_longer_answers_hide_no_harm() -> None:
    over = begin_drift(rules(), stable_users(1, PROMOTED - WEEK_OF, 7 * 24 * 15), (), SALT, WEEK_OF)
    fold(over, stable_users(2, PROMOTED, 600, tokens=100.0))
    alarm = over.alarm(PROMOTED)
    assert alarm is not None
    assert alarm.metric == "longAnswers"
    over.watched.reverse()  # wherever it stands
    fold(over, list(users(3, PROMOTED + WEEK_OF, 200, failure=0.9)))
    alarm = over.alarm(PROMOTED)
    assert alarm is not None
    assert alarm.metric in ("errors", "ttft")
