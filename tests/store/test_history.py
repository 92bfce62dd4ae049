"""Summaries: what a baseline counts, and series that add up to the rows."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from services.store import Observation, Store, is_bad_mark
from tests.fakes.records import feedback, observation


def stable(at: float, **changes: Any) -> Observation:
    return observation(at, **{"arm": "stable", "revision": "assistant-v1-7c1f", "rollout": None, **changes})


@pytest.mark.parametrize(
    ("kind", "value", "bad"),
    [("thumb", -1.0, True), ("thumb", 1.0, False), ("thumb", None, False), ("rating", 2.0, True), ("rating", 3.0, False),
     ("retry", 1.0, True), ("escalation", 1.0, True), ("copy", 1.0, False), ("dwell", 0.1, False), ("comment", None, False)],
)  # fmt: skip
def test_bad_marks(kind: str, value: float | None, bad: bool) -> None:
    assert is_bad_mark(kind, value) is bad


def test_baseline_counts_units_over_their_horizon(store: Store, now: float) -> None:
    past = now - 1000
    bad = stable(past, unit="bad", ttft=0.3)
    later = stable(past + 11, unit="good", outcome="error")  # after the unit's horizon
    store.write(
        [
            bad,
            stable(past + 1, unit="good", arm="control", ttft=0.1, duration=4.0),
            later,
            stable(past + 2, unit="failing", outcome="error", ttft=None),
            stable(past + 3, unit="failing", streamed=False, ttft=None),
            stable(past, unit="candidate's fallback", arm="candidate"),
            stable(past, unit="too heavy", counted=False),
            stable(past, unit="other revision", revision="assistant-v0-0000"),
            stable(past - 50, unit="before"),
            stable(now, unit="not over yet"),
            feedback(bad.request_id, past + 9.9),
            feedback(later.request_id, past + 12),
        ]
    )
    found = store.baseline("assistant", "assistant-v1-7c1f", past - 1, 10.0)
    assert found == {
        "units": 3,
        "requests": 4,
        "failure_rate": pytest.approx(1 / 3),
        "bad_feedback_rate": pytest.approx(1 / 3),
        "ttft_p50": pytest.approx(0.2),
        "tokens_per_second": pytest.approx((40 + 40 + 40) / (2 + 4 + 2)),
        "since": past - 1,
    }


def test_a_baseline_without_history_has_no_numbers(store: Store, now: float) -> None:
    found = store.baseline("assistant", "assistant-v1-7c1f", now - 1000, 10.0)
    assert found["units"] == 0
    rates = [found[name] for name in ("failure_rate", "bad_feedback_rate", "ttft_p50", "tokens_per_second")]
    assert rates == [None] * 4


def test_series_per_bucket_and_arm(store: Store, now: float) -> None:
    start = now // 10 * 10
    first = observation(start + 1, ttft=0.2)
    again = msgspec.structs.replace(first, attempt=1, ttft=0.4, sequence=30_001)
    store.write(
        [
            first,
            again,
            observation(start + 9, outcome="error", ttft=None, tokens_out=None),
            observation(start + 12, arm="control", tokens_out=10),
            observation(start + 3, kind="mirror", pair="p"),
            observation(start + 3, rollout="r2"),
            feedback(first.request_id, start + 11),
            feedback(first.request_id, start + 12, value=1.0),
            feedback(first.request_id, start + 13, kind="comment", value=None),
        ]
    )
    found = {(point["at"] - start, point["arm"]): point for point in store.series("r1", 10.0)}
    assert set(found) == {(0, "candidate"), (10, "candidate"), (10, "control")}
    numbers = ("requests", "errors", "ttft_p50", "tokens_per_second", "thumbs_up", "thumbs_down")
    assert [found[0, "candidate"][name] for name in numbers] == [3, 1, pytest.approx(0.3), 20.0, 0, 0]
    assert [found[10, "candidate"][name] for name in numbers] == [0, 0, None, None, 1, 1]
    assert [found[10, "control"][name] for name in numbers] == [1, 0, 0.1, 5.0, 0, 0]


def test_whether_anybody_asked(store: Store, now: float) -> None:
    store.write([observation(now - 5), observation(now, kind="mirror", pair="p"), observation(now, service="other")])
    assert store.asked_since("assistant", now - 5)
    assert not store.asked_since("assistant", now - 4.9)


def test_first_tokens_of_stables_engine(store: Store, now: float) -> None:
    store.write(
        [
            stable(now - 5, ttft=0.1),
            stable(now - 4, ttft=0.2),
            stable(now - 9, ttft=0.3),
            stable(now - 3, ttft=None, outcome="error"),
            stable(now - 3, streamed=False),
            observation(now - 3, arm="candidate", ttft=0.4),
            observation(now - 3, kind="mirror", pair="p"),
        ]
    )
    assert store.first_tokens("assistant", now - 6) == [(now - 4, 0.2), (now - 5, 0.1)]
    assert store.first_tokens("assistant", now - 6, limit=1) == [(now - 4, 0.2)]


def test_traffic_per_bucket_and_revision(store: Store, now: float) -> None:
    start = now // 10 * 10
    store.write(
        [
            observation(start),
            observation(start + 9.9, outcome="error"),
            stable(start + 5),
            observation(start + 10),
            observation(start + 5, kind="mirror", pair="p"),
            observation(start + 5, service="other"),
            observation(start - 1),
            observation(start + 20),
        ]
    )
    found = [tuple(point.values()) for point in store.traffic("assistant", start, start + 20, 10.0)]
    assert found == [
        (start, "assistant-v1-7c1f", 1, 0, 1, 0),
        (start, "assistant-v2-7c1f", 2, 1, 1, 1),
        (start + 10, "assistant-v2-7c1f", 1, 0, 1, 0),
    ]
