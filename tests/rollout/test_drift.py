"""Stable between rollouts: a day of its own is the measure, and what becomes worse than that is told once, with its size."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.rollout import reasons
from services.rollout.status import Condition
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
