"""The recorder and its journal on their own, with a store that can be away or refuse a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from services.gateway.journal import Journal, records_in
from services.gateway.recorder import Recorder
from services.gateway.settings import RecorderSettings
from services.store import Observation, Store, StoreError, StoreUnavailable
from services.store.records import Record


@dataclass
class FakeStore:
    """Keeps what is written, unless told otherwise."""

    rows: list[Record] = field(default_factory=list)
    ended: list[tuple[str, str]] = field(default_factory=list)
    away: bool = False
    refused: set[int] = field(default_factory=set)

    def write(self, batch: Sequence[Record]) -> None:
        if self.away:
            raise StoreUnavailable("away")
        if any(record.sequence in self.refused for record in batch):
            raise StoreError("a row breaks the schema")
        self.rows.extend(batch)

    def end_lease(self, gateway: str, boot: str) -> None:
        if self.away:
            raise StoreUnavailable("away")
        self.ended.append((gateway, boot))

    @property
    def sequences(self) -> list[int]:
        return [row.sequence for row in self.rows]


def row(sequence: int, boot: str = "boot-1", at: float = 100.0) -> Observation:
    return Observation(
        request_id=f"{boot}-{sequence}", service="assistant", revision="r", arm="stable", unit="u", route_version=1, started_at=at,
        streamed=False, duration=0.5, outcome="ok", status=200, gateway="g", boot=boot, sequence=sequence,
    )  # fmt: skip


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


Make = Callable[..., Recorder]


@pytest.fixture
def make(store: FakeStore, tmp_path: Path) -> Iterator[Make]:
    with ThreadPoolExecutor(1) as executor:

        def build(boot: str = "boot-1", now: Callable[[], float] = lambda: 100.0, **settings: Any) -> Recorder:
            return Recorder(
                cast(Store, store), tmp_path, RecorderSettings(**settings), executor,
                gateway="g", boot=boot, store_time=now,
            )  # fmt: skip

        yield build


def fill(recorder: Recorder, count: int) -> None:
    for _ in range(count):
        recorder.record(row(recorder.next_sequence(), recorder.boot))


async def test_records_reach_the_store_in_order_and_leave_no_file(make: Make, store: FakeStore, tmp_path: Path) -> None:
    recorder = make(batch_rows=3)
    fill(recorder, 10)
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    await recorder.close(5.0)
    assert store.sequences == list(range(1, 11))
    assert store.ended == [("g", "boot-1")]
    assert list(tmp_path.glob("*.jsonl")) == []


async def test_while_the_store_is_away_memory_is_bounded_and_nothing_is_lost(
    make: Make, store: FakeStore, tmp_path: Path
) -> None:
    recorder = make(batch_rows=4, memory_rows=10, segment_bytes=2_000)
    store.away = True
    fill(recorder, 35)
    assert not await recorder.flush()
    assert (recorder.queued, recorder.spilled, recorder.dropped) == (10, 25, 0)
    store.away = False
    assert await recorder.flush()
    assert store.sequences == list(range(1, 36))
    fill(recorder, 5)  # memory again
    assert recorder.queued == 5
    assert await recorder.flush()
    assert store.sequences == list(range(1, 41))
    assert len(list(tmp_path.glob("*.jsonl"))) <= 1


async def test_lag_is_the_age_of_the_oldest_record_that_the_store_does_not_have(make: Make, store: FakeStore) -> None:
    now = [100.0]
    recorder = make(now=lambda: now[0], memory_rows=2)
    assert recorder.lag == 0
    store.away = True
    fill(recorder, 1)
    now[0] = 130.0
    fill(recorder, 5)
    assert not await recorder.flush()
    assert recorder.lag == 30
    store.away = False
    assert await recorder.flush()
    assert recorder.lag == 0


async def test_records_that_come_while_the_disk_is_read_stay_in_order(make: Make, store: FakeStore) -> None:
    recorder = make(batch_rows=4, memory_rows=4)
    fill(recorder, 20)
    written = store.write

    def write_and_go_on(batch: Sequence[Record]) -> None:
        written(batch)
        if recorder.recorded < 60:
            fill(recorder, 3)

    store.write = write_and_go_on  # type: ignore[method-assign]
    assert await recorder.flush()
    assert store.sequences == list(range(1, recorder.recorded + 1))
    assert recorder.recorded >= 60


async def test_beyond_the_disk_bound_records_are_counted_as_dropped(make: Make, store: FakeStore) -> None:
    recorder = make(memory_rows=2, journal_bytes=2_000)
    store.away = True
    fill(recorder, 20)
    kept = 2 + recorder.spilled
    assert recorder.dropped == 20 - kept > 0
    store.away = False
    assert await recorder.flush()
    assert store.sequences == list(range(1, kept + 1))
    assert recorder.lease({}, 200.0, seconds=1.0, address=None).dropped == recorder.dropped


async def test_a_row_that_the_store_refuses_holds_up_no_other(make: Make, store: FakeStore) -> None:
    recorder = make()
    store.refused = {3, 7}
    fill(recorder, 10)
    assert await recorder.flush()
    assert store.sequences == [1, 2, 4, 5, 6, 8, 9, 10]
    assert recorder.dropped == 2


async def test_the_lease_says_how_far_the_store_has_everything(make: Make, store: FakeStore) -> None:
    recorder = make()
    assert (
        recorder.lease({}, 200.0, seconds=1.0, address=None).complete_through == 0.0
    )  # earlier boots not yet replayed
    await recorder.flush()
    assert recorder.lease({}, 200.0, seconds=1.0, address=None).complete_through == 200.0
    fill(recorder, 1)
    lease = recorder.lease({"assistant": 3}, 200.0, seconds=120.0, address="http://a")
    assert (lease.complete_through, lease.lease_until, lease.recorded) == (100.0, 320.0, 1)


async def test_what_an_earlier_boot_left_is_replayed_once(make: Make, store: FakeStore, tmp_path: Path) -> None:
    lines = [msgspec.json.encode(row(number, "boot-0")) + b"\n" for number in range(1, 4)]
    (tmp_path / "boot-0.000001.jsonl").write_bytes(b"".join(lines) + b"not json\n" + lines[0][:40])
    recorder = make()
    fill(recorder, 1)
    store.away = True
    assert not await recorder.flush()
    store.away = False
    assert await recorder.flush()
    assert [(record.boot, record.sequence) for record in store.rows] == [
        ("boot-0", 1),
        ("boot-0", 2),
        ("boot-0", 3),
        ("boot-1", 1),
    ]
    assert store.ended == [("g", "boot-0")]
    assert [path.name for path in tmp_path.glob("boot-0*")] == []


def test_a_torn_line_is_never_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, "b", segment_bytes=10_000, total_bytes=100_000)
    import os

    write = os.write
    assert journal.append(msgspec.json.encode(row(1)) + b"\n", 1)
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:20]))
    assert not journal.append(msgspec.json.encode(row(2)) + b"\n", 2)
    monkeypatch.undo()
    assert journal.append(msgspec.json.encode(row(3)) + b"\n", 3)
    assert [record.sequence for path in sorted(tmp_path.glob("*.jsonl")) for record in records_in(path)] == [1, 3]
    assert [record.sequence for record in journal.read(1)] == [3]
    journal.close(0)
