"""What closes: in one order whatever the batches, exactly within its times, and at a cost that does not grow with history."""

from __future__ import annotations

import random
import sqlite3
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, event
from sqlalchemy.engine import Engine

from services.store import ClosedUnit, MirroredPair, Past, Record, Store, is_bad_mark
from tests.fakes.records import exposure, feedback, observation

START = (0.0, "")
FOREVER = 1e12


def drain(store: Store, until: float, limit: int) -> list[ClosedUnit]:
    found: list[ClosedUnit] = []
    after = START
    while page := store.closed_units("r1", after, until, limit):
        found += page
        after = (page[-1].exposure.closes_at, page[-1].exposure.unit)
    return found


def test_order_does_not_depend_on_batches_nor_on_the_order_of_writing(store: Store, now: float) -> None:
    # Many units close at the same moment, with names that a server's language would order unlike bytes.
    units = [
        exposure(now + i // 5, unit=name)
        for i, name in enumerate(["b-1", "B2", "a", "a-b", "ab", "Z", "z", "é", "0", "_"])
    ]
    random.Random(3).shuffle(units)
    store.write(units)
    whole = drain(store, FOREVER, 100)
    assert [(u.exposure.closes_at, u.exposure.unit) for u in whole] == sorted((u.closes_at, u.unit) for u in units)
    for limit in (1, 3, 5):
        assert drain(store, FOREVER, limit) == whole


def test_until_includes_its_own_moment_and_the_cursor_excludes_its_unit(store: Store, now: float) -> None:
    store.write([exposure(now, unit="a"), exposure(now, unit="b"), exposure(now + 1, unit="c")])
    assert [u.exposure.unit for u in store.closed_units("r1", START, now + 15)] == ["a", "b"]
    assert [u.exposure.unit for u in store.closed_units("r1", (now + 15, "a"), now + 16)] == ["b", "c"]
    assert store.closed_units("r1", (now + 16, "c"), FOREVER) == []
    assert store.closed_units("other", START, FOREVER) == []


def test_a_unit_has_its_counted_live_requests_within_the_horizon(store: Store, now: float) -> None:
    first, last = observation(now), observation(now + 9.999)
    outside = [
        observation(now - 0.001),
        observation(now + 10),
        observation(now + 1, counted=False),
        observation(now + 1, kind="mirror", pair="p"),
        observation(now + 1, rollout="r2"),
        observation(now + 1, unit="u2"),
    ]
    store.write([last, *outside, first, exposure(now)])
    [unit] = store.closed_units("r1", START, FOREVER)
    assert unit.observations == (first, last)


def test_feedback_counts_until_the_unit_closes_and_once_for_two_attempts(store: Store, now: float) -> None:
    failed = observation(now, outcome="error")
    answered = msgspec.structs.replace(failed, attempt=1, outcome="ok", sequence=20_001)
    in_time = [feedback(failed.request_id, now + 15), feedback(failed.request_id, now + 2, kind="retry", value=1.0)]
    too_late, elsewhere = feedback(failed.request_id, now + 15.001), feedback("another request", now + 3)
    store.write([exposure(now), failed, answered, *in_time, too_late, elsewhere])
    [unit] = store.closed_units("r1", START, FOREVER)
    assert unit.observations == (failed, answered)
    assert unit.feedback == (in_time[1], in_time[0])


def test_a_unit_has_its_past_on_stable_up_to_its_exposure(store: Store, now: float) -> None:
    at = now - 100
    of_stable = {"arm": "stable", "rollout": None, "duration": 2.0}
    failed = observation(at - 500, **of_stable, outcome="error")
    slow = observation(at - 400, **of_stable, tokens_out=20)
    fast = observation(at - 300, **{**of_stable, "arm": "control", "rollout": "r0"}, tokens_out=40)
    fallback = msgspec.structs.replace(failed, attempt=1, outcome="ok", sequence=20_002)
    elsewhere = [
        observation(at - 1.9, **of_stable),  # still running at the exposure
        observation(at - 8 * 86_400, **of_stable),
        observation(at - 200, rollout="r0"),  # on another rollout's candidate
        observation(at - 200, **of_stable, outcome="client_error"),
        observation(at - 200, **of_stable, counted=False),
        observation(at - 200, **of_stable, service="another"),
        observation(at - 200, **of_stable, unit="u2"),
        observation(at - 200, **of_stable, kind="mirror", pair="p"),
        observation(at + 1),
    ]
    marks = [
        feedback(failed.request_id, at - 450),
        feedback(failed.request_id, at - 440, kind="retry", value=1.0),
        feedback(slow.request_id, at - 390, kind="rating", value=4.0),
        feedback(slow.request_id, at + 1, kind="escalation", value=1.0),  # after the exposure
    ]
    store.write([exposure(at), exposure(at, unit="u9"), failed, fallback, slow, fast, *elsewhere, *marks])
    for limit in (1, 10):
        known, unknown = drain(store, FOREVER, limit)
        assert known.past == Past(
            requests=3, failed=1, bad=1, retries=1, escalations=0, tokens_per_second=10.0, rating=4.0
        )
        assert unknown.past is None


@pytest.mark.parametrize(
    ("kind", "value"),
    [("thumb", -1.0), ("thumb", 1.0), ("rating", 2.0), ("rating", 3.0), ("retry", 1.0), ("escalation", 1.0)],
)
def test_a_bad_mark_of_the_past_is_one_of_the_present(store: Store, now: float, kind: Any, value: float) -> None:
    before = observation(now - 60, arm="stable", rollout=None)
    store.write([exposure(now), before, feedback(before.request_id, now - 50, kind=kind, value=value)])
    [unit] = store.closed_units("r1", START, FOREVER)
    assert unit.past is not None
    assert unit.past.bad == is_bad_mark(kind, value)


def mirrored(now: float, pair: str, at: float, arm: str = "candidate") -> Any:
    return observation(now + at, kind="mirror", pair=pair, arm=arm, unit=f"unit of {pair}")


def test_pairs_close_after_their_earliest_row(store: Store, now: float) -> None:
    rows = [
        mirrored(now, "p1", 1.0, "control"),
        mirrored(now, "p1", 0.5),
        mirrored(now, "p2", 3.0),
        mirrored(now, "p0", 3.0, "control"),
        mirrored(now, "p3", 3.1),
    ]
    store.write([*rows, observation(now + 1), observation(now + 1, kind="mirror", pair="px", rollout="r2")])
    found = store.mirrored_pairs("r1", START, now + 8.0, settle=5.0)
    assert found == [
        MirroredPair("p1", "unit of p1", now + 5.5, candidate=rows[1], stable=rows[0]),
        MirroredPair("p0", "unit of p0", now + 8.0, candidate=None, stable=rows[3]),
        MirroredPair("p2", "unit of p2", now + 8.0, candidate=rows[2], stable=None),
    ]


def test_pairs_come_once_whatever_the_windows(store: Store, now: float) -> None:
    generator = random.Random(5)
    rows = []
    for number in range(60):
        at = generator.uniform(0, 20)
        rows += [
            mirrored(now, f"p{number:02}", at),
            mirrored(now, f"p{number:02}", at + generator.uniform(0, 6), "control"),
        ]
    store.write(rows)
    whole = store.mirrored_pairs("r1", START, FOREVER, 2.5)
    assert len(whole) == 60
    assert all(pair.candidate and pair.stable for pair in whole)
    pieces: list[MirroredPair] = []
    after = START
    for until in [now + tenth / 10 for tenth in range(20, 300, 7)]:
        while page := store.mirrored_pairs("r1", after, until, 2.5, limit=4):
            pieces += page
            after = (page[-1].closes_at, page[-1].pair)
    assert pieces == whole


def test_late_rows_are_those_that_would_have_counted(store: Store, now: float) -> None:
    kept = observation(now + 1)
    store.write([exposure(now), kept])
    look = store.now()
    assert store.late_rows("r1", look, now + 15) == 0
    store.write(
        [
            observation(now + 2),  # late
            observation(now + 11),  # after the horizon
            observation(now + 2, counted=False),
            observation(now + 2, unit="not exposed"),
            feedback(kept.request_id, now + 3),  # late
            feedback(kept.request_id, now + 16),  # after closing
            exposure(now - 1, unit="u9"),  # late
            exposure(now + 1, unit="u8"),  # closes later
        ]
    )
    assert store.late_rows("r1", look, now + 15) == 3
    assert store.late_rows("r1", look, now + 14) == 1
    assert store.late_rows("r1", store.now() + 1, now + 15) == 0
    assert store.late_rows("unknown", 0.0, FOREVER) == 0


@pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)
def test_a_look_costs_what_is_new_not_what_is_old(store: Store, now: float) -> None:
    """Counted in instructions of SQLite's virtual machine, which are the same on every machine."""
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    def count(connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        raw = connection.connection.dbapi_connection
        assert isinstance(raw, sqlite3.Connection)
        raw.set_progress_handler(step, 100)

    def look(moment: float) -> int:
        nonlocal steps
        stored_before = store.now()
        batch = units_of_a_minute(moment)
        store.write(batch)
        steps = 0
        event.listen(Engine, "before_cursor_execute", count)
        try:
            assert len(store.closed_units("r1", (moment, ""), FOREVER)) == 20
            assert len(store.mirrored_pairs("r1", (moment, ""), FOREVER, 15.0)) == 20
            assert store.late_rows("r1", stored_before, FOREVER) == 80
        finally:
            event.remove(Engine, "before_cursor_execute", count)
        return steps

    def units_of_a_minute(moment: float) -> list[Record]:
        batch: list[Record] = []
        for number in range(20):
            name, at = f"{moment}-{number}", moment + number
            live = [observation(at, unit=name), observation(at + 1, unit=name)]
            copy = observation(at, kind="mirror", pair=name, unit=name)
            batch += [exposure(at, unit=name), *live, copy, feedback(live[0].request_id, at + 2)]
        return batch

    first = look(now)
    for minute in range(1, 60):
        store.write(units_of_a_minute(now + 60 * minute))
    assert look(now + 3600) < 1.5 * first
