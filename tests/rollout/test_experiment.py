"""Experiments in `decide`: when one begins and ends, what the gateways are told, and that it leaves stable and rollouts alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from services.common import routing
from services.rollout import reasons
from services.rollout.experiment import status_of, with_status
from services.rollout.resources import LLMService
from services.rollout.resources_experiment import Experiment
from services.rollout.status import Condition
from services.store import ExperimentRow
from tests.fakes.rollout_world import World, service

ID = "assistant:tone"


def rules(**changes: Any) -> dict[str, Any]:
    """v1, the champion, against v3; a tenth of the users is held out."""
    variants = [{"name": "plain", "weight": 30, "version": "1"}, {"name": "warm", "weight": 30, "version": "3"}]
    return {"name": "tone", "variants": variants, "holdout": 10, "metrics": [{"metric": "errors"}], **changes}


def with_experiments(*experiments: dict[str, Any]) -> LLMService:
    document = service().model_dump(mode="json", by_alias=True)
    document["spec"]["experiments"] = list(experiments)
    return LLMService.model_validate(document)


@pytest.fixture
def world() -> World:
    """v1 serves; the experiment has begun."""
    made = World(with_experiments(rules()))
    made.version("3")
    made.look(times=4)
    return made


def published(world: World) -> tuple[routing.Experiment, ...]:
    assert world.route is not None
    return world.route.experiments


def row(world: World) -> ExperimentRow:
    return world.experiments[ID]


def told(world: World) -> Condition:
    return next(c for c in world.look().status.conditions if c.type == "Experiments")


def test_it_begins_once_every_variant_answers() -> None:
    world = World(with_experiments(rules()))
    world.version("3")
    world.ready_at_once = False
    world.look(times=2)
    for name, state in world.engines.items():
        if "-v1-" in name:
            world.engines[name] = replace(state, phase="ready", address="http://one/v1", ready_replicas=1)
    condition = told(world)
    assert (condition.status, condition.reason) == (True, reasons.AWAITING_ENGINE)
    assert world.experiments == {}
    assert published(world) == ()
    for name, state in world.engines.items():
        world.engines[name] = replace(state, phase="ready", address=f"http://{name}/v1", ready_replicas=1)
    world.look(times=2)
    assert [one.id for one in published(world)] == [ID]
    assert told(world).reason == reasons.EXPERIMENT_RUNNING


def test_gateways_are_told_of_groups_and_targets(world: World) -> None:
    [one] = published(world)
    assert [(group.name, group.share) for group in one.groups] == [
        ("plain", 3_000),
        ("warm", 3_000),
        ("holdout", 1_000),
    ]
    plain, warm, held = (group.target for group in one.groups)
    assert world.route is not None
    assert plain is not None
    assert plain.revision == world.route.stable.revision
    assert warm is not None
    assert warm.version == "3"
    assert held is None
    assert (one.horizon, one.settle) == (3_600.0, 60.0)
    assert len(bytes.fromhex(one.salt)) == 16
    assert status_of(row(world)).salt == one.salt
    assert reasons.EXPERIMENT_STARTED in world.reasons


def test_a_rollout_goes_its_way_and_leaves_the_experiment_alone(world: World) -> None:
    before = published(world)
    world.reach("canary")
    assert published(world) == before
    assert world.rollout is not None
    assert world.rollout.active
    assert row(world).ended_at is None


def test_after_a_promotion_the_control_is_still_its_own_version(world: World) -> None:
    world.reach("canary", step=1)
    world.order("promote")
    world.look(times=60)  # the rollback window is over
    assert world.route is not None
    assert world.route.stable.version == "2"
    [one] = published(world)
    assert [group.target.version if group.target else None for group in one.groups] == ["1", "3", None]
    assert [name for name in world.removed if "-v1-" in name or "-v3-" in name] == []


def test_it_waits_while_a_rollout_compares() -> None:
    world = World()
    world.version("3")
    world.reach("canary")
    world.service = with_experiments(rules())
    world.look(times=3)
    assert told(world).reason == reasons.AWAITING_ROLLOUT
    assert published(world) == ()
    world.order("abort")
    world.look(times=3)
    assert [one.id for one in published(world)] == [ID]


def test_a_variants_engine_that_fails_keeps_its_place_and_is_told(world: World) -> None:
    before = published(world)
    failed = next(name for name in world.engines if "-v3-" in name)
    world.engines[failed] = replace(world.engines[failed], phase="failed", message="CUDA out of memory")
    condition = told(world)
    assert (condition.status, condition.reason) == (False, reasons.ENGINE_FAILED)
    assert "CUDA out of memory" in condition.message
    assert "count as failed" in condition.message
    assert published(world) == before


def test_a_version_that_the_registry_has_not_keeps_it_from_beginning() -> None:
    world = World(with_experiments(rules()))
    world.look(times=4)
    condition = told(world)
    assert (condition.status, condition.reason) == (False, reasons.VERSION_MISSING)
    assert "no version 3" in condition.message
    assert published(world) == ()
    assert world.route is not None


def test_its_rules_stay_those_it_began_under(world: World) -> None:
    before = published(world)
    variants = [{"name": "plain", "weight": 10, "version": "1"}, {"name": "warm", "weight": 50, "version": "3"}]
    world.service = with_experiments(rules(variants=variants))
    condition = told(world)
    assert (condition.status, condition.reason) == (False, reasons.EXPERIMENT_CHANGED)
    assert published(world) == before


def test_paused_everyone_gets_stable_and_resumed_their_variant_again(world: World) -> None:
    before = published(world)
    world.service = with_experiments(rules(paused=True))
    assert told(world).reason == reasons.PAUSED
    assert published(world) == ()
    world.service = with_experiments(rules())
    world.look()
    assert published(world) == before


@pytest.mark.parametrize("how", ["removed", "over", "void"])
def test_it_ends_and_its_engine_goes(world: World, how: str) -> None:
    if how == "removed":
        world.service = with_experiments()
    elif how == "over":
        world.service = with_experiments(rules(maxDuration="1s"))
    else:
        fault = {"fault": "3000 of plain", "fault_reason": reasons.SAMPLE_RATIO_MISMATCH}
        world.experiments[ID] = with_status(row(world), status_of(row(world)).model_copy(update=fault))
    world.look(times=4)
    assert published(world) == ()
    assert row(world).ended_at is not None
    assert status_of(row(world)).state == "closing"
    assert any("-v3-" in name for name in world.removed)
    expected = {
        "removed": reasons.EXPERIMENT_REMOVED, "over": reasons.EXPERIMENT_ENDED, "void": reasons.SAMPLE_RATIO_MISMATCH,
    }  # fmt: skip
    assert status_of(row(world)).reason == expected[how]
    assert world.reasons.count(expected[how]) >= 1


def test_an_ended_name_is_not_used_again(world: World) -> None:
    world.service = with_experiments()
    world.look(times=2)
    ended = row(world)
    world.service = with_experiments(rules())
    assert told(world).reason == reasons.EXPERIMENT_ENDED
    assert row(world) == ended
    assert published(world) == ()


def test_engines_do_not_sleep_while_it_runs(world: World) -> None:
    document = world.service.model_dump(mode="json", by_alias=True)
    document["spec"]["engine"]["autoscaling"]["min"] = 0
    world.service = LLMService.model_validate(document)
    world.quiet = True
    world.look(times=3)
    assert {state.replicas[0] for state in world.engines.values() if state.replicas} == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"holdout": 50}, "110 percent"),
        ({"variants": [{"name": "one", "weight": 10, "version": "1"}]}, "at least 2"),
        ({"variants": [{"name": "one", "weight": 10, "version": v} for v in "12"]}, "one twice"),
        (
            {"variants": [{"name": n, "weight": 10, "version": "1"} for n in ("stable", "other")]},
            "may be named stable",
        ),
        ({"metrics": []}, "at least 1"),
        ({"metrics": [{"metric": "errors"}, {"metric": "errors", "margin": 0.1}]}, "errors twice"),
        ({"metrics": [{"metric": "judge"}]}, "errors"),
        ({"metrics": [{"metric": "feedback", "margin": 1}]}, "below 1"),
        ({"metrics": [{"metric": "errors", "quantile": 0.5}]}, "quantile"),
        ({"alpha": 0.6}, "less than 0.5"),
        ({"name": "Tone"}, "pattern"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Experiment.model_validate(rules(**changes))


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="tone twice"):
        with_experiments(rules(), rules())
