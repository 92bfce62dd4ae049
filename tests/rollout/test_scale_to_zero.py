"""An engine that may end while nobody asks: when it may, what the service says meanwhile, what a rollout does about it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.routing import Hold
from services.rollout import reasons
from services.rollout.resources import LLMService
from tests.fakes.rollout_world import World, service


def sleepy(**autoscaling: object) -> LLMService:
    given = service()
    scaling = {"min": 0, "max": 2, "downscaleDelay": "45s", "heldRequests": 7, "holdTimeout": "90s", **autoscaling}
    engine = given.spec.engine.model_validate({"autoscaling": scaling})
    return given.model_copy(update={"spec": given.spec.model_copy(update={"engine": engine})})


@pytest.fixture
def world() -> World:
    """Serving, with one replica."""
    made = World(sleepy())
    made.look(times=3)
    return made


def stable(world: World) -> str:
    assert world.route is not None
    return world.route.stable.model


def fall_asleep(world: World) -> None:
    world.quiet = True
    world.look()
    name = stable(world)
    world.engines[name] = replace(world.engines[name], ready_replicas=0)
    world.look()


def serving(world: World) -> tuple[bool, str]:
    found = next(c for c in world.look().status.conditions if c.type == "Serving")
    return found.status, found.reason


def test_a_new_engine_starts_with_a_replica_whoever_asks() -> None:
    world = World(sleepy())
    world.quiet = True
    world.look(times=2)
    assert world.engines[stable(world)].replicas == (1, 2)
    world.look()
    assert world.scaled == [(stable(world), (0, 2))]


def test_only_a_quiet_service_may_lose_its_last_replica(world: World) -> None:
    world.look(times=3)
    assert world.scaled == []
    world.quiet = True
    world.look(times=3)
    assert world.scaled == [(stable(world), (0, 2))]
    world.quiet = False
    world.look(times=3)
    assert world.scaled[1:] == [(stable(world), (1, 2))]


def test_gateways_are_told_how_many_may_wait_and_how_long(world: World) -> None:
    assert world.route is not None
    assert world.route.hold == Hold(requests=7, seconds=90.0, awake=45.0)
    other = World()
    other.look(times=3)
    assert other.route is not None
    assert other.route.hold is None


def test_a_service_asleep_serves(world: World) -> None:
    fall_asleep(world)
    assert serving(world) == (True, reasons.SCALED_TO_ZERO)
    # On its way back the platform calls it starting, without an address.
    world.engines[stable(world)] = replace(world.engines[stable(world)], phase="starting", address=None)
    before = world.route
    assert serving(world) == (True, reasons.SCALED_TO_ZERO)
    assert world.route == before
    world.engines[stable(world)] = replace(world.engines[stable(world)], phase="failed")
    assert serving(world) == (False, reasons.AWAITING_ENGINE)


def test_a_rollout_keeps_both_awake_and_waits_for_stable(world: World) -> None:
    fall_asleep(world)
    name = stable(world)
    world.aliases["challenger"] = "2"
    world.ready_at_once = False
    world.look(times=3)
    assert (name, (1, 2)) in world.scaled
    assert world.rollout is not None
    candidate = world.rollout.engine
    world.engines[candidate] = replace(
        world.engines[candidate], phase="ready", address="http://candidate/v1", ready_replicas=1
    )
    world.look(times=3)
    assert not world.rollout.admitted
    assert any("stable" in condition.message for condition in world.rollout.conditions)
    world.engines[name] = replace(world.engines[name], phase="ready", ready_replicas=1)
    world.look(times=2)
    assert world.rollout.admitted
    assert world.engines[candidate].replicas == (1, 2)
    assert world.scaled[-1] == (name, (1, 2))


def test_after_the_rollout_it_may_sleep_again(world: World) -> None:
    world.quiet = True
    world.reach("watch")
    assert world.rollout is not None
    promoted = world.rollout.engine
    assert (promoted, (0, 2)) not in world.scaled
    world.look(after=100.0)
    world.look(times=2)
    assert world.rollout.stage == "finished"
    assert world.scaled[-1] == (promoted, (0, 2))


def test_more_replicas_for_a_step_do_not_start_the_engine_anew() -> None:
    world = World(sleepy(min=1, max=4))
    world.look(times=3)
    world.engines[stable(world)] = replace(world.engines[stable(world)], ready_replicas=4)
    world.reach("canary", 1)
    assert world.rollout is not None
    assert (world.rollout.engine, (2, 4)) in world.scaled
