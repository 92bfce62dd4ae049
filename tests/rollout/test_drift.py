"""Stable between rollouts: a day of its own is the measure, and what becomes worse than that is told once, with its size."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.common.routing import Route
from services.rollout import reasons
from services.rollout.drift import kept
from services.rollout.resources import LLMService
from services.rollout.status import Condition
from services.store import Sample, Store, StoreUnavailable
from tests.fakes.rollout_stage import Stage
from tests.fakes.rollout_world import service
from tests.fakes.traffic import Behaviour, Traffic

RULES = service(
    guardrails=[
        {"metric": "errors", "margin": 0.05, "mode": "nonInferior"},
        {"metric": "ttft", "margin": 0.5, "quantile": 0.5},
    ]
)


class Hourly(Stage[Traffic]):
    """A look an hour, with 40 users each."""

    @property
    def route(self) -> Route:
        route = self.store.route("assistant")
        assert route is not None
        return route

    def judged(self, score: float, users: int = 20) -> None:
        """Of the hour that begins, so many users' answers are judged."""
        now, revision = self.store.now(), self.route.stable.revision
        self.store.put_samples([
            Sample(f"{now}:{i}", "assistant", revision, f"unit-{now}-{i}", "t", now + i, score if i % 4 else 1 - score, "rubric")
            for i in range(users)
        ])  # fmt: skip

    async def hours(self, number: int) -> Condition | None:
        for _ in range(number):
            await self.look(users=40, seconds=3600.0)
        return next((one for one in self.reconciler.conditions if one.type == "Drift"), None)


@pytest.fixture
def behaviour() -> dict[str, Behaviour]:
    return {"1": Behaviour(failure=0.02), "2": Behaviour()}


@pytest.fixture
def world(url: str, behaviour: dict[str, Behaviour]) -> Iterator[Hourly]:
    made = Hourly(url, RULES, lambda store, clock: Traffic(store, clock, RULES, behaviour.__getitem__))
    yield made
    made.store.close()


async def test_a_stable_that_does_as_it_did_is_left_alone(world: Hourly) -> None:
    assert await world.hours(50) is None


async def test_a_store_that_fails_in_between_has_nobody_counted_twice(
    world: Hourly, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StoreUnavailable("away")

    await world.hours(30)
    before = counted(world)
    with monkeypatch.context() as broken:
        broken.setattr(Store, "scores", away)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await world.hours(1)
    await world.hours(1)
    assert counted(world) - before == 3 * 40


def counted(world: Hourly) -> int:
    """Users in the detector of errors."""
    state = kept(world.store, "assistant")
    assert state is not None
    return next(one.detector.count for one in state.watch.watched if one.metric == "errors")


async def test_the_state_of_the_schema_before_is_gone_on_with(world: Hourly) -> None:
    await world.hours(32)
    state = kept(world.store, "assistant")
    assert state is not None
    older = {key: value for key, value in state.to_json().items() if key not in ("scored", "evaluated")}
    world.store.keep_state("drift:assistant", world.store.now(), older | {"schema": 1})
    found = kept(world.store, "assistant")
    assert found is not None
    assert (found.done, found.scored, found.evaluated) == (state.done, state.done, None)
    assert found.watch.to_json() == state.watch.to_json()


async def test_what_becomes_worse_is_told_once_also_by_another_controller(
    world: Hourly, behaviour: dict[str, Behaviour]
) -> None:
    assert await world.hours(32) is None
    world.restart()
    behaviour["1"] = Behaviour(failure=0.4)
    drift = await world.hours(10)
    assert drift is not None
    assert (drift.status, drift.reason) == (False, reasons.STABLE_DRIFTED)
    assert drift.message.startswith("errors: ")
    assert "since" in drift.message
    world.restart()
    assert await world.hours(2) == drift
    assert [entry.reason for entry in world.store.audit("assistant")].count(
        reasons.STABLE_DRIFTED
    ) <= 2  # told anew by a new controller


async def test_a_week_after_the_alarm_it_is_how_things_are(world: Hourly, behaviour: dict[str, Behaviour]) -> None:
    await world.hours(32)
    behaviour["1"] = Behaviour(ttft=0.5)
    drift = await world.hours(6)
    assert drift is not None
    assert drift.message.startswith("ttft: ")
    for _ in range(8):
        await world.look(users=200, seconds=86_400.0)
    assert await world.hours(2) is None


def share(world: Hourly) -> int:
    """Of the users, in buckets, whose answers are looked at."""
    assert world.route.sample is not None
    return world.route.sample.share


def graded(on_alarm: str) -> LLMService:
    document = RULES.model_dump(mode="json", by_alias=True)
    document["spec"]["rollout"]["judge"] = {"kind": "rubric", "endpoint": "http://judge/v1", "model": "m"}
    document["spec"]["privacy"] = {"content": "judge"}
    document["spec"]["drift"] = {"sample": 0.5, "onAlarm": on_alarm, "evaluation": {"share": 0.8, "users": 50}}
    return LLMService.model_validate(document)


async def test_answers_that_the_judge_likes_less(world: Hourly) -> None:
    world.service = graded("alert")
    world.restart()
    await world.hours(3)
    for _ in range(40):
        assert await world.hours(1) is None
        world.judged(0.9)
    state = kept(world.store, "assistant")
    assert state is not None
    assert "judge" in state.watch.metrics
    drift = None
    for _ in range(30):
        world.judged(0.2)
        drift = await world.hours(1)
        if drift is not None:
            break
    assert drift is not None
    assert drift.message.startswith("judge: ")


async def test_an_alarm_has_answers_judged_and_tells_what_came_of_it(
    world: Hourly, behaviour: dict[str, Behaviour]
) -> None:
    world.service = graded("evaluate")
    world.restart()
    await world.hours(3)
    for _ in range(32):
        await world.hours(1)
        world.judged(0.9)
    behaviour["1"] = Behaviour(failure=0.4)
    drift = None
    while drift is None:
        drift = await world.hours(1)
    assert drift.reason == reasons.STABLE_DRIFTED
    await world.hours(1)
    assert share(world) == 8_000
    for _ in range(3):
        world.judged(0.1, 30)
        drift = await world.hours(1)
    assert drift is not None
    assert drift.reason == reasons.DRIFT_EVALUATED
    assert drift.message.endswith("worse")
    world.restart()
    await world.hours(2)
    assert share(world) == 5_000
    told = [entry.reason for entry in world.store.audit("assistant")]
    assert told.index(reasons.STABLE_DRIFTED) < told.index(reasons.DRIFT_EVALUATED)
