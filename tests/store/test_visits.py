"""Users where there are no arms: each once, in one order, as soon as their first answer has ended."""

from __future__ import annotations

from typing import Any

from services.store import ClosedUnit, Store
from tests.fakes.records import feedback, observation

START = (0.0, "")
SERVED: dict[str, Any] = {"arm": "stable", "rollout": None, "revision": "assistant-v2-7c1f"}


def drain(store: Store, since: float, until: float, horizon: float, settle: float, limit: int) -> list[ClosedUnit]:
    found: list[ClosedUnit] = []
    after = START
    while page := store.first_visits("assistant", "assistant-v2-7c1f", since, after, until, horizon, settle, limit):
        found += page
        after = (page[-1].exposure.closes_at, page[-1].exposure.unit)
    return found


def test_a_user_visits_once_and_looks_change_nothing(store: Store, now: float) -> None:
    at = now - 1000
    slow = observation(at + 1, unit="u1", duration=200.0, **SERVED)
    quick = observation(at + 2, unit="u1", duration=3.0, **SERVED)
    others = [observation(at + 3 * i, unit=f"v{i:02}", **SERVED) for i in range(20)]
    again = [observation(at + 300 + i, unit=f"v{i:02}", outcome="error", **SERVED) for i in range(20)]
    ignored = [
        observation(at - 1, unit="w1", **SERVED),
        observation(at + 1, unit="w2", **{**SERVED, "revision": "assistant-v1"}),
        observation(at + 1, unit="w3", **{**SERVED, "arm": "candidate"}),
        observation(at + 1, unit="w4", **SERVED, counted=False),
        observation(at + 1, unit="w5", **SERVED, kind="mirror", pair="p"),
        observation(at + 1, unit="w6", **SERVED, service="another"),
    ]
    store.write([slow, quick, *others, *again, *ignored])
    whole = drain(store, at, now, 0.0, 0.0, 100)
    assert [visit.exposure.unit for visit in whole if visit.exposure.unit < "v"] == ["u1"]
    assert next(visit for visit in whole if visit.exposure.unit == "u1").observations == (quick,)
    assert len(whole) == 21
    assert all(visit.observations[0].outcome == "ok" for visit in whole)
    assert [v.exposure.closes_at for v in whole] == sorted(v.exposure.closes_at for v in whole)
    assert drain(store, at, now, 0.0, 0.0, 3) == whole
    looks, after = [], START
    for until in range(int(at), int(now) + 1, 7):
        page = store.first_visits("assistant", "assistant-v2-7c1f", at, after, float(until), 0.0, 0.0)
        looks += page
        after = (page[-1].exposure.closes_at, page[-1].exposure.unit) if page else after
    assert looks == whole


def test_what_is_said_within_the_horizon_counts(store: Store, now: float) -> None:
    at = now - 1000
    first, second, later = (observation(at + offset, **SERVED) for offset in (0, 50, 200))
    marks = [feedback(second.request_id, at + 60), feedback(first.request_id, at + 400)]
    store.write([first, second, later, *marks])
    [visit] = drain(store, at, now, 100.0, 20.0, 10)
    assert (visit.observations, visit.feedback) == ((first, second), (marks[0],))
    assert visit.exposure.closes_at == at + first.duration + 120.0
    assert drain(store, at, at + 100, 100.0, 20.0, 10) == []


def test_the_history_has_each_user_once_an_hour(store: Store, now: float) -> None:
    hour = now // 3600 * 3600 - 7200
    rows = [
        observation(hour + minute * 60, **{**SERVED, "arm": arm})
        for minute, arm in ((1, "stable"), (5, "control"), (61, "stable"))
    ]
    store.write([*rows, observation(hour + 100, **SERVED, unit="u2"), observation(hour + 100, unit="u3")])
    found = store.visits_before(
        "assistant", "assistant-v2-7c1f", hour, now + 60, 600.0, 60.0
    )  # also by the time of storing
    seen = sorted((visit.exposure.unit, len(visit.observations)) for visit in found.visits)
    assert seen == [("u1", 1), ("u1", 2), ("u2", 1)]
    before = store.visits_before("assistant", "assistant-v2-7c1f", hour, now - 10_000, 600.0, 60.0)
    assert before.visits == ()


def test_a_busy_hour_is_read_in_part(store: Store, now: float) -> None:
    hour = now // 3600 * 3600 - 7200
    rows = [observation(hour + i, **SERVED, unit=f"v{i:04}") for i in range(1500)]
    store.write(rows)
    found = store.visits_before("assistant", "assistant-v2-7c1f", hour, now + 60, 600.0, 60.0)
    assert len(found.visits) == 1000
    assert found.share == {int(hour // 3600): 999 / 3600}
