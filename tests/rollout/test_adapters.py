"""Decisions on versions of kind adapter: they share their base's engine and are served under a name of their own."""

from __future__ import annotations

from typing import Any

import pytest

from services.rollout import reasons
from services.rollout.observed import Alarm, EvidenceView, Refusal
from services.rollout.platforms.base import RevisionState
from services.rollout.resources import LLMService
from tests.fakes.rollout_world import World, service


def resource(**engine: Any) -> LLMService:
    document = service().model_dump(mode="json", by_alias=True, exclude_none=True)
    document["spec"]["engine"] = engine
    return LLMService.model_validate(document)


@pytest.fixture
def world() -> World:
    """v1 serves, v2 and v3 are adapters on it."""
    world = World(resource(lora={}))
    for number in ("2", "3"):
        world.version(number, kind="adapter", base_version="1", digest=number * 64)
    return world


def names(world: World) -> tuple[str, str]:
    """Engine and adapter that the route has for stable and candidate."""
    assert world.route is not None
    assert world.route.candidate is not None
    return world.route.stable.model, world.route.candidate.model


def test_an_adapter_is_served_by_stables_engine_under_a_name_of_its_own(world: World) -> None:
    world.reach("canary", 1)
    engine, adapter = names(world)
    assert set(world.engines) == {engine, adapter}
    assert adapter.startswith("assistant-v2-")
    assert world.route is not None
    assert world.route.candidate is not None
    assert (world.route.candidate.engine, world.route.candidate.revision) == (engine, adapter)
    assert world.route.candidate.addresses == (f"http://{adapter}/v1",)
    assert world.rollout is not None
    assert (world.rollout.kind, world.rollout.replicas) == ("adapter", 0)


def test_promoted_it_needs_its_engine_and_the_next_one_takes_its_place(world: World) -> None:
    world.reach("watch")
    world.look(times=40)
    assert world.route is not None
    engine, first = world.route.stable.engine, world.route.stable.model
    assert world.route.stable.version == "2"
    assert set(world.engines) == {engine, first}
    world.aliases["challenger"] = "3"
    world.look(times=5)
    assert names(world)[0] == first
    assert len(world.engines) == 3
    assert world.order("promote") == "promoted"
    world.look(times=3)
    assert len(world.engines) == 3, "the old adapter stays warm"
    world.look(times=40)
    assert world.route.stable.version == "3"
    assert world.removed == [first]
    assert set(world.engines) == {engine, world.route.stable.model}


def test_a_worse_one_is_rolled_back_within_the_window(world: World) -> None:
    world.reach("watch")
    assert world.route is not None
    adapter = world.route.stable.model
    world.evidence = EvidenceView(alarm=Alarm("errors", "errors rise"))
    world.look(times=3)
    assert world.route.stable.version == "1"
    assert world.route.stable.engine is None
    assert world.removed == [adapter]


def test_other_files_have_another_name(world: World) -> None:
    world.reach("rehearsal")
    before = names(world)[1]
    world.version("2", kind="adapter", base_version="1", digest="f" * 64)
    assert world.order("abort").startswith("aborted")
    world.look(times=2)
    world.reach("rehearsal")
    assert names(world)[1] != before


@pytest.mark.parametrize(
    ("engine", "tags", "reason", "words"),
    [
        ({}, {"base_version": "1"}, reasons.ADAPTER_REFUSED, "set spec.engine.lora"),
        ({"lora": {}}, {"base_version": "7"}, reasons.BASE_NOT_CHAMPION, "an adapter on the weights of v7, but v1's"),
        ({"lora": {}}, {}, reasons.KIND_UNSUPPORTED, "adapters (with base version)"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_refused_at_once(
    engine: dict[str, Any], tags: dict[str, str], reason: str, words: str
) -> None:
    world = World(resource(**engine))
    world.version("2", kind="adapter", **tags)
    world.look(times=3)
    world.aliases["challenger"] = "2"
    world.look(times=3)
    assert world.rollout is not None
    assert (world.rollout.verdict, world.rollout.reason) == ("abort", reason)
    assert words in world.rollout.message
    assert "challenger" not in world.aliases
    assert len(world.engines) == 1


def test_files_that_are_no_adapter_end_the_rollout_and_stable_serves_on(world: World) -> None:
    world.look(times=3)
    world.ready_at_once = False
    world.aliases["challenger"] = "2"
    world.look(times=2)
    assert world.rollout is not None
    world.refused = {world.rollout.revision: Refusal(reasons.ADAPTER_REFUSED, "its rank 64 is above 16")}
    world.look(times=2)
    assert (world.rollout.verdict, world.rollout.reason) == ("abort", reasons.ADAPTER_REFUSED)
    assert world.rollout.engine in world.engines
    assert world.rollout.revision not in world.engines


@pytest.mark.parametrize(("phase", "reason"), [("failed", "EngineFailed"), ("starting", "EngineStartTimeout")])
def test_an_adapter_that_the_engine_does_not_serve_ends_the_rollout(world: World, phase: Any, reason: str) -> None:
    world.look(times=3)
    world.ready_at_once = False
    world.aliases["challenger"] = "2"
    world.look(times=2)
    assert world.rollout is not None
    adapter = world.rollout.revision
    world.engines[adapter] = RevisionState(adapter, phase, 0, None, "could not be loaded")
    world.look(after=1000.0, times=2)
    assert (world.rollout.verdict, world.rollout.reason) == ("abort", reason)
    assert "the adapter " in world.rollout.message
    assert world.removed == [adapter]


def test_a_changed_engine_is_rolled_out_with_the_adapter_on_it(world: World) -> None:
    world.reach("watch")
    world.look(times=40)
    assert world.route is not None
    before = world.route.stable
    world.service = resource(lora={"maxRank": 32})
    world.look(times=6)
    assert world.rollout is not None
    assert (world.rollout.trigger, world.rollout.kind) == ("specification", "adapter")
    assert set(world.engines) == {before.engine, before.model, world.rollout.engine, world.rollout.revision}
    assert names(world) == (before.model, world.rollout.revision)
    world.order("promote")
    world.look(times=50)
    assert world.route.stable.engine == world.rollout.engine
    assert set(world.engines) == {world.rollout.engine, world.rollout.revision}


def test_room_for_adapters_is_not_taken_from_one_that_serves(world: World) -> None:
    world.reach("watch")
    world.look(times=40)
    before = dict(world.engines)
    world.service = resource()
    decision = world.look(times=5)
    (condition,) = [c for c in decision.status.conditions if c.type == "Specification"]
    assert (condition.status, condition.reason) == (False, reasons.ADAPTER_REFUSED)
    assert world.engines == before


def test_an_adapter_may_be_the_first_champion_or_be_made_it_by_hand(world: World) -> None:
    world.aliases["champion"] = "2"
    world.look()
    assert [name[:13] for name in world.engines] == ["assistant-v1-"], "its engine first"
    world.look(times=2)
    assert world.route is not None
    first = world.route.stable
    assert (first.version, first.engine) == ("2", next(iter(world.engines)))
    world.aliases["champion"] = "3"
    world.look(times=4)
    assert (world.route.stable.version, world.route.stable.engine) == ("3", first.engine)
    assert world.removed == [first.model]


def test_a_champion_on_an_engine_without_room_for_adapters_is_told(world: World) -> None:
    world.service = resource()
    world.aliases["champion"] = "2"
    decision = world.look(times=3)
    (condition,) = [c for c in decision.status.conditions if c.type == "Serving"]
    assert (condition.status, condition.reason) == (False, reasons.ADAPTER_REFUSED)
    assert world.engines == {}


@pytest.mark.parametrize("lost", ["engine", "model"])
def test_what_vanishes_under_a_serving_adapter_is_brought_back(world: World, lost: str) -> None:
    world.aliases["champion"] = "2"
    world.look(times=4)
    assert world.route is not None
    before = set(world.engines)
    del world.engines[getattr(world.route.stable, lost)]
    world.look(times=2)
    assert set(world.engines) == before
    decision = world.look()
    (condition,) = [c for c in decision.status.conditions if c.type == "Serving"]
    assert condition.status
