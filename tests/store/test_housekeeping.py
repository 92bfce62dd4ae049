"""Forgetting: one user wholly, the old by age, and nothing that a running rollout needs."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.routing import Route, Target
from services.store import (
    AuditEntry,
    Command,
    GatewayLease,
    JudgeMaterial,
    Judgement,
    RolloutRow,
    Store,
    housekeeping,
)
from tests.fakes.records import exposure, feedback, observation

FOREVER = 1e12
STABLE = Target(revision="assistant-v1-7c1f", version="1", addresses=("http://127.0.0.1:1/v1",), model="m")


def user(now: float, unit: str, **changes: Any) -> list[Any]:
    request = observation(now, unit=unit, **changes)
    named = {"rollout": changes.get("rollout", "r1"), "unit": unit}
    return [
        exposure(now, **named),
        exposure(now, **named, arm="control"),
        request,
        feedback(request.request_id, now + 1),
    ]


def test_a_user_is_erased_from_every_table(store: Store, now: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "_CHUNK", 2)  # so that more rows than one transaction takes are few
    store.write(
        [*user(now, "u1"), *user(now, "u2"), *[observation(now + i, unit="u1", rollout=None) for i in range(5)]]
    )
    for unit in ("u1", "u2"):
        store.put_judge_material([JudgeMaterial(f"open {unit}", "r1", unit, b"x", now)])
        store.put_judgements([Judgement(f"judged {unit}", "r1", unit, 1.0, 0.0, "judge", now, 0)])
    assert store.erase_user("u1") == 11
    [left] = store.closed_units("r1", (0.0, ""), FOREVER)
    assert (left.exposure.unit, len(left.observations), len(left.feedback)) == ("u2", 1, 1)
    assert store.assignment_faults("r1") == 1
    assert [one.unit for one in store.judge_material("r1", 10)] == ["u2"]
    assert [one.unit for one in store.judgements("r1", 0)] == ["u2"]
    assert sum(point["requests"] for point in store.traffic("assistant", 0.0, FOREVER, 60.0)) == 1
    assert store.erase_user("u1") == 0
    assert store.gaps()[0]["missing"] >= 0  # the proof of no loss outlives the rows


def test_old_rows_go_but_not_those_of_a_running_rollout(store: Store, now: float) -> None:
    old = now - 1000
    for id, finished_at in (("done", old + 50), ("running", None)):
        row = RolloutRow(id, "assistant", "m", "2", "v2", "canary", None, None, old, finished_at, {}, {})
        store.commit_look(row, evidence=None, readings=[{"metric": "ttft"}], at=old)
    store.publish_route(Route(service="assistant", version=0, stable=STABLE))
    store.write(
        [*user(old, "u1", rollout="done"), *user(old, "u2", rollout="running"), *user(now, "u3", rollout="done")]
    )
    store.write([observation(old, rollout=None)])
    store.append_audit([AuditEntry(old, "assistant", "done", "me", "did", "Why", "", {})])
    store.put_judge_material([JudgeMaterial("p", "running", "u2", b"x", now - 3601)])
    store.add_command(Command("open", "assistant", None, "pause", "me", "", old))
    store.renew_lease(GatewayLease("g1", "b0", None, {}, old, old, 0, 0, 0))
    # The request outside, u1's exposure, fault and request, a reading, the lease, the material; u1's thumb was stored just now.
    assert store.prune("assistant", now - 500, old) == 7
    assert [u.exposure.unit for u in store.closed_units("done", (0.0, ""), FOREVER)] == ["u3"]
    [kept] = store.closed_units("running", (0.0, ""), FOREVER)
    assert (len(kept.observations), len(kept.feedback)) == (1, 1)
    assert (store.readings("done"), len(store.readings("running"))) == ([], 1)
    assert len(store.rollouts()) == 2
    assert len(store.audit()) == 1
    assert store.route("assistant") is not None
    assert [one.id for one in store.commands("assistant")] == ["open"]
    assert store.prune("assistant", now - 500, old) == 0
    assert store.prune("assistant", now - 500, now) == 1
    assert store.audit() == []


def test_the_newest_route_is_never_old(store: Store) -> None:
    for weight in (0, 100):
        store.publish_route(Route(service="assistant", version=0, stable=STABLE, weight=weight))
    assert store.prune("assistant", store.now() + 1000, 0.0) == 1
    assert [route.version for _, route in store.route_history("assistant")] == [2]
    assert store.publish_route(Route(service="assistant", version=0, stable=STABLE, weight=7)).version == 3


def test_one_service_is_pruned_by_its_own_age(store: Store, now: float) -> None:
    for service in ("assistant", "other"):
        row = RolloutRow(f"r-{service}", service, "m", "2", "v2", "finished", None, None, now - 900, now - 800, {}, {})
        store.commit_look(row, evidence=None, readings=[{"metric": "ttft"}], at=now - 900)
        store.append_audit([AuditEntry(now - 900, service, None, "me", "did", "Why", "", {})])
    assert store.prune("assistant", now - 500, now - 500) == 2
    assert (store.readings("r-assistant"), len(store.readings("r-other"))) == ([], 1)
    assert [entry.service for entry in store.audit()] == ["other"]
