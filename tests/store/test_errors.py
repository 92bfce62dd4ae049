"""A database that is locked, damaged, or gone: the right error in bounded time, and work goes on when it is back."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from services.store import StoreCorrupt, StoreUnavailable, database, migrate, open_store
from services.store.schema import observations
from tests.fakes.records import exposure, observation

FOREVER = 1e12


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "understudy.db"
    migrate(f"sqlite:///{path}")
    return path


def test_a_lock_held_by_another_process_is_unavailable_not_a_hang(
    file: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.2)
    store = open_store(f"sqlite:///{file}")
    request.addfinalizer(store.close)
    other = sqlite3.connect(file, isolation_level=None)
    request.addfinalizer(other.close)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="locked"):
        store.write([observation(1.0)])
    assert time.monotonic() - started < 1.5
    assert store.routes() == {}  # readers are not held up
    other.execute("ROLLBACK")
    store.write([observation(1.0)])


def test_a_damaged_file_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "understudy.db"
    path.write_bytes(b"not a database, but long enough to be read as the header of one " * 64)
    store = open_store(f"sqlite:///{path}")
    with pytest.raises(StoreCorrupt):
        store.ping()
    store.close()


@pytest.mark.integration
def test_two_processes_write_one_file_at_once(file: Path) -> None:
    url = f"sqlite:///{file}"
    program = """
import sys
from services.store import open_store
from tests.fakes.records import observation
store = open_store(sys.argv[1])
for start in range(0, 1000, 100):
    rows = range(start + 1, start + 101)
    store.write([observation(1.0, request_id=f"{n}", boot=boot, sequence=n) for n in rows for boot in [sys.argv[2]]])
store.close()
"""
    command = [sys.executable, "-c", program, url]
    both = [subprocess.Popen([*command, boot], cwd=Path(__file__).parents[2]) for boot in ("b1", "b2")]
    assert [process.wait(60) for process in both] == [0, 0]
    store = open_store(url)
    assert [(gap["boot"], gap["rows"], gap["missing"]) for gap in store.gaps()] == [("b1", 1000, 0), ("b2", 1000, 0)]
    # Both wrote the same request ids: each is there once.
    assert sum(point["requests"] for point in store.traffic("assistant", 0.0, 10.0, 60.0)) == 1000
    store.close()


@pytest.mark.integration
def test_a_stopped_postgresql_is_unavailable_and_a_started_one_goes_on(postgres_url: str, postgres_server: Any) -> None:
    migrate(postgres_url)
    store = open_store(postgres_url)
    store.write([exposure(1.0), observation(1.0, sequence=1)])
    postgres_server.stop()
    try:
        for _ in range(2):  # once on the pooled connection that died, once on a new one
            with pytest.raises(StoreUnavailable):
                store.write([observation(2.0, sequence=2)])
        with pytest.raises(StoreUnavailable):
            store.watermark()
        with pytest.raises(StoreUnavailable):
            migrate(postgres_url)
    finally:
        postgres_server.ensure_postgres_running()
    store.write([observation(2.0, sequence=2)])
    [unit] = store.closed_units("r1", (0.0, ""), FOREVER)
    assert len(unit.observations) == 2
    store.close()


@pytest.mark.integration
def test_a_connection_cut_in_the_middle_keeps_nothing(postgres_url: str) -> None:
    migrate(postgres_url)
    store = open_store(postgres_url)

    def cut() -> None:
        with store._database.write() as connection:
            store._insert(connection, observations, [observation(1.0)], 1.0)
            connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(StoreUnavailable):
        cut()
    assert store.traffic("assistant", 0.0, 10.0, 60.0) == []
    store.close()
