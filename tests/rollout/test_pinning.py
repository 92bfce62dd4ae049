"""Versions that run beside stable for tests: reached by their number, never in the way of stable or a rollout."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.rollout import reasons
from services.rollout.observed import Refusal
from services.rollout.resources import LLMService
from services.rollout.status import Condition
from tests.fakes.rollout_world import World, service


def with_pins(*pinned: str) -> LLMService:
    given = service()
    model = given.spec.model.model_copy(update={"pinned": pinned})
    return given.model_copy(update={"spec": given.spec.model_copy(update={"model": model})})


@pytest.fixture
def world() -> World:
    """v1 serves, v3 is pinned."""
    made = World(with_pins("3"))
    made.version("3")
    made.look(times=4)
    return made


def reached(world: World) -> list[str]:
    assert world.route is not None
    return [target.version for target in world.route.pinned]


def told(world: World) -> Condition:
    return next(c for c in world.look().status.conditions if c.type == "Pinned")


def test_a_pinned_version_gets_an_engine_and_a_route(world: World) -> None:
    assert reached(world) == ["3"]
    assert world.route is not None
    [target] = world.route.pinned
    assert world.engines[target.model].phase == "ready"
    assert world.route.stable.version == "1"
    assert world.route.stage == "idle"
    condition = told(world)
    assert (condition.status, condition.reason) == (True, reasons.VERSION_PINNED)
    assert "assistant@v3" in condition.message


def test_what_is_pinned_no_more_goes_once_no_gateway_reaches_it(world: World) -> None:
    assert world.route is not None
    [target] = world.route.pinned
    world.service = with_pins()
    world.acknowledges = False
    world.look(times=3)
    assert reached(world) == []
    assert target.model in world.engines
    world.acknowledges = True
    world.look()
    assert world.removed == [target.model]


def test_a_failing_engine_is_told_and_touches_nothing_else(world: World) -> None:
    assert world.route is not None
    [target] = world.route.pinned
    world.engines[target.model] = replace(world.engines[target.model], phase="failed", message="CUDA out of memory")
    world.reach("canary")
    assert reached(world) == []
    condition = told(world)
    assert (condition.status, condition.reason) == (False, reasons.ENGINE_FAILED)
    assert "CUDA out of memory" in condition.message
    assert reasons.ENGINE_FAILED in world.reasons
    assert world.rollout is not None
    assert world.rollout.active
    assert world.removed == []


def test_a_refused_engine_is_not_asked_for_again(world: World) -> None:
    assert world.route is not None
    [target] = world.route.pinned
    del world.engines[target.model]
    world.refused = {target.model: Refusal(reasons.ARTIFACT_MISSING, "no files")}
    condition = told(world)
    assert (condition.status, condition.reason) == (False, reasons.ARTIFACT_MISSING)
    assert target.model not in world.engines


@pytest.mark.parametrize(("version", "reason"), [("9", reasons.VERSION_MISSING), ("4", reasons.KIND_UNSUPPORTED)])
def test_a_version_that_cannot_be_served_is_told(version: str, reason: str) -> None:
    world = World(with_pins(version))
    world.version("4", kind="nonsense")
    world.look(times=3)
    condition = told(world)
    assert (condition.status, condition.reason) == (False, reason)
    assert reached(world) == []


def test_stable_and_candidate_are_reached_as_what_they_are(world: World) -> None:
    world.service = with_pins("1", "2", "3")
    world.reach("canary")
    assert reached(world) == ["3"]  # v1 is stable, v2 the candidate
    assert len(world.engines) == 3


def test_while_the_registry_is_away_what_is_pinned_stays(world: World) -> None:
    world.registry_away = True
    world.look(times=3)
    assert reached(world) == ["3"]


@pytest.mark.parametrize(("verb", "reason"), [("pin", reasons.VERSION_PINNED), ("unpin", reasons.VERSION_UNPINNED)])
def test_the_audit_trail_says_who_and_why(world: World, verb: str, reason: str) -> None:
    assert world.order(verb) == "pinned: v3"
    entry = next(event for event in world.audit if event.action == verb)
    assert (entry.actor, entry.reason) == ("ada", reason)
    assert "v3" in entry.message
