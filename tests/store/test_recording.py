"""Writing records: all or nothing, each once, and provably so."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.store import Record, Store, StoreError, StoreUnavailable
from services.store.streams import merge
from tests.fakes.records import exposure, feedback, observation

FOREVER = 1e12


def stored(store: Store) -> tuple[int, int, int]:
    """Units, their requests and the feedback on them, of rollout r1."""
    units = store.closed_units("r1", (0.0, ""), FOREVER, 1_000_000)
    return len(units), sum(len(unit.observations) for unit in units), sum(len(unit.feedback) for unit in units)


def traffic(now: float, units: int) -> list[Record]:
    """Of each unit an exposure, three requests and a thumb; sequences from 1."""
    batch: list[Record] = []
    for number in range(units):
        name = f"{number:032x}"
        requests = [observation(now + i, unit=name) for i in range(3)]
        batch += [exposure(now, unit=name), *requests, feedback(requests[0].request_id, now + 5)]
    return [msgspec.structs.replace(record, sequence=i) for i, record in enumerate(batch, start=1)]


def test_fields_come_back_as_written(store: Store, now: float) -> None:
    one = observation(
        now + 0.125, gap_mean=0.01, gap_max=0.5, tokens_in=3, client_request_id="mine", tenant="t", step=2
    )
    unit, said = exposure(now), feedback(one.request_id, now + 1, kind="comment", value=None, comment="schön 🎭")
    store.write([one, unit, said])
    [closed] = store.closed_units("r1", (0.0, ""), FOREVER)
    assert (closed.exposure, closed.observations, closed.feedback) == (unit, (one,), (said,))


def test_a_batch_may_be_repeated_in_any_parts(store: Store, now: float) -> None:
    batch = traffic(now, units=20)
    store.write(batch)
    store.write(batch)
    store.write(batch[10:50])
    assert stored(store) == (20, 60, 20)
    [gap] = store.gaps()
    assert (gap["rows"], gap["highest"], gap["missing"]) == (100, 100, 0)


def test_many_writers_of_the_same_records_store_each_once(store: Store, now: float) -> None:
    batch = traffic(now, units=40)
    parts = [batch[i : i + 25] for i in range(0, len(batch), 25)] * 3
    random.Random(7).shuffle(parts)

    def write(part: list[Record]) -> None:
        while True:
            try:
                return store.write(part)
            except StoreUnavailable:  # PostgreSQL ends a deadlock by refusing one side
                continue

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, parts))
    assert stored(store) == (40, 120, 40)
    [gap] = store.gaps()
    assert (gap["rows"], gap["missing"]) == (200, 0)


def test_a_refused_record_leaves_nothing_of_its_batch(store: Store, now: float) -> None:
    broken: Any = None
    with pytest.raises(StoreError) as refused:
        store.write([exposure(now), observation(now), observation(now, service=broken)])
    assert not isinstance(refused.value, StoreUnavailable)  # the recorder must not repeat it for ever
    assert stored(store) == (0, 0, 0)
    assert store.gaps() == []


def test_characters_a_database_cannot_hold_lose_no_record(store: Store, now: float) -> None:
    one = observation(now, client_request_id="a\0b")
    store.write([one])
    found = store.request(one.request_id)
    assert found is not None
    assert found.client_request_id == "a\ufffdb"


def test_lost_records_show_as_gaps_until_they_come(store: Store, now: float) -> None:
    batch = traffic(now, units=4)
    store.write([record for record in batch if record.sequence not in (3, 4, 9)])
    [gap] = store.gaps()
    assert (gap["rows"], gap["highest"], gap["missing"]) == (17, 20, 3)
    store.write([record for record in batch if record.sequence in (3, 9)])
    assert store.gaps()[0]["missing"] == 1


def test_gateway_processes_are_counted_apart(store: Store, now: float) -> None:
    store.write([observation(now, boot="b1", sequence=1), observation(now, boot="b2", sequence=2)])
    assert [(gap["boot"], gap["missing"]) for gap in store.gaps()] == [("b1", 0), ("b2", 1)]


def test_the_first_exposure_stays_and_another_arm_is_a_fault(store: Store, now: float) -> None:
    first = exposure(now, arm="candidate")
    store.write([first])
    store.write([exposure(now + 5, arm="candidate", gateway="g2")])
    assert store.assignment_faults("r1") == 0
    store.write(
        [
            exposure(now + 6, arm="control", gateway="g2"),
            exposure(now, unit="u2"),
            exposure(now, unit="u2", arm="control"),
        ]
    )
    assert store.assignment_faults("r1") == 2
    assert store.assignment_faults("r2") == 0
    [kept] = [u.exposure for u in store.closed_units("r1", (0.0, ""), FOREVER) if u.exposure.unit == "u1"]
    assert kept == first


def test_request_is_the_attempt_that_answered(store: Store, now: float) -> None:
    failed = observation(now, outcome="error", status=502)
    answered = msgspec.structs.replace(failed, attempt=1, outcome="ok", status=200, sequence=10_001)
    copied = msgspec.structs.replace(failed, attempt=2, kind="mirror", sequence=10_002)
    store.write([failed, answered, copied])
    assert store.request(failed.request_id) == answered
    assert store.request("unknown") is None


@given(st.lists(st.lists(st.integers(1, 60), max_size=20), max_size=8))
def test_merged_ranges_hold_just_the_numbers_received(batches: list[list[int]]) -> None:
    upto = 0
    ranges: list[list[int]] = []
    for batch in batches:
        upto, ranges = merge(upto, ranges, batch)
    held = set(range(1, upto + 1)).union(*(range(first, last + 1) for first, last in ranges))
    assert held == {number for batch in batches for number in batch}
    edges = [upto, *(edge for pair in ranges for edge in pair)]
    assert edges == sorted(edges)
    assert all(
        after > before + 1 for before, after in zip(edges[0::2], edges[1::2], strict=False)
    )  # nothing left to join
