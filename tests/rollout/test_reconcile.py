"""The loop on a real store: evidence from rows to verdict, crashes at any point, parts that are away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from services.rollout import reasons
from services.rollout.actions import Action
from services.rollout.execute import Executor
from services.rollout.resources import LLMService
from services.rollout.status import RolloutStatus
from services.store import StoreUnavailable
from tests.fakes.rollout_stage import RIGHT, Stage
from tests.fakes.rollout_world import service
from tests.fakes.traffic import Behaviour, Traffic

GUARDRAILS = [
    {"metric": "errors", "margin": 0.1, "mode": "nonInferior"},
    {"metric": "ttft", "margin": 0.5, "mode": "nonInferior", "quantile": 0.5},
    {"metric": "tokensPerSecond", "margin": 0.5},
    {"metric": "feedback", "margin": 0.1},
]
GOOD = Behaviour()
RESOURCE = service(guardrails=GUARDRAILS, alpha=0.1)


def _stage(url: str, behave: Callable[[str], Behaviour], resource: LLMService = RESOURCE) -> Stage[Traffic]:
    return Stage(url, resource, lambda store, clock: Traffic(store, clock, resource, behave))


@pytest.fixture
def stage(url: str) -> Iterator[Callable[..., Stage[Traffic]]]:
    made: list[Stage[Traffic]] = []

    def make(behave: Callable[[str], Behaviour] = lambda _: GOOD, resource: LLMService = RESOURCE) -> Stage[Traffic]:
        made.append(_stage(url, behave, resource))
        return made[-1]

    yield make
    for one in made:
        one.store.close()


def _second(behaviour: Behaviour) -> Callable[[str], Behaviour]:
    return lambda version: behaviour if version == "2" else GOOD


def _decided(rollout: RolloutStatus) -> bool:
    return rollout.decided_at is not None


async def test_a_good_version_is_promoted(stage: Callable[..., Stage[Traffic]]) -> None:
    world = stage()
    rollout = await world.play(_decided)
    assert (rollout.verdict, rollout.reason, rollout.decided_in) == ("advance", reasons.PROMOTED, "canary")
    await world.look()
    assert world.registry.aliases == {"champion": "2"}
    assert rollout.counts.users_candidate >= 20
    readings = world.store.readings(rollout.id)
    assert {(r["stage"], r["metric"]) for r in readings} == {
        ("rehearsal", "errors"), ("rehearsal", "ttft"), ("rehearsal", "tokensPerSecond"),
        ("canary", "errors"), ("canary", "ttft"), ("canary", "tokensPerSecond"), ("canary", "feedback"),
    }  # fmt: skip
    said = [entry.reason for entry in world.store.audit(rollout=rollout.id)]
    assert said[:2] == [reasons.ROLLOUT_STARTED, reasons.GATE_PASSED]
    assert said[-1] == reasons.PROMOTED


@pytest.mark.parametrize(
    ("behaviour", "decided_in", "reason"),
    [
        (Behaviour(failure=0.8), "rehearsal", reasons.ERRORS_HARMFUL),
        (Behaviour(ttft=0.2), "rehearsal", reasons.TTFT_HARMFUL),
        (Behaviour(displeased=0.7), "canary", reasons.FEEDBACK_HARMFUL),
    ],
)
async def test_a_bad_version_is_aborted(
    stage: Callable[..., Stage[Traffic]], behaviour: Behaviour, decided_in: str, reason: str
) -> None:
    world = stage(_second(behaviour))
    rollout = await world.play(_decided)
    assert (rollout.verdict, rollout.reason, rollout.decided_in) == ("abort", reason, decided_in)
    for _ in range(3):
        await world.look()
    assert world.registry.aliases == {"champion": "1"}
    assert world.registry.versions["2"].tags["understudy.reason"] == reason
    assert list(world.platform.engines) == [world.platform.applied[0].name]


async def test_a_controller_that_dies_after_every_look_decides_the_same(template: bytes, tmp_path: Path) -> None:
    ends = []
    for restart in (False, True):
        path = tmp_path / f"{restart}.db"
        path.write_bytes(template)
        world = _stage(f"sqlite:///{path}", _second(Behaviour(displeased=0.5)))
        rollout = await world.play(_decided, restart=restart)
        last = {(reading["stage"], reading["metric"]): reading for reading in world.store.readings(rollout.id)}
        for reading in last.values():
            del (
                reading["at"],
                reading["until"],
            )  # an unchanged reading is not stored again, but for once after a restart
        ends.append((rollout.verdict, rollout.reason, rollout.decided_at, rollout.counts, last))
        world.store.close()
    assert ends[0] == ends[1]


async def test_a_crash_between_store_and_outside_is_finished_by_the_next_look(
    stage: Callable[..., Stage[Traffic]],
) -> None:
    world = stage(_second(Behaviour(failure=0.5)))

    class Dying(Executor):
        async def run(
            self, service: LLMService, rules: LLMService, actions: Sequence[Action], rollout: str | None = None
        ) -> None:
            raise ConnectionResetError("the process dies here")

    await world.play(lambda rollout: rollout.stage == "rehearsal" and rollout.stage_started_at is not None)
    world.restart(Dying)
    for _ in range(30):
        with pytest.raises(ConnectionResetError):
            await world.look()
        if world.store.rollouts("assistant", 1)[0].stage == "finished":
            break
    assert "challenger" in world.registry.aliases
    world.restart()
    for _ in range(4):
        await world.look()
    assert world.registry.aliases == {"champion": "1"}
    assert len(world.platform.engines) == 1
    assert len(world.store.rollouts("assistant")) == 1


async def test_a_look_that_cannot_be_stored_counts_nothing_twice(
    stage: Callable[..., Stage[Traffic]], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = stage()
    await world.play(lambda rollout: rollout.stage == "canary" and rollout.counts.users_candidate > 0)
    commit = world.store.commit_look

    def away(*arguments: Any, **named: Any) -> None:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(world.store, "commit_look", away)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await world.look()
    monkeypatch.setattr(world.store, "commit_look", commit)
    rollout = await world.look()
    assert rollout is not None
    closed = world.store.closed_units(rollout.id, (0.0, ""), world.clock.now)
    counted = rollout.counts.users_candidate + rollout.counts.users_control
    assert counted == len(closed) > 0


async def test_an_exposure_in_the_wrong_bucket_voids_the_evidence(stage: Callable[..., Stage[Traffic]]) -> None:
    world = stage()
    world.traffic.wrong_bucket = True
    rollout = await world.play(_decided)
    assert (rollout.verdict, rollout.reason) == ("error", reasons.ASSIGNMENT_FAULT)
    assert "g1" in rollout.message


async def test_an_engine_that_cannot_start_ends_in_its_last_words(stage: Callable[..., Stage[Traffic]]) -> None:
    world = stage()
    world.platform.failures["/models/2"] = "ValueError: no config.json"
    rollout = await world.play(_decided)
    assert (rollout.verdict, rollout.reason) == ("abort", reasons.ENGINE_FAILED)
    assert "no config.json" in rollout.message
    assert [r.version for _, r in world.store.route_history("assistant")] == [1], "stable never noticed"


async def test_a_registry_that_is_away_delays_and_loses_nothing(stage: Callable[..., Stage[Traffic]]) -> None:
    world = stage()
    await world.play(lambda rollout: rollout.stage == "canary" and rollout.step == 1)
    world.registry.away = True
    for _ in range(25):
        rollout = await world.look()
    assert rollout is not None
    assert rollout.verdict == "continue"
    assert rollout.conditions[0].reason == reasons.AWAITING_REGISTRY
    world.registry.away = False
    for _ in range(3):
        rollout = await world.look()
    assert rollout is not None
    assert rollout.verdict == "advance"
    assert world.registry.aliases == {"champion": "2"}


async def test_a_challenger_set_once_the_last_rollout_has_finished_is_not_lost(
    stage: Callable[..., Stage[Traffic]],
) -> None:
    """Somebody who waits for the end of one rollout to start the next must not be overtaken by the end of the last one's alias."""
    world = stage(_second(Behaviour(failure=0.8)))
    world.registry.add("3", RIGHT)
    take_off, waits = world.registry.delete_alias, True

    def start_the_next() -> None:
        nonlocal waits
        rollouts = world.store.rollouts("assistant", 1)
        if waits and rollouts and rollouts[0].finished_at is not None:
            waits = False
            world.registry.aliases["challenger"] = "3"

    async def slowly(model: str, alias: str) -> None:
        start_the_next()
        await take_off(model, alias)

    world.registry.delete_alias = slowly  # type: ignore[method-assign]
    await world.play(_decided)
    for _ in range(5):
        rollout = await world.look()
        start_the_next()
    assert rollout is not None
    assert (rollout.version, rollout.active) == ("3", True)


async def test_a_challenger_set_during_a_watch_ends_it(stage: Callable[..., Stage[Traffic]]) -> None:
    world = stage()
    await world.play(lambda rollout: rollout.stage == "watch" and rollout.stage_started_at is not None)
    await world.play(lambda rollout: rollout.version == "3", version="3")
    new, old = world.store.rollouts("assistant")
    assert (new.version, new.finished_at) == ("3", None)
    assert (old.stage, old.verdict, old.finished_at is not None) == ("finished", "advance", True)


async def test_aliases_of_another_owner_start_nothing(stage: Callable[..., Stage[Traffic]]) -> None:
    world = stage()
    world.registry.owner = "other-cluster/assistant"
    for _ in range(3):
        await world.look()
    world.registry.aliases["challenger"] = "2"
    assert await world.look() is None
    assert reasons.ALIAS_CONFLICT in [entry.reason for entry in world.store.audit("assistant")]


async def test_failures_after_promotion_roll_back(stage: Callable[..., Stage[Traffic]]) -> None:
    worse: dict[str, Behaviour] = {"1": GOOD, "2": GOOD}
    rules = service(guardrails=GUARDRAILS, alpha=0.1, rollbackWindow="200s")
    world = stage(lambda version: worse[version], resource=rules)
    await world.play(lambda rollout: rollout.stage == "watch" and rollout.stage_started_at is not None)
    worse["2"] = Behaviour(failure=0.9)
    rollout = await world.until(lambda rollout: not rollout.active, users=20)
    assert (rollout.reason, rollout.metric) == (reasons.WATCH_ERRORS, "errors")
    assert "users since" in rollout.message
    await world.look()
    assert world.registry.aliases["champion"] == "1"


async def test_a_watch_is_the_same_however_often_the_controller_restarts(stage: Callable[..., Stage[Traffic]]) -> None:
    worse: dict[str, Behaviour] = {"1": GOOD, "2": GOOD}
    world = stage(
        lambda version: worse[version], resource=service(guardrails=GUARDRAILS, alpha=0.1, rollbackWindow="200s")
    )
    await world.play(lambda rollout: rollout.stage == "watch" and rollout.stage_started_at is not None)
    worse["2"] = Behaviour(ttft=0.4)
    rollout = await world.until(lambda rollout: not rollout.active, restart=True, users=20)
    assert rollout.reason == reasons.WATCH_TTFT, rollout.message


async def test_an_engine_that_nobody_asks_for_may_end(stage: Callable[..., Stage[Traffic]]) -> None:
    rules = service(guardrails=GUARDRAILS)
    engine = rules.spec.engine.model_validate({"autoscaling": {"min": 0, "max": 1, "downscaleDelay": "20s"}})
    world = stage(resource=rules.model_copy(update={"spec": rules.spec.model_copy(update={"engine": engine})}))
    for _ in range(12):
        await world.look()
    (name,) = world.platform.engines
    assert world.platform.engines[name].replicas == (1, 1)
    assert world.platform.applied[0].autoscaling["downscale_to_zero_delay_s"] == 20.0
    for _ in range(12):
        await world.look(users=0)
    assert world.platform.scaled == [(name, (0, 1))]
    await world.look(users=1)
    assert world.platform.scaled == [(name, (0, 1)), (name, (1, 1))]


async def test_a_version_is_pinned_while_the_resource_says_so(stage: Callable[..., Stage[Traffic]]) -> None:
    world = stage()
    world.registry.add("3", RIGHT)
    for _ in range(3):
        await world.look()
    model = world.service.spec.model.model_copy(update={"pinned": ("3",)})
    before = world.service
    world.reconciler.service = before.model_copy(update={"spec": before.spec.model_copy(update={"model": model})})
    for _ in range(3):
        await world.look()
    route = world.store.route("assistant")
    assert route is not None
    assert [target.version for target in route.pinned] == ["3"]
    world.registry.away = True
    await world.look()
    assert world.store.route("assistant") == route
    world.registry.away = False
    world.reconciler.service = before
    for _ in range(3):
        await world.look()
    assert len(world.platform.removed) == 1
    assert world.store.route("assistant").pinned == ()  # type: ignore[union-attr]


async def test_slow_first_tokens_call_for_replicas(stage: Callable[..., Stage]) -> None:
    resource = service()
    engine = resource.spec.engine.model_validate(
        {"autoscaling": {"max": 3, "targetTtft": "1s", "upscaleDelay": "4s", "downscaleDelay": "20s"}}
    )
    spec = resource.spec.model_copy(update={"engine": engine})
    ttft = 3.0
    world = stage(lambda _: Behaviour(ttft=ttft), resource=resource.model_copy(update={"spec": spec}))
    for _ in range(12):
        await world.look()
    asked = [bounds for _, bounds in world.platform.scaled]
    assert asked == [(2, 3), (3, 3)]
    ttft = 0.1
    for _ in range(40):
        await world.look()
    assert [bounds for _, bounds in world.platform.scaled][2:] == [(2, 3), (1, 3)]


async def test_evidence_of_another_program_is_folded_anew_from_the_rows(stage: Callable[..., Stage[Traffic]]) -> None:
    world = stage()
    before = await world.play(lambda rollout: rollout.stage == "canary" and rollout.counts.users_candidate > 20)
    stored = world.store.evidence(before.id)
    row = world.store.rollouts("assistant", 1)[0]
    world.store.commit_look(row, evidence={**(stored or {}), "schema": 0}, at=world.clock.now)
    world.restart()
    after = await world.look(users=0)
    assert after is not None
    assert after.counts.users_candidate >= before.counts.users_candidate
    closed = world.store.closed_units(before.id, (0.0, ""), world.clock.now)
    assert after.counts.users_candidate + after.counts.users_control == len(closed)


async def test_a_resource_that_asks_for_more_than_its_traffic_gives_is_warned(
    stage: Callable[..., Stage[Traffic]],
) -> None:
    world = stage(resource=service(guardrails=[{"metric": "errors", "margin": 0.001, "mode": "nonInferior"}]))
    for _ in range(20):
        await world.look(users=2, seconds=400.0)
    condition = next(c for c in world.reconciler.conditions if c.type == "Plan")
    assert condition.reason == reasons.MARGIN_OUT_OF_REACH
    assert "errors" in condition.message
