"""Experiments in the store: kept, found, pruned and erased with the machinery of rollouts."""

from __future__ import annotations

from dataclasses import replace

from services.store import ExperimentRow, Store
from tests.fakes.records import exposure, observation


def row(now: float, **changes: object) -> ExperimentRow:
    made = ExperimentRow("assistant:tone", "assistant", "tone", now, None, None, {"name": "tone"}, {"salt": "ab"})
    return replace(made, **changes)


def test_what_a_look_made_is_read_back_and_a_repeat_changes_nothing(store: Store, now: float) -> None:
    readings = [{"variant": "warm", "metric": "errors", "effect": 0.1}]
    for _ in range(2):
        store.commit_experiment(row(now), at=now, evidence={"units": [1.0, "u"]}, readings=readings)
    assert store.experiments("assistant") == [row(now)]
    assert store.experiments("other") == []
    assert store.evidence("assistant:tone") == {"units": [1.0, "u"]}
    assert store.readings("assistant:tone") == [{"at": now, **readings[0]}]
    assert store.rollouts() == []
    store.commit_experiment(row(now, ended_at=now + 1), at=now + 1)
    assert store.experiments() == [row(now, ended_at=now + 1)]
    assert store.evidence("assistant:tone") == {"units": [1.0, "u"]}


def test_rows_of_an_experiment_stay_until_it_has_finished(store: Store, now: float) -> None:
    old = now - 1_000
    store.commit_experiment(row(old), at=old, readings=[{"variant": "warm", "metric": "errors"}])
    store.write([exposure(old, rollout="assistant:tone", arm="warm")])
    store.write([observation(old, rollout="assistant:tone", arm="warm")])
    assert store.prune("assistant", now, now) == 0
    [unit] = store.closed_units("assistant:tone", (0.0, ""), now)
    assert (unit.exposure.arm, len(unit.observations)) == ("warm", 1)
    store.commit_experiment(row(old, ended_at=old, finished_at=now), at=now)
    assert store.prune("assistant", now, now) == 3
    assert store.experiments() != []


def test_a_user_is_erased_from_experiments_too(store: Store, now: float) -> None:
    store.commit_experiment(row(now), at=now)
    store.write([exposure(now - 100, rollout="assistant:tone", arm="warm")])
    store.write([observation(now - 100, rollout="assistant:tone", arm="warm")])
    assert store.erase_user("u1") == 2
    assert store.closed_units("assistant:tone", (0.0, ""), now) == []
