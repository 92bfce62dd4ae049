"""A controller killed before any of its acts on store, registry, platform and API server: another goes on, and the end is the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from services.rollout.operator.orders import COMMAND
from services.rollout.resources import LLMService
from tests.fakes.kubernetes_api import SERVICES
from tests.fakes.operator_world import Fate, OperatorWorld
from tests.fakes.traffic import Behaviour
from tests.rollout.operator.conftest import Make

ABORT = json.dumps({"id": "order-1", "verb": "abort", "rollout": None, "note": "", "by": "ada"})
START = (0.0, "")

Script = Callable[[OperatorWorld], bool]
"""What people do at a turn; whether from now on the story is another one than the promotion's."""


def _challenge(world: OperatorWorld) -> None:
    if world.rollout() is None and world.store.route("assistant") is not None:
        world.registry.aliases["challenger"] = "2"


def _delete_when_over(world: OperatorWorld) -> None:
    """The rollout has ended, the registry knows, the loser's engine is gone."""
    rollout = world.rollout()
    ended = rollout is not None and rollout.stage == "finished" and not rollout.debt.open
    if ended and len(world.platform.engines) == 1:
        world.server.delete("assistant")


def promoted(world: OperatorWorld) -> bool:
    _challenge(world)
    _delete_when_over(world)
    return True


def aborted_by_evidence(world: OperatorWorld) -> bool:
    promoted(world)
    return world.reached("rehearsal")


def aborted_by_command(world: OperatorWorld) -> bool:
    _challenge(world)
    ordered = COMMAND in world.server.resource("assistant")["metadata"].get("annotations", {})
    now = world.reached("canary") and not ordered and not world.store.commands("assistant", pending=False)
    if now:
        world.server.annotate("assistant", command=ABORT)
    _delete_when_over(world)
    return now


def deleted_in_the_canary(world: OperatorWorld) -> bool:
    _challenge(world)
    now = world.reached("canary")
    if now:
        world.server.delete("assistant")
    return now


def end(world: OperatorWorld) -> dict[str, Any]:
    """All that is left in store, registry, platform and cluster, but for times and drawn names."""
    store = world.store
    rollouts = store.rollouts("assistant")
    return {
        "rollouts": [(row.version, row.stage, row.verdict, row.reason) for row in rollouts],
        "audit": [
            (entry.action, entry.reason)
            for row in rollouts
            for entry in store.audit(rollout=row.id)
            if entry.action != "delete"  # said before it is done, so perhaps twice
        ],
        "commands": [(c.id, c.answer) for c in store.commands("assistant", pending=False)],
        "aliases": world.registry.aliases,
        "tags": {v: i.tags.get("understudy.verdict") for v, i in world.registry.versions.items()},
        "owner": world.registry.owner,
        "engines": world.platform.engines,
        "route": store.route("assistant"),
        "resources": world.server.objects[SERVICES],
    }


def counted(world: OperatorWorld) -> int:
    """Stages with readings. The last reading of each has counted every user or pair that had closed by then, and none twice."""
    stages = 0
    for row in world.store.rollouts("assistant"):
        settle = 2 * LLMService.model_validate(row.spec).spec.rollout.settle
        newest = {(reading["stage"], reading["step"]): reading for reading in world.store.readings(row.id)}
        stages += len(newest)
        for (stage, _), reading in newest.items():
            if stage == "canary":
                users = world.store.closed_units(row.id, START, reading["at"])
                assert reading["n_control"] + reading["n_candidate"] == len(users)
            else:
                pairs = world.store.mirrored_pairs(row.id, START, reading["at"], settle)
                assert reading["pairs"] == len(pairs)
    return stages


@pytest.mark.integration
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("script", "failure", "verdict"),
    [
        (promoted, 0.0, "advance"),
        (aborted_by_evidence, 0.9, "abort"),
        (aborted_by_command, 0.0, "abort"),
        (deleted_in_the_canary, 0.0, "abort"),
    ],
)
async def test_killed_before_any_act_it_ends_the_same(make: Make, script: Script, failure: float, verdict: str) -> None:
    """Every act of the promotion's story, and of the others every act of what is theirs alone."""

    async def play(at: int) -> tuple[dict[str, Any], list[str], int]:
        world = await make(behave=lambda version: Behaviour(failure=failure if version == "2" else 0.0))
        fate, departed = Fate(at), None
        world.begin(fate)
        for _ in range(150):
            if ("default", "assistant") in world.server.objects[SERVICES] and script(world) and departed is None:
                departed = len(fate.acts)
            if not await world.turn():
                assert counted(world) > 0
                left = end(world)
                await world.close()
                return left, fate.acts, departed or 0
        raise AssertionError(
            f"killed before act {at} ({fate.acts[-1]}) it never ended: {world.rollout()} {world.status}"
        )

    whole, acts, departed = await play(0)
    assert [row[2] for row in whole["rollouts"]] == [verdict]
    assert whole["engines"] == {}
    assert whole["owner"] is None
    for at in range(departed + 1, len(acts) + 1):
        after, before, _ = await play(at)
        assert after == whole, f"killed before act {at}, {before[-1]}"
