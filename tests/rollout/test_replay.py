"""Recorded rollouts played again: with their own rules they come out as they did, with others as far as the record tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from services.common.identifiers import uuid7
from services.rollout import reasons
from services.rollout.replay import Replay, replay
from services.rollout.resources import LLMService
from services.rollout.status import RolloutStatus
from services.store import Command
from tests.fakes.records import observation
from tests.fakes.rollout_stage import Stage
from tests.fakes.rollout_world import service
from tests.fakes.traffic import Behaviour, Traffic

Make = Callable[..., Stage[Traffic]]
GUARDRAILS: list[dict[str, Any]] = [
    {"metric": "errors", "margin": 0.1, "mode": "nonInferior"},
    {"metric": "ttft", "margin": 0.5, "mode": "nonInferior", "quantile": 0.5},
    {"metric": "tokensPerSecond", "margin": 0.5},
    {"metric": "feedback", "margin": 0.1},
]
STEPS = [
    {"weight": 5, "minDuration": "10s", "minUnits": 10, "maxDuration": "100s"},
    {"weight": 50, "minDuration": "10s", "minUnits": 20, "maxDuration": "100s"},
]


def rules(**changes: Any) -> LLMService:
    return service(**{"guardrails": GUARDRAILS, "alpha": 0.1, "canary": {"steps": STEPS}, **changes})


@pytest.fixture
def make(url: str) -> Iterator[Make]:
    made: list[Stage[Traffic]] = []

    def stage(second: Behaviour | None = None, resource: LLMService | None = None) -> Stage[Traffic]:
        resource = resource or rules()

        def behave(version: str) -> Behaviour:
            return second if second is not None and version == "2" else Behaviour()

        made.append(Stage(url, resource, lambda store, clock: Traffic(store, clock, resource, behave)))
        return made[-1]

    yield stage
    for one in made:
        one.store.close()


def over(rollout: RolloutStatus) -> bool:
    return rollout.finished_at is not None


async def again(world: Stage[Traffic], other: LLMService | None = None) -> Replay:
    return await replay(world.store, world.store.rollouts("assistant", 1)[0], other)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (Behaviour(), reasons.PROMOTED),
        (Behaviour(failure=0.8), reasons.ERRORS_HARMFUL),
        (Behaviour(ttft=0.2), reasons.TTFT_HARMFUL),
        (Behaviour(displeased=0.7), reasons.FEEDBACK_HARMFUL),
    ],
)
async def test_with_its_own_rules_a_rollout_comes_out_as_it_did(make: Make, second: Behaviour, reason: str) -> None:
    world = make(second)
    rollout = await world.play(over)
    assert rollout.reason == reason
    found = await again(world)
    assert found.replayed == found.recorded
    assert (found.replayed.reason, found.replayed.at) == (reason, rollout.decided_at)
    assert found.replayed.candidate == rollout.counts.users_candidate
    assert found.limits == ()
    assert await again(world, rules()) == found, "the same rules in a file are the same"


async def test_users_known_before_are_known_again(make: Make) -> None:
    world = make()
    before = world.clock.now - 500
    seen = [
        observation(before, unit=f"user-{i}", arm="stable", rollout=None, outcome="error" if i % 9 else "ok")
        for i in range(900)
    ]
    world.store.write(seen)
    rollout = await world.play(over)
    known = [
        reading
        for reading in world.store.readings(rollout.id)
        if reading["metric"] == "errors" and reading["stage"] == "canary"
    ]
    assert known[-1]["known"] > 40
    found = await again(world)
    assert (found.replayed, found.limits) == (found.recorded, ())


async def test_a_rollback_in_the_watch_comes_out_as_it_did(url: str) -> None:
    versions: dict[str, Behaviour] = {"1": Behaviour(), "2": Behaviour()}
    resource = rules(rollbackWindow="200s")
    world = Stage(url, resource, lambda store, clock: Traffic(store, clock, resource, versions.__getitem__))
    await world.play(lambda rollout: rollout.stage == "watch" and rollout.stage_started_at is not None)
    versions["2"] = Behaviour(displeased=0.9)
    rollout = await world.until(lambda rollout: not rollout.active, users=20)
    assert rollout.reason == reasons.WATCH_FEEDBACK, rollout.message
    found = await again(world)
    assert (found.replayed, found.limits) == (found.recorded, ())
    world.store.close()


async def test_a_replay_writes_nothing(make: Make) -> None:
    world = make(Behaviour(displeased=0.7))
    await world.play(over)
    rows = [
        world.store.rollouts(),
        world.store.audit(),
        world.store.route_history("assistant"),
        world.store.readings("rollout-1"),
    ]
    await again(world, rules(alpha=0.3))
    assert rows == [
        world.store.rollouts(),
        world.store.audit(),
        world.store.route_history("assistant"),
        world.store.readings("rollout-1"),
    ]


async def test_rows_that_came_too_late_are_too_late_again(make: Make) -> None:
    world = make()
    rollout = await world.play(over)
    units = world.store.closed_units(rollout.id, (0.0, ""), rollout.decided_at or 0)
    world.store.write(
        [
            observation(
                u.exposure.first_at + 1, request_id=f"late-{n}", unit=u.exposure.unit, rollout=rollout.id, arm=u.exposure.arm,
                outcome="error", status=500, sequence=10**6 + n,
            )
            for n, u in enumerate(units) if u.exposure.arm == "candidate"
        ]
    )  # fmt: skip
    found = await again(world)
    assert found.replayed == found.recorded


async def test_what_people_and_time_did_is_done_again(make: Make) -> None:
    world = make(resource=rules(canary={"steps": [{**STEPS[0], "approval": True}, STEPS[1]]}))

    def order(verb: Any) -> None:
        world.store.add_command(Command(uuid7(), "assistant", None, verb, "ada", "", world.clock.now))

    await world.play(lambda r: any(c.reason == reasons.AWAITING_APPROVAL for c in r.conditions))
    order("pause")
    for _ in range(3):
        await world.look()
    order("resume")
    order("approve")
    await world.until(over)
    found = await again(world)
    assert found.recorded.verdict == "advance"
    assert found.replayed == found.recorded


async def test_an_engine_that_grew_too_slowly_holds_the_replay_back_too(make: Make) -> None:
    world = make()
    await world.play(lambda r: r.stage == "canary" and r.step == 0)
    candidate = world.platform.applied[-1].name
    state = world.platform.engines[candidate]
    world.platform.engines[candidate] = replace(state, ready_replicas=0)
    for _ in range(10):
        await world.look()
    world.platform.engines[candidate] = state
    await world.until(over)
    found = await again(world)
    assert found.recorded.verdict == "advance"
    assert found.replayed == found.recorded


async def test_a_stricter_margin_would_have_seen_it_sooner_or_at_all(make: Make) -> None:
    world = make(Behaviour(displeased=0.3))
    rollout = await world.play(over)
    assert rollout.reason == reasons.PROMOTED, "three users in ten complain, and the margin allows it"
    strict = [*GUARDRAILS[:3], {"metric": "feedback", "margin": 0.01}]
    found = await again(world, rules(guardrails=strict, alpha=0.4))
    assert (found.replayed.verdict, found.replayed.metric) == ("abort", "feedback")
    assert (found.replayed.at or 0) < (rollout.decided_at or 0)
    assert found.recorded.verdict == "advance"


async def test_a_looser_rule_is_not_known_beyond_the_record(make: Make) -> None:
    world = make(Behaviour(displeased=0.7))
    rollout = await world.play(over)
    assert rollout.reason == reasons.FEEDBACK_HARMFUL
    found = await again(world, rules(guardrails=[*GUARDRAILS[:3], {"metric": "feedback", "margin": 0.9}]))
    assert found.replayed.verdict == "unknown"
    assert "these would have gone on" in found.limits[0]


async def test_a_longer_rehearsal_was_never_mirrored(make: Make) -> None:
    world = make()
    await world.play(over)
    longer = {"minPairs": 2000, "minDuration": "10s", "maxDuration": "1000s"}
    found = await again(world, rules(rehearsal=longer))
    assert found.replayed.verdict == "unknown"
    assert "these rules ask for more, which were never mirrored" in found.replayed.message


async def test_other_steps_get_the_users_of_the_recorded_ones(make: Make) -> None:
    world = make(Behaviour(displeased=0.7))
    await world.play(over)
    steps = [{"weight": 1, "minUnits": 1, "minDuration": "1s"}, *STEPS]
    found = await again(world, rules(canary={"steps": steps}, alpha=0.4))  # more steps share what shows harm
    assert found.replayed.verdict == "abort"
    assert found.limits == ("its users were given to the arms by the recorded steps, not by these",)


async def test_time_that_is_up_is_noticed_between_recorded_looks(make: Make) -> None:
    world = make()
    rollout = await world.play(over)
    short = {"minPairs": 100_000, "minDuration": "1s", "maxDuration": "3s"}
    found = await again(world, rules(rehearsal=short))
    assert (found.replayed.verdict, found.replayed.reason) == ("hold", reasons.REHEARSAL_INCONCLUSIVE)
    assert (found.replayed.at or 0) < (rollout.decided_at or 0)


async def test_ends_from_outside_stay(make: Make) -> None:
    world = make()
    await world.play(lambda r: r.stage == "canary" and r.counts.users_candidate > 5)
    del world.registry.aliases["challenger"]
    rollout = await world.look()
    assert rollout is not None
    assert rollout.reason == reasons.CHALLENGER_DELETED
    found = await again(world, rules(alpha=0.2))
    assert found.replayed == found.recorded
    assert "ended from outside (ChallengerDeleted)" in found.limits[0]


async def test_a_rollout_that_fell_at_the_gate_has_nothing_to_play(make: Make) -> None:
    from services.rollout.observed import Evaluation

    world = make()
    world.registry.add("2", Evaluation("data", {f"item-{i}": i < 5 for i in range(50)}))
    await world.play(over)
    found = await again(world)
    assert found.recorded.stage == "gate"
    assert found.replayed == found.recorded
    assert "nothing can be played" in found.limits[0]


async def test_a_replay_begins_no_experiment(make: Make) -> None:
    document = rules().model_dump(mode="json", by_alias=True)
    variants = [{"name": name, "weight": 10, "version": "1"} for name in ("plain", "warm")]
    document["spec"]["experiments"] = [{"name": "tone", "variants": variants, "metrics": [{"metric": "errors"}]}]
    world = make(Behaviour(failure=0.8))
    await world.play(over)
    played = await again(world, LLMService.model_validate(document))
    assert played is not None
    assert world.store.experiments() == []
