"""What follows from decisions over several looks: steps, holds, pauses, commands, the registry. The single look is in `test_verdicts`."""

from __future__ import annotations

import pytest

from services.rollout import reasons
from services.rollout.decide import decide
from services.rollout.observed import Alarm, Evaluation, EvidenceView, Refusal
from services.rollout.platforms.base import RevisionState
from tests.fakes.rollout_world import RIGHT, SHOWN, World, reading, service
from tests.fakes.situations import (
    AMBITIOUS,
    WRONG,
    Happens,
    alias,
    drifts_back,
    engine,
    evaluated,
    harm,
    improves,
    improves_nothing,
    shows,
    with_drift,
)


@pytest.mark.parametrize(
    ("stage", "happens", "champion"),
    [
        ("gate", evaluated(WRONG), "1"),
        ("rehearsal", harm("ttft"), "1"),
        ("canary", harm("feedback"), "1"),
        ("canary", shows(fault="a clock ran backwards"), "1"),
        ("canary", engine("failed"), "1"),
        ("canary", alias("champion", "3"), "3"),
        ("canary", alias("challenger", None), "1"),
    ],
)
def test_after_an_end_without_the_candidate_nobody_reaches_it(stage: str, happens: Happens, champion: str) -> None:
    world = World()
    world.reach(stage)
    happens(world)
    world.look(times=6)
    rollout = world.rollout
    assert rollout is not None
    assert (rollout.stage, rollout.decided_in) == ("finished", stage)
    assert world.route is not None
    assert world.route.candidate is None
    assert world.aliases == {"champion": champion}
    assert world.versions["2"].tags["understudy.reason"] == rollout.reason
    assert rollout.engine not in world.engines, "its engine must go"


def test_a_good_version_goes_all_the_way() -> None:
    world = World()
    world.reach("canary", 0)
    assert world.route is not None
    assert (world.route.weight, world.route.step) == (500, 0)
    world.reach("watch")
    assert world.rollout is not None
    assert (world.rollout.verdict, world.rollout.reason) == ("advance", reasons.PROMOTED)
    assert world.route.stable.version == "2"
    assert world.aliases == {"champion": "2"}
    assert len(world.engines) == 2, "the old revision stays warm"
    world.look(times=40)
    assert world.rollout.stage == "finished"
    assert [name.startswith("assistant-v1") for name in world.removed] == [True]
    assert world.versions["2"].tags["understudy.verdict"] == "advance"


def test_the_first_start_needs_a_champion_and_then_its_engine() -> None:
    world = World()
    del world.aliases["champion"]
    world.ready_at_once = False
    world.look()
    assert world.route is None
    assert world.reasons[-1] == reasons.CHAMPION_MISSING
    world.aliases["champion"] = "1"
    world.look(times=3)
    assert world.route is None, "nothing is published before the engine answers"
    (name,) = world.engines
    world.engines[name] = RevisionState(name, "ready", 1, "http://a/v1", "")
    world.look(times=2)
    assert world.route is not None
    assert world.route.stable.addresses == ("http://a/v1",)


def test_a_step_starts_when_every_gateway_obeys() -> None:
    world = World()
    world.reach("rehearsal")
    world.evidence = EvidenceView(counts={"pairs": 50})
    world.look(after=20.0)
    world.acknowledges = False
    world.look(after=200.0, times=3)
    assert world.rollout is not None
    assert world.rollout.stage == "canary"
    assert world.rollout.stage_started_at is None, "waiting does not count as stage time"
    assert world.rollout.verdict == "continue"
    world.acknowledges = True
    world.look()
    assert world.rollout.stage_started_at == world.now


def test_an_engine_that_does_not_start_in_time_is_given_up() -> None:
    world = World(service())
    world.look(times=3)
    world.ready_at_once = False
    world.aliases["challenger"] = "2"
    world.look(times=5)
    assert world.rollout is not None
    assert world.rollout.verdict == "continue"
    world.look(after=901.0)
    assert (world.rollout.verdict, world.rollout.reason) == ("abort", reasons.ENGINE_START_TIMEOUT)
    assert "loading" in world.rollout.message
    assert world.route is not None
    assert world.route.version == 1, "stable never noticed"


def test_a_version_without_artifact_is_aborted_with_its_reason() -> None:
    world = World()
    world.look(times=3)
    world.ready_at_once = False
    world.aliases["challenger"] = "2"
    world.look(times=2)
    assert world.rollout is not None
    world.refused = {world.rollout.engine: Refusal(reasons.ARTIFACT_MISSING, "runs:/run-2/model holds no files")}
    world.look()
    assert (world.rollout.verdict, world.rollout.reason) == ("abort", reasons.ARTIFACT_MISSING)


def test_a_prompt_shares_the_engine_of_its_base() -> None:
    world = World()
    world.version("2", kind="prompt", base_version="1", system_prompt="be brief")
    world.reach("canary", 1)
    assert len(world.engines) == 1
    assert world.route is not None
    assert world.route.candidate is not None
    assert world.route.candidate.system_prompt == "be brief"
    assert world.route.candidate.model == world.route.stable.model
    world.reach("watch")
    world.look(times=40)
    assert world.route.stable.version == "2"
    assert len(world.engines) == 1, "the shared engine stays"
    world.version("3", kind="prompt", base_version="1", system_prompt="be long")
    world.aliases["challenger"] = "3"
    world.look(times=2)
    assert world.rollout is not None
    assert (world.rollout.version, world.rollout.stage) == ("3", "rehearsal"), "the champion's weights are still v1's"


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"kind": "prompt", "base_version": "7", "system_prompt": "x"}, reasons.BASE_NOT_CHAMPION),
        ({"kind": "prompt", "base_version": "1"}, reasons.KIND_UNSUPPORTED),
        ({"kind": "adapter"}, reasons.KIND_UNSUPPORTED),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(tags: dict[str, str], reason: str) -> None:
    world = World()
    world.version("2", **tags)
    world.look(times=3)
    world.aliases["challenger"] = "2"
    world.look(times=3)
    assert world.rollout is not None
    assert (world.rollout.verdict, world.rollout.reason) == ("abort", reason)
    assert "challenger" not in world.aliases
    assert len(world.engines) == 1


def test_a_champion_as_challenger_only_loses_the_alias() -> None:
    world = World()
    world.look(times=3)
    world.aliases["challenger"] = "1"
    world.look(times=3)
    assert world.rollout is None
    assert world.aliases == {"champion": "1"}


def test_minimum_accuracy() -> None:
    world = World(service(gate={"minimumAccuracy": 0.9}))
    half = Evaluation("data", {f"item-{i}": i % 2 == 0 for i in range(100)})
    world.evaluations = {"1": half, "2": half}
    world.reach("gate")
    world.look()
    assert world.rollout is not None
    assert world.rollout.reason == reasons.GATE_BELOW_MINIMUM


def test_a_disabled_gate_needs_no_evaluation() -> None:
    world = World(service(gate={"enabled": False}))
    world.evaluations = {"1": None, "2": None}
    world.reach("rehearsal")
    assert reasons.GATE_SKIPPED in world.reasons


def test_nothing_ships_without_what_must_be_shown() -> None:
    world = World()
    world.reach("canary", 1)
    enough = {"step_control": 500, "step_candidate": 500}
    world.evidence = EvidenceView(readings=(SHOWN[0], reading("ttft")), counts=enough)
    world.look(after=20.0, times=3)
    assert world.rollout is not None
    assert world.rollout.stage == "canary"
    assert "ttft" in world.rollout.conditions[0].message
    world.evidence = EvidenceView(readings=SHOWN, counts=enough)
    world.look()
    assert world.rollout.verdict == "advance"


def test_rolling_back_in_the_watch_restores_champion_and_route() -> None:
    world = World()
    world.reach("watch")
    world.look(times=2)
    world.evidence = EvidenceView(alarm=Alarm("errors", "failures have risen"))
    world.look(times=4)
    assert world.route is not None
    assert world.route.stable.version == "1"
    assert world.aliases == {"champion": "1"}
    assert world.versions["2"].tags["understudy.verdict"] == "abort"
    assert [name[:12] for name in world.engines] == ["assistant-v1"]


def test_a_champion_moved_by_hand_serves_once_it_is_ready() -> None:
    world = World()
    world.look(times=3)
    world.ready_at_once = False
    world.aliases["champion"] = "2"
    world.look(times=3)
    assert world.route is not None
    assert world.route.stable.version == "1", "stable serves on"
    name = next(name for name in world.engines if name.startswith("assistant-v2"))
    world.engines[name] = RevisionState(name, "ready", 1, "http://two/v1", "")
    world.look(times=3)
    assert world.route.stable.version == "2"
    assert list(world.engines) == [name]


def test_our_own_promotion_is_not_mistaken_for_a_persons_while_the_registry_is_away() -> None:
    world = World()
    world.reach("canary", 1)
    world.evidence = EvidenceView(readings=SHOWN, counts={"step_control": 50, "step_candidate": 50})
    world.registry_away = True
    world.look(after=20.0, times=3)
    assert world.rollout is not None
    assert world.rollout.conditions[0].reason == reasons.AWAITING_REGISTRY, "promotion waits for the registry"
    world.registry_away = False
    again = [decide(world.service, world.observed(), world.evidence, world.now) for _ in range(3)]
    assert {repr(decision) for decision in again} == {repr(again[0])}, "the same look, repeated, decides the same"
    world.look()
    assert world.aliases["champion"] == "2"
    world.aliases["champion"] = "1"  # as if the write had been lost
    world.look()
    assert world.aliases["champion"] == "2"
    assert world.rollout.verdict == "advance"


def test_harm_aborts_while_the_registry_is_away_and_it_is_told_later() -> None:
    world = World()
    world.reach("canary", 0)
    world.registry_away = True
    harm("errors")(world)
    world.look(times=3)
    assert world.route is not None
    assert world.route.candidate is None
    assert world.aliases["challenger"] == "2"
    world.registry_away = False
    world.look(times=4)
    assert "challenger" not in world.aliases
    assert world.versions["2"].tags["understudy.reason"] == reasons.ERRORS_HARMFUL


def test_an_engine_goes_only_after_every_gateway_obeys() -> None:
    world = World()
    world.reach("canary", 0)
    harm("errors")(world)
    world.look()
    world.acknowledges = False
    world.look(times=3)
    assert len(world.engines) == 2
    world.acknowledges = True
    world.look()
    assert len(world.engines) == 1


def test_a_platform_that_is_away_changes_nothing() -> None:
    world = World()
    world.reach("canary", 0)
    before = world.route
    world.platform_away = True
    world.look(times=3)
    assert world.route == before
    assert world.rollout is not None
    assert world.rollout.verdict == "continue"


def test_weight_rises_only_with_capacity() -> None:
    resource = service()
    engine = resource.spec.engine.model_copy(
        update={"autoscaling": resource.spec.engine.autoscaling.model_copy(update={"max": 4})}
    )
    resource = resource.model_copy(update={"spec": resource.spec.model_copy(update={"engine": engine})})
    world = World(resource)
    world.reach("canary", 0)
    assert world.route is not None
    stable = world.route.stable.model
    world.engines[stable] = RevisionState(stable, "ready", 4, f"http://{stable}/v1", "")
    world.ready_at_once = False
    world.evidence = EvidenceView(counts={"step_control": 50, "step_candidate": 50})
    world.look(after=20.0)
    assert world.rollout is not None
    assert world.rollout.step == 0
    assert world.rollout.conditions[0].reason == reasons.AWAITING_CAPACITY
    name = world.rollout.engine
    world.engines[name] = RevisionState(name, "ready", 2, f"http://{name}/v1", "")
    world.look()
    assert world.rollout.step == 1


def test_an_edited_specification_is_rolled_out_like_a_version() -> None:
    world = World()
    world.look(times=3)
    spec = world.service.spec
    edited = spec.engine.model_copy(update={"arguments": {"max_model_len": 512}})
    world.service = world.service.model_copy(update={"spec": spec.model_copy(update={"engine": edited})})
    world.look(times=4)
    assert world.rollout is not None
    assert (world.rollout.trigger, world.rollout.version) == ("specification", "1")
    harm("ttft")(world)
    world.look(times=6)
    first = world.rollout.id
    world.evidence = EvidenceView()
    world.look(times=4)
    assert world.rollout.id == first, "a rejected specification is not tried again"
    assert world.reasons.count(reasons.SPECIFICATION_REJECTED) == 1
    assert len(world.engines) == 1


def test_a_new_challenger_ends_the_watch() -> None:
    world = World()
    world.reach("watch")
    world.look(times=2)
    world.version("3")
    world.aliases["challenger"] = "3"
    world.look(times=3)
    assert world.rollout is not None
    assert world.rollout.version == "3"


def test_rollout_status_survives_json() -> None:
    world = World()
    world.reach("watch")
    assert world.rollout is not None
    assert type(world.rollout).model_validate(world.rollout.to_json()) == world.rollout


def test_evaluations_that_agree_pass() -> None:
    world = World()
    assert world.evaluations["2"] == RIGHT
    world.reach("rehearsal")
    assert reasons.GATE_PASSED in world.reasons


def test_who_waits_is_told_what_is_missing_and_when_it_would_be_there() -> None:
    world = World()
    world.users_per_day = 864_000.0  # ten a second, of whom 5 % are the candidate's
    world.reach("canary", 0)
    world.evidence = EvidenceView(counts={"step_control": 0, "step_candidate": 0})
    world.look()
    assert world.rollout is not None
    told = world.rollout.conditions[0].message
    assert "0 of 10 users an arm" in told
    assert "in about" in told
    world.look(after=101.0)
    assert world.rollout.verdict == "hold"
    assert "of 10 users an arm" in world.rollout.message
    world.look()
    assert world.rollout.conditions[0].message.startswith("held: promote, abort or resume; 0 of 10 users an arm")


def test_a_goal_that_is_not_shown_is_named() -> None:
    world = World(AMBITIOUS)
    world.reach("canary", 1)
    improves_nothing(world)
    world.now -= 80
    world.look()
    assert world.rollout is not None
    assert "an improvement in rating" in world.rollout.conditions[0].message
    world.look(after=81.0)
    assert (world.rollout.verdict, world.rollout.reason) == ("hold", reasons.STEP_INCONCLUSIVE)
    assert "an improvement in rating" in world.rollout.message
    assert world.order("resume") == "resumed"
    improves(world)
    world.look()
    world.look(after=11.0)
    assert world.rollout.verdict == "advance"
    assert world.rollout.message.endswith("shown improved: rating")


def test_a_service_is_ready_once_gateways_obey_its_first_route() -> None:
    world = World()
    world.acknowledges = False

    def serving() -> tuple[bool, str]:
        found = next(c for c in world.look().status.conditions if c.type == "Serving")
        return found.status, found.reason

    world.look(times=2)
    assert world.route is not None
    assert serving() == (False, reasons.AWAITING_GATEWAYS)
    world.acknowledges = True
    assert serving() == (True, reasons.SERVING)
    world.acknowledges = False  # a later route makes nobody wait
    assert serving() == (True, reasons.SERVING)


def test_one_condition_tells_both_drifts() -> None:
    world = World()
    world.prompts = Alarm("prompts", "other questions")
    found = next(c for c in world.look().status.conditions if c.type == "Drift")
    assert (found.status, found.reason, found.message) == (False, reasons.PROMPTS_DRIFTED, "other questions")
    world.drift = Alarm("errors", "more errors")
    found = next(c for c in world.look().status.conditions if c.type == "Drift")
    assert (found.reason, found.message) == (reasons.STABLE_DRIFTED, "more errors; other questions")


def test_a_drift_takes_a_promotion_back_once() -> None:
    world = World()
    drifts_back(world)
    assert world.aliases["champion"] == "1"
    world.look(times=5)
    assert world.route is not None
    assert world.route.stable.version == "1"
    world.aliases["champion"] = "2"  # a person sets it up again
    world.look(times=10)
    assert world.route.stable.version == "2"
    assert world.aliases["champion"] == "2"
    assert [one.reason for one in world.audit].count(reasons.DRIFT_ROLLED_BACK) == 1


def test_longer_answers_take_nothing_back() -> None:
    world = World()
    world.service = with_drift(world.service, onAlarm="rollBack")
    world.reach("watch")
    world.look(after=60.0, times=3)
    world.drift = Alarm("longAnswers", "longAnswers: 40.0% of 87 users with more than 96 tokens")
    world.look(times=5)
    assert world.aliases["champion"] == "2"
    assert reasons.STABLE_DRIFTED in [one.reason for one in world.audit]
