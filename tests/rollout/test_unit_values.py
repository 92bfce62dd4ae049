"""What a user's hour, or a mirrored pair, is worth: each rule of missing and foreign outcomes once."""

from __future__ import annotations

import math
from typing import Any

import pytest

from services.rollout.unit_values import Speed, Value, pair_values, past_values, spoke, unit_values
from services.store import ClosedUnit, Feedback, MirroredPair, Observation, Past
from tests.fakes.records import exposure, feedback, observation

SALT = b"salt"


def unit(*rows: Observation, said: tuple[Feedback, ...] = ()) -> ClosedUnit:
    return ClosedUnit(exposure(0.0), rows, said)


def row(**changes: Any) -> Observation:
    return observation(1.0, **changes)


FAILED = {"outcome": "error", "ttft": None, "tokens_out": None}


@pytest.mark.parametrize(
    ("rows", "metric", "value"),
    [
        ((), "errors", 1.0),
        ((), "ttft", math.inf),
        ((), "tokensPerSecond", Speed(0.0, 0.0)),
        ((row(), row(**FAILED)), "errors", 1.0),
        ((row(),), "errors", 0.0),
        ((row(outcome="cancelled", ttft=None, tokens_out=None),), "ttft", math.inf),
        ((row(outcome="cancelled", ttft=None, tokens_out=None),), "errors", 0.0),
        ((row(outcome="filtered"),), "errors", 0.0),  # the engine answered
        ((row(outcome="filtered"), row(outcome="error")), "errors", 1.0),
        ((row(**FAILED, request_id="a"), row(request_id="a", attempt=1)), "errors", 1.0),
        ((row(**FAILED, request_id="a"), row(request_id="a", attempt=1)), "ttft", math.inf),
        ((row(tokens_out=40, duration=2.0), row(tokens_out=20, duration=2.0)), "tokensPerSecond", Speed(60.0, 4.0)),
        ((row(tokens_out=40, duration=2.0), row(**FAILED, duration=3.0)), "tokensPerSecond", Speed(40.0, 5.0)),
        (
            (row(tokens_out=40, duration=2.0), row(outcome="filtered", tokens_out=None)),
            "tokensPerSecond",
            Speed(40.0, 2.0),
        ),
        ((row(), row(outcome="client_error", ttft=None, tokens_out=None)), "errors", 0.0),
    ],
)
def test_value(rows: tuple[Observation, ...], metric: str, value: Value) -> None:
    assert unit_values(unit(*rows), SALT)[metric] == value


def test_a_unit_that_never_streamed_has_no_first_token() -> None:
    assert "ttft" not in unit_values(unit(row(streamed=False, ttft=None)), SALT)


def test_one_request_speaks_for_the_unit_and_the_salt_says_which() -> None:
    rows = [row(request_id=f"r{i}", ttft=float(i)) for i in range(20)]
    values = {unit_values(unit(*rows), bytes([salt]))["ttft"] for salt in range(40)}
    assert len(values) > 5
    assert unit_values(unit(*rows), SALT) == unit_values(unit(*reversed(rows)), SALT)


@pytest.mark.parametrize(
    ("mark", "bad"),
    [
        ({"kind": "thumb", "value": -1.0}, 1.0),
        ({"kind": "thumb", "value": 1.0}, 0.0),
        ({"kind": "rating", "value": 2.0}, 1.0),
        ({"kind": "rating", "value": 3.0}, 0.0),
        ({"kind": "escalation", "value": 1.0}, 1.0),
        ({"kind": "retry", "value": 1.0}, 1.0),
        ({"kind": "copy", "value": 1.0}, 0.0),
    ],
)
def test_marks(mark: dict[str, Any], bad: float) -> None:
    closed = unit(row(request_id="a"), said=(feedback("a", 2.0, **mark),))
    assert unit_values(closed, SALT)["feedback"] == bad
    assert spoke(closed)


def test_marks_on_stables_answer_are_not_the_candidates() -> None:
    rows = (row(**FAILED, request_id="a"), row(request_id="a", attempt=1))
    closed = unit(*rows, said=(feedback("a", 2.0, kind="thumb", value=-1.0),))
    assert unit_values(closed, SALT)["feedback"] == 0.0
    assert not spoke(closed)


def test_what_stable_answered_after_the_weight_fell_is_not_the_candidates() -> None:
    rows = (row(request_id="a"), row(request_id="b", arm="stable", ttft=9.0, tokens_out=1, outcome="error"))
    closed = unit(*rows, said=(feedback("b", 2.0, kind="thumb", value=-1.0),))
    assert unit_values(closed, SALT) == unit_values(unit(rows[0]), SALT)


@pytest.mark.parametrize(("changes", "metric"), [({"ttft": None}, "ttft"), ({"tokens_out": None}, "tokensPerSecond")])
def test_what_was_answered_and_not_measured_has_no_value(changes: dict[str, Any], metric: str) -> None:
    assert metric not in unit_values(unit(row(**changes)), SALT)
    assert pair_values(pair(row(**changes), row()))[metric][1] is None


def pair(candidate: Observation | None, stable: Observation | None) -> MirroredPair:
    return MirroredPair("p", "u1", 10.0, candidate, stable)


def test_a_pair_with_a_missing_half_is_a_failure_of_that_half() -> None:
    values = pair_values(pair(None, row(ttft=0.2, tokens_out=40, duration=2.0)))
    assert values == {
        "errors": (0.0, 1.0), "refusals": (0.0, 0.0), "ttft": (0.2, math.inf),
        "interTokenGap": (0.0, math.inf), "duration": (2.0, math.inf), "tokensPerSecond": (Speed(40.0, 2.0), Speed(0.0, 0.0)),
    }  # fmt: skip


def test_a_prompt_that_both_refuse_says_nothing_and_one_that_only_the_candidate_refuses_is_its_failure() -> None:
    refused = row(outcome="client_error", ttft=None, tokens_out=None)
    assert pair_values(pair(refused, refused)) == {}
    assert pair_values(pair(refused, row()))["errors"] == (0.0, 1.0)


def test_a_refused_answer_is_a_refusal_and_no_failure() -> None:
    filtered = row(request_id="b", outcome="filtered")
    values = unit_values(unit(row(request_id="a"), filtered), SALT)
    assert (values["refusals"], values["errors"]) == (1.0, 0.0)
    assert unit_values(unit(row(), row(request_id="b", outcome="error")), SALT)["refusals"] == 0.0
    assert pair_values(pair(filtered, row()))["refusals"] == (0.0, 1.0)


@pytest.mark.parametrize(
    ("rows", "metric", "value"),
    [
        ((row(gap_mean=0.02),), "interTokenGap", 0.02),
        ((row(gap_mean=None),), "interTokenGap", 0.0),  # all tokens came at once
        ((row(**FAILED),), "interTokenGap", math.inf),
        ((row(outcome="cancelled", ttft=None, tokens_out=None),), "interTokenGap", math.inf),
        ((row(outcome="cancelled", gap_mean=0.03),), "interTokenGap", 0.03),
        ((row(duration=3.0),), "duration", 3.0),
        ((row(duration=3.0, streamed=False, ttft=None),), "duration", 3.0),
        ((row(outcome="cancelled", duration=3.0),), "duration", math.inf),
        ((row(**FAILED),), "duration", math.inf),
        ((), "duration", math.inf),
    ],
)
def test_times(rows: tuple[Observation, ...], metric: str, value: Value) -> None:
    assert unit_values(unit(*rows), SALT)[metric] == value


def test_what_users_say_is_counted_by_kind() -> None:
    said = tuple(
        feedback("a", 2.0, kind=kind, value=value)
        for kind, value in (("escalation", 1.0), ("rating", 5.0), ("rating", 2.0), ("copy", 1.0))
    )
    values = unit_values(unit(row(request_id="a"), said=said), SALT)
    assert (values["escalations"], values["retries"], values["rating"], values["feedback"]) == (1.0, 0.0, 3.5, 1.0)
    assert "rating" not in unit_values(unit(row()), SALT)


def test_the_past_in_the_units_of_each_metric() -> None:
    past = Past(requests=4, failed=1, bad=2, retries=0, escalations=1, tokens_per_second=30.0, rating=None)
    found = past_values(past)
    assert found == {"errors": 0.25, "feedback": 0.5, "retries": 0.0, "escalations": 0.25, "tokensPerSecond": 30.0}
    assert past_values(None) == {}
