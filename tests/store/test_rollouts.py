"""The controller's memory: a look is stored whole or not at all, and repeating it changes nothing."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from services.common.routing import Route, Target
from services.store import (
    PEOPLE,
    AuditEntry,
    Command,
    JudgeMaterial,
    Judgement,
    Preference,
    RolloutRow,
    Store,
    StoreError,
)

STABLE = Target(revision="assistant-v1-7c1f", version="1", addresses=("http://127.0.0.1:1/v1",), model="m")
UNWRITABLE: Any = object()
ROUTE = Route(service="assistant", version=0, stable=STABLE)


def row(id: str = "r1", **changes: Any) -> RolloutRow:
    fields: dict[str, Any] = {
        "id": id,
        "service": "assistant",
        "model": "assistant-model",
        "version": "2",
        "revision": "assistant-v2-7c1f",
        "stage": "canary",
        "verdict": None,
        "reason": None,
        "started_at": 100.0,
        "finished_at": None,
        "spec": {"alpha": 0.05},
        "status": {"step": 1},
    }
    return RolloutRow(**{**fields, **changes})


def entry(at: float = 100.0, **changes: Any) -> AuditEntry:
    fields: dict[str, Any] = {
        "at": at,
        "service": "assistant",
        "rollout": "r1",
        "actor": "controller",
        "action": "advance",
        "reason": "EvidenceIn",
        "message": "step 1",
        "evidence": {"e": math.inf},
    }
    return AuditEntry(**{**fields, **changes})


def contents(store: Store) -> tuple[Any, ...]:
    return (
        store.rollouts(),
        store.evidence("r1"),
        store.readings("r1"),
        store.audit(),
        [route for _, route in store.route_history("assistant")],
    )


def test_a_look_is_stored_whole(store: Store) -> None:
    evidence = {"waiting": [math.inf, 0.1 + 0.2, -0.0], "n": 2**60}
    readings = [
        {"metric": "ttft", "step": 1, "e_harm": 1.5},
        {"metric": "errors", "step": 1, "at": 99.0, "stage": "rehearsal"},
    ]
    store.commit_look(row(), evidence=evidence, readings=readings, at=101.0, audit=[entry()], route=ROUTE)
    assert store.rollout("r1") == row()
    assert store.evidence("r1") == evidence
    assert store.readings("r1") == [
        {"at": 99.0, "stage": "rehearsal", "metric": "errors", "step": 1},
        {"at": 101.0, "stage": "canary", "metric": "ttft", "step": 1, "e_harm": 1.5},
    ]
    [audited] = store.audit()
    assert audited.id is not None
    assert audited.evidence == {"e": math.inf}
    published = store.route("assistant")
    assert published is not None
    assert published.version == 1


def test_a_repeated_look_changes_nothing(store: Store) -> None:
    for _ in range(2):
        store.commit_look(
            row(), evidence={"n": 1}, readings=[{"metric": "ttft"}], at=101.0, audit=[entry()], route=ROUTE
        )
        once = contents(store)
    assert contents(store) == once
    assert [len(part) for part in once] == [1, 1, 1, 1, 1]


def test_the_next_look_replaces_the_row_and_keeps_evidence_where_there_is_none(store: Store) -> None:
    store.commit_look(row(), evidence={"n": 1}, at=101.0)
    ended = row(
        stage="finished", verdict="abort", reason="Harm", finished_at=102.0, status={"step": 2}, expected="abort"
    )
    store.commit_look(ended, evidence=None, at=102.0, audit=[entry(), entry(102.0)])
    assert store.rollout("r1") == ended
    assert store.evidence("r1") == {"n": 1}
    assert [one.at for one in store.audit()] == [100.0, 102.0]


@pytest.mark.parametrize(
    "fault",
    [
        {"readings": [{"metric": "ttft"}, {"metric": None}]},  # refused by the database
        {"audit": [entry(), entry(evidence={"what": UNWRITABLE})]},  # cannot be written as JSON
        {"route": Route(service="assistant", version=0, stable=STABLE, salt=UNWRITABLE)},
    ],
    ids=["reading", "audit", "route"],
)
def test_a_fault_in_the_middle_of_a_look_leaves_nothing_of_it(store: Store, fault: dict[str, Any]) -> None:
    store.commit_look(row(), evidence={"n": 1}, readings=[{"metric": "ttft"}], at=101.0, audit=[entry()], route=ROUTE)
    before = contents(store)
    look: dict[str, Any] = {"readings": [{"metric": "ttft"}], "audit": [entry(102.0)], "route": None}
    with pytest.raises((StoreError, TypeError)):
        store.commit_look(row(stage="watch"), evidence={"n": 2}, at=102.0, **{**look, **fault})
    assert contents(store) == before


def test_rollouts_come_newest_first(store: Store) -> None:
    for number in range(4):
        service = "assistant" if number < 3 else "other"
        store.commit_look(row(f"r{number}", service=service, started_at=100.0 + number), evidence=None, at=101.0)
    assert [one.id for one in store.rollouts()] == ["r3", "r2", "r1", "r0"]
    assert [one.id for one in store.rollouts("assistant", limit=2)] == ["r2", "r1"]
    assert store.rollouts("unknown") == []
    assert store.rollout("unknown") is None
    assert store.evidence("unknown") is None


def test_audit_keeps_the_newest_and_ignores_repeats(store: Store) -> None:
    entries = [entry(100.0 + i, rollout="r1" if i % 2 else None, message=f"{i}") for i in range(6)]
    store.append_audit(entries)
    store.append_audit(entries[2:4])
    assert [one.message for one in store.audit("assistant")] == ["0", "1", "2", "3", "4", "5"]
    assert [one.message for one in store.audit(rollout="r1")] == ["1", "3", "5"]
    assert [one.message for one in store.audit(limit=2)] == ["4", "5"]
    assert store.audit("other") == []


def test_a_command_is_answered_once(store: Store) -> None:
    commands = [Command(f"c{i}", "assistant", "r1", "abort", "me", "slow", 100.0 - i) for i in range(3)]
    for command in [*commands, commands[0]]:
        store.add_command(command)
    assert [one.id for one in store.commands("assistant")] == ["c2", "c1", "c0"]
    store.answer_command("c1", "aborted")
    store.answer_command("c1", "again")
    assert [one.id for one in store.commands("assistant")] == ["c2", "c0"]
    answered = store.commands("assistant", pending=False)[1]
    assert answered.answer == "aborted"
    assert answered.handled_at is not None
    assert store.commands("other") == []


def material(pair: str, at: float) -> JudgeMaterial:
    return JudgeMaterial(pair, "r1", f"unit of {pair}", b"\x00\xff" + pair.encode(), at)


def judgement(pair: str, candidate: float = 1.0) -> Judgement:
    return Judgement(pair, "r1", f"unit of {pair}", candidate, 0.5, "exactMatch", 100.0, sequence=0)


def test_peoples_words_are_numbered_among_the_judgements(store: Store, now: float) -> None:
    store.put_judgements([judgement("p1")])
    mine = Preference(
        pair="ab:stable", rollout="r1", unit="ada", candidate=0.5, at=now, gateway="g", boot="b", sequence=1
    )
    store.write([mine])
    store.write([mine, msgspec.structs.replace(mine, candidate=1.0, sequence=2)])  # the first stays
    store.put_judgements([judgement("p2")])
    found = store.judgements("r1", 0)
    assert [(one.pair, one.candidate, one.judge) for one in found] == [
        ("p1", 1.0, "exactMatch"), ("ab:stable", 0.5, PEOPLE), ("p2", 1.0, "exactMatch"),
    ]  # fmt: skip
    assert [one.sequence for one in found] == sorted(one.sequence for one in found)
    assert [gap["missing"] for gap in store.gaps()] == [0]


def test_judged_material_is_gone_and_its_first_judgement_stays(store: Store, now: float) -> None:
    store.put_judge_material([material("p1", now), material("p2", now - 1), material("p3", now - 3601)])
    store.put_judge_material([material("p1", now - 2)])
    assert store.judge_material("r1", 10) == [material("p2", now - 1), material("p1", now)]  # p3 has waited too long
    assert [one.pair for one in store.judge_material("r1", 1)] == ["p2"]
    store.put_judgements([judgement("p2")])
    store.put_judgements([judgement("p2", 0.0), judgement("p1")])
    assert store.judge_material("r1", 10) == []
    found = store.judgements("r1", after=0)
    assert [(one.pair, one.candidate) for one in found] == [("p2", 1.0), ("p1", 1.0)]
    assert found[0].sequence < found[1].sequence
    assert store.judgements("r1", after=found[0].sequence) == [found[1]]
    assert store.judgements("r1", after=0, limit=1) == [found[0]]
    assert store.judgements("r2", after=0) == []
