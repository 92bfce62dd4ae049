"""Replicas by the time to the first token: what is measured, and what is made of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.rollout.resources import LLMService
from services.rollout.scaling import FEWEST_REQUESTS, FirstTokens, called_for, first_tokens
from tests.fakes.rollout_world import World, service

SLOW, FINE, FAST = (FirstTokens(recent=ttft, longer=ttft) for ttft in (2.0, 0.8, 0.4))


@pytest.mark.parametrize(
    ("present", "ready", "seen", "wanted"),
    [
        (1, 1, SLOW, 2),
        (1, 1, FINE, 1),
        (3, 3, FAST, 2),
        (2, 1, SLOW, 2),  # the last step is under way
        (1, 3, SLOW, 4),  # Serve's autoscaler has added some of its own
        (3, 3, FirstTokens(recent=None, longer=None), 3),
        (3, 3, FirstTokens(recent=None, longer=None, idle=True), 2),
    ],
)
def test_one_step_at_a_time(present: int, ready: int, seen: FirstTokens, wanted: int) -> None:
    assert called_for(present, ready, 1.0, seen) == wanted


def test_only_what_the_present_replicas_answered_counts() -> None:
    before = [(float(at), 9.0) for at in range(FEWEST_REQUESTS)]
    after = [(100.0 + at, 0.1) for at in range(FEWEST_REQUESTS)]
    seen = first_tokens(before + after, now=130.0, unchanged_since=100.0, upscale=60.0, downscale=60.0)
    assert seen == FirstTokens(recent=0.1, longer=None)
    assert first_tokens(after, 160.0, 100.0, 60.0, 60.0) == FirstTokens(recent=0.1, longer=0.1)
    assert first_tokens(after, 200.0, 100.0, 60.0, 60.0) == FirstTokens(recent=None, longer=None, idle=True)


def test_few_requests_say_nothing_and_a_percentile_is_one_of_them() -> None:
    few = [(10.0, 9.0)] * (FEWEST_REQUESTS - 1)
    assert first_tokens(few, 10.0, 0.0, 5.0, 60.0).recent is None
    many = [(10.0, float(number)) for number in range(1, 101)]
    assert first_tokens(many, 10.0, 0.0, 5.0, 60.0).recent == 95.0


def targeted() -> LLMService:
    given = service()
    engine = given.spec.engine.model_validate({"autoscaling": {"min": 1, "max": 3, "targetTtft": "1s"}})
    return given.model_copy(update={"spec": given.spec.model_copy(update={"engine": engine})})


def test_bounds_follow_within_the_resources_own() -> None:
    world = World(targeted())
    world.look(times=3)
    assert world.route is not None
    name = world.route.stable.model
    for expected in (2, 3, 3):
        world.first_tokens = SLOW
        world.look()
        assert world.engines[name].replicas == (expected, 3)
        world.engines[name] = replace(world.engines[name], ready_replicas=expected)
    for expected in (2, 1, 1):
        world.first_tokens = FAST
        world.look()
        assert world.engines[name].replicas == (expected, 3)
        world.engines[name] = replace(world.engines[name], ready_replicas=expected)


def test_a_rollout_keeps_stables_replicas_and_may_add_some() -> None:
    world = World(targeted())
    world.look(times=3)
    assert world.route is not None
    name = world.route.stable.model
    world.first_tokens = SLOW
    world.look()
    world.engines[name] = replace(world.engines[name], ready_replicas=2)
    world.aliases["challenger"] = "2"
    world.first_tokens = FAST
    world.look(times=3)
    assert world.rollout is not None
    assert world.rollout.active
    assert world.engines[name].replicas == (2, 3)
    assert world.engines[world.rollout.engine].replicas == (1, 3)
