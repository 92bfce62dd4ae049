"""A migrated SQLite store a test, empty or with a rollout under way."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.store import GatewayLease, RolloutRow, Store, migrate, open_store
from tests.fakes.rollout_rows import TTFT, HandClock, audit, gate, reading, route, row, target


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "empty.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def database(tmp_path: Path, empty_database: Path) -> Path:
    return Path(shutil.copy(empty_database, tmp_path / "understudy.db"))


@pytest.fixture
def url(database: Path) -> str:
    return f"sqlite:///{database}"


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def store(url: str, clock: HandClock) -> Iterator[Store]:
    opened = open_store(url, clock)
    yield opened
    opened.close()


@pytest.fixture
def running(store: Store, clock: HandClock) -> RolloutRow:
    """v3 in the second canary step: feedback looks bad, TTFT is undecided; one gateway obeys the newest route."""
    store.publish_route(route())
    clock.now += 10
    one = row(
        "r3", "3", started_at=clock.now, stage="canary", step=1, weight=50.0, stage_started_at=clock.now, gate=gate(0.91),
        counts={"usersControl": 70, "usersCandidate": 66, "pairs": 40, "judgements": 38, "inconsistent": 4, "unparsable": 2,
                "people": 9, "comparisons": 12, "comparisonTies": 3, "comparisonsInconsistent": 1, "ordered": 10, "candidateFirst": 6,
                "firstPreferred": 4,
                "feedbackControl": 30, "feedbackCandidate": 28},
        conditions=[{"type": "Waiting", "status": True, "reason": "AwaitingEvidence", "message": "ttft is not yet shown"}],
    )  # fmt: skip
    readings = [reading("feedback", e_harm=12.5, harmful=False), reading("ttft", **TTFT)]
    canary = route(candidate=target("3"), rollout="r3", salt="00", stage="canary", step=1, weight=5000)
    store.commit_look(
        one,
        evidence={},
        readings=readings,
        at=clock.now,
        audit=[audit("r3", "step", "StepPassed", "step 1 of 2 shows no harm", clock.now)],
        route=canary,
    )
    newest = store.route("assistant")
    assert newest is not None
    store.renew_lease(
        GatewayLease("g1", "b1", None, {"assistant": newest.version}, clock.now, clock.now + 1e9, 0, 0, 0)
    )
    clock.now += 30
    return one
