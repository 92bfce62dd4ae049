"""What costs are reckoned from: hours are summed once, replicas and prices kept where they change, users and marks read from the rows."""

from __future__ import annotations

from typing import Any

import pytest

from services.store import Marks, Observation, Rate, Store, Usage, UserUsage, is_bad_mark, is_good_mark
from tests.fakes.records import feedback, observation

HOUR = 3_600.0


@pytest.fixture
def hour(now: float) -> float:
    """Start of an hour that ended five hours ago."""
    return now // HOUR * HOUR - 6 * HOUR


def stable(at: float, **changes: Any) -> Observation:
    fields: dict[str, Any] = {
        "revision": "assistant-v1-7c1f",
        "arm": "stable",
        "rollout": None,
        "tenant": "acme",
        "key": "web",
    }
    return observation(at, **{**fields, "tokens_in": 100, "tokens_cached": 30, "tokens_out": 20, **changes})


def test_hours_are_summed_once_and_say_the_same_as_the_rows(store: Store, hour: float) -> None:
    mirrored = {"kind": "mirror", "rollout": "r1", "pair": "p", "arm": "control"}
    rows = [
        stable(hour + 1, duration=2.0),
        stable(hour + 2, duration=3.0, tokens_in=None, tokens_cached=None, tokens_out=None, outcome="error"),
        stable(hour + 3, duration=1.0, key="app"),
        stable(hour + 4, duration=5.0, **mirrored),
        stable(hour + 2 * HOUR, duration=7.0),
        stable(hour + 6 * HOUR, duration=0.5),  # this hour: not settled
        observation(hour + 1, service="other"),
    ]
    store.write(rows)
    before = store.cost_records(["assistant"], hour)["assistant"].usage
    named = ("assistant-v1-7c1f", "stable", "", "live", "acme")
    assert Usage(hour, *named, "web", 2, 1, 100, 30, 20, 5.0) in before
    assert Usage(hour, *named, "app", 1, 1, 100, 30, 20, 1.0) in before
    assert Usage(hour, "assistant-v1-7c1f", "control", "r1", "mirror", "acme", "web", 1, 1, 100, 30, 20, 5.0) in before
    assert len(before) == 5
    assert store.sum_usage("assistant") == 2
    assert store.sum_usage("assistant") == 0
    assert sorted(store.cost_records(["assistant"], hour)["assistant"].usage, key=repr) == sorted(before, key=repr)
    store.prune("assistant", hour + 5 * HOUR, 0.0)  # the sums outlive the rows
    assert sorted(store.cost_records(["assistant"], hour)["assistant"].usage, key=repr) == sorted(before, key=repr)
    later = store.cost_records(["assistant", "nobody"], hour + HOUR)
    assert [one.hour for one in later["assistant"].usage] == [hour + 2 * HOUR, hour + 6 * HOUR]
    assert later["nobody"].usage == ()
    store.prune("assistant", hour, hour + HOUR)
    assert min(one.hour for one in store.cost_records(["assistant"], 0)["assistant"].usage) == hour + 2 * HOUR


def test_a_long_pause_between_hours_is_passed_over(store: Store, hour: float) -> None:
    store.write([stable(hour - 29 * 24 * HOUR), stable(hour)])
    assert store.sum_usage("assistant") == 2
    assert [one.hour for one in store.cost_records(["assistant"], 0)["assistant"].usage] == [
        hour - 29 * 24 * HOUR,
        hour,
    ]


def test_replicas_are_kept_where_they_change(store: Store, now: float) -> None:
    store.note_replicas("assistant", {"v1": 2, "v2": 0}, {"adapter-v3": "v1"}, now)
    store.note_replicas("assistant", {"v1": 2, "v2": 1}, {"adapter-v3": "v1"}, now + 10)
    store.note_replicas("assistant", {"v2": 1}, {}, now + 20)  # v1 is gone
    store.note_replicas("assistant", {"v2": 1}, {}, now + 30)
    found = store.cost_records(["assistant"], now)["assistant"]
    assert found.replicas == {"v1": [(now, 2), (now + 20, 0)], "v2": [(now + 10, 1)]}
    assert found.engines == {"adapter-v3": "v1"}
    store.prune("assistant", 0.0, now + 25)  # of each engine what holds at that time stays
    assert store.cost_records(["assistant"], now)["assistant"].replicas == {
        "v1": [(now + 20, 0)],
        "v2": [(now + 10, 1)],
    }


def test_prices_are_kept_where_they_change(store: Store, now: float) -> None:
    price = {"currency": "USD", "perReplicaHour": 2.5}
    for at, document in ((0, None), (10, price), (20, price), (30, None), (40, price)):
        store.note_prices("assistant", document, now + at)
    found = store.cost_records(["assistant"], now)["assistant"].prices
    assert found == ((now + 10, price), (now + 30, None), (now + 40, price))
    assert store.cost_services() == ["assistant"]


def test_what_users_cost(store: Store, hour: float) -> None:
    store.write(
        [
            stable(hour + 1, unit="a", duration=2.0),
            stable(hour + 2, unit="b", duration=1.0),
            stable(hour + HOUR, unit="b", duration=10.0),
            stable(hour + HOUR, unit="c", duration=10.0, revision="other"),  # for which there is no rate
            stable(hour + 2, unit="b", duration=99.0, kind="mirror", pair="p"),
        ]
    )
    revision = "assistant-v1-7c1f"
    rates = [Rate(hour, revision, 0.5, 0.01, 0.001, 0.1), Rate(hour + HOUR, revision, 0.25, 0.0, 0.0, 0.0)]
    a, b = 2 * 0.5 + 70 * 0.01 + 30 * 0.001 + 20 * 0.1, 1 * 0.5 + 0.7 + 0.03 + 2.0 + 10 * 0.25
    found = store.users_usage("assistant", hour, hour + 2 * HOUR, rates)
    assert [(one.unit, one.requests, one.tokens_out) for one in found] == [("b", 2, 40), ("a", 1, 20)]
    assert [one.cost for one in found] == pytest.approx([b, a])
    many = rates + [
        Rate(hour + HOUR, f"x{n}", 1.0, 0.0, 0.0, 0.0) for n in range(1_500)
    ]  # more than one statement takes
    again = store.users_usage("assistant", hour, hour + 2 * HOUR, many)
    assert [one.cost for one in again] == pytest.approx([b, a])
    (only,) = store.users_usage("assistant", hour + 1.5, hour + 3, rates)
    assert only == UserUsage("b", 1, 1, 100, 20, pytest.approx(3.23))
    assert store.users_usage("assistant", hour, hour + HOUR, []) == []


def test_marks_are_counted_once_an_answer(store: Store, hour: float) -> None:
    day = hour // 86_400 * 86_400
    store.write(
        [stable(hour + n, request_id=f"q{n}") for n in range(5)] + [stable(hour + 9, request_id="q9", outcome="error")]
    )
    said = (
        ("q0", "thumb", 1.0), ("q0", "copy", None),
        ("q1", "rating", 5.0), ("q1", "retry", 1.0),  # good and bad: not good
        ("q2", "thumb", -1.0),
        ("q3", "rating", 3.0),  # neither
        ("q9", "thumb", 1.0),  # no answer
    )  # fmt: skip
    store.write([feedback(request, hour + 20, kind=kind, value=value) for request, kind, value in said])
    assert store.marks("assistant", hour, hour + HOUR) == [
        Marks(day, "assistant-v1-7c1f", "stable", "acme", "web", rated=3, good=1)
    ]
    assert store.marks("assistant", hour + 100, hour + HOUR) == []


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad"),
    [
        ("thumb", 1.0, 1, 0), ("thumb", -1.0, 0, 1), ("rating", 4.0, 1, 0), ("rating", 3.0, 0, 0), ("rating", 2.0, 0, 1),
        ("copy", None, 1, 0), ("retry", None, 0, 1), ("escalation", 1.0, 0, 1), ("comment", None, 0, 0), ("dwell", 9.0, 0, 0),
    ],
)  # fmt: skip
def test_the_database_takes_marks_as_the_program_does(
    store: Store, hour: float, kind: str, value: float | None, good: int, bad: int
) -> None:
    assert (is_good_mark(kind, value), is_bad_mark(kind, value)) == (bool(good), bool(bad))
    store.write([stable(hour, request_id="q"), feedback("q", hour, kind=kind, value=value)])
    found = store.marks("assistant", hour - 1, hour + 1)
    assert [(one.rated, one.good) for one in found] == ([(1, good)] if good or bad else [])
