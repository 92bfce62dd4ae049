"""Plans: time, harm and what is out of reach, from a resource and its traffic."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from services.rollout import reasons
from services.rollout.planning import Traffic, caution, given_traffic, make_plan, stable_of, told, traffic_of
from services.rollout.power import Stable
from services.rollout.resources import LLMService
from tests.fakes.rollout_world import service

PRODUCTION = LLMService.model_validate(
    {"metadata": {"name": "assistant"}, "spec": {"model": {"registeredModel": "assistant"}}}
)
HOUR, DAY = 3600.0, 86_400.0


def test_a_stage_takes_what_its_slowest_condition_needs() -> None:
    rehearsal, first, *_, last = make_plan(PRODUCTION, Traffic(100_000)).stages
    assert rehearsal.waits_for == "minPairs"
    assert rehearsal.seconds == pytest.approx(200 / (0.1 * 100_000 / DAY) + 2 * 60, rel=0.02)
    assert (first.waits_for, first.units) == ("minUnits", pytest.approx(100, rel=0.02))
    assert first.seconds == pytest.approx(100 / (0.01 * 100_000 / DAY) + 600 + 60, rel=0.02)
    assert (last.waits_for, last.seconds) == ("minDuration", DAY)
    assert not any(stage.held for stage in (rehearsal, first, last))


def test_the_last_step_waits_for_its_slowest_guardrail() -> None:
    last = make_plan(PRODUCTION, Traffic(9_000, stable={"ttft": Stable(spread=0.8, missing=0.01)})).stages[-1]
    assert last.waits_for == "ttft"
    assert DAY < last.typical_seconds < last.seconds < 7 * DAY


def test_more_users_see_less_harm_and_never_less_than_the_margin() -> None:
    few, many = (make_plan(PRODUCTION, Traffic(users)) for users in (20_000, 1_000_000))
    for metric, margin in (("errors", 0.01), ("ttft", 0.2), ("feedback", 0.05)):
        assert margin < (many.harm[metric] or 0) < (few.harm[metric] or 0)
    of_steps = [stage.harm["errors"] for stage in many.stages[1:]]
    assert of_steps == sorted(of_steps, reverse=True, key=lambda harm: harm or 9), (
        "what a step sees, the next one sees too"
    )
    assert (many.harm["errors"] or 1) <= (many.stages[-1].harm["errors"] or 0)


def test_users_who_come_again_are_exposed_once() -> None:
    fresh, again = (make_plan(PRODUCTION, Traffic(1_000_000, growth)).stages[-1].units for growth in (1.0, 0.0))
    assert fresh == pytest.approx(0.5 * 1_000_000 * (DAY - 660) / DAY, rel=0.01)
    assert again == 250_000, "of those who always come, only the quarter that the step adds is new to the rollout"


def test_little_traffic_is_told_with_what_would_do() -> None:
    few = caution(PRODUCTION, Traffic(200))
    assert few is not None
    assert few.reason == reasons.MARGIN_OUT_OF_REACH
    assert "the rehearsal comes to 20 of minPairs 200 in 24 h; with 2,100 users a day it could" in few.message
    assert "cannot show errors within the margin of 0.01 in 7 d" in few.message
    assert caution(PRODUCTION, Traffic(100_000)) is None


def test_what_is_said_to_be_in_reach_is() -> None:
    rules = service(
        rehearsal={"minPairs": 0, "minDuration": "0s", "maxDuration": "1h"},
        canary={"steps": [{"weight": 50, "minDuration": "1h", "minUnits": 0, "maxDuration": "2d"}]},
        guardrails=[{"metric": "ttft", "margin": 0.05, "mode": "nonInferior"}],
    )
    (missing,) = make_plan(rules, Traffic(5_000)).out_of_reach
    assert (missing.what, missing.asked, missing.stage, missing.step) == ("ttft", 0.05, "canary", 0)
    assert missing.in_reach is not None
    assert missing.users_per_day is not None
    assert f"but one of {missing.in_reach:.0%}" in told(rules, missing)
    assert not make_plan(rules, Traffic(1.05 * missing.users_per_day)).out_of_reach
    guardrail = rules.spec.rollout.guardrails[0].model_copy(update={"margin": 1.05 * missing.in_reach})
    spec = rules.spec.model_copy(update={"rollout": rules.spec.rollout.model_copy(update={"guardrails": (guardrail,)})})
    assert not make_plan(rules.model_copy(update={"spec": spec}), Traffic(5_000)).out_of_reach


def test_requests_without_users_are_warned_of() -> None:
    found = caution(PRODUCTION, replace(Traffic(100_000), busiest_share=0.8))
    assert found is not None
    assert found.reason == reasons.USERS_UNNAMED
    assert "80% of the requests come as one user" in found.message


def test_a_caution_is_cheap() -> None:
    began = time.process_time()
    for users in (300, 3_000, 30_000):
        caution(PRODUCTION, Traffic(users, 0.7))
    assert time.process_time() - began < 2


def test_traffic_is_what_was_measured_or_given() -> None:
    spreads = {"ttft_spread": 0.6, "ttft_missing": 0.02, "tokens_per_second_spread": None}
    usage = {"requests": 5_000, "users_per_day": 700.0, "growth": 0.5, "busiest_share": 0.1, **spreads}
    measured = traffic_of(usage, {"failure_rate": 0.0, "bad_feedback_rate": None, "units": 99})
    assert measured.stable == {"errors": Stable(rate=0.005), "ttft": Stable(spread=0.6, missing=0.02)}
    assert measured.users(4 * DAY) == pytest.approx(1_400)
    more = given_traffic(1_000, None, measured)
    assert (more.users_per_day, more.growth, more.stable) == (1_000, 0.5, measured.stable)
    assert given_traffic(1_000, 7_000, None).growth == 1
    assert given_traffic(1_000, 1_000, None).growth == 0
    assert make_plan(PRODUCTION, measured).assumed.keys() == {"feedback"}


@pytest.mark.parametrize(("kind", "value"), [("rate", 1.0), ("rate", -0.1), ("quantile", 0.0)])
def test_impossible_values_of_stable(kind: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"not"):
        stable_of(kind, value)
