"""Drift of prompts on a real store: a week of the service's own is the reference, another mix of topics is told, seasons are not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import msgspec
import pytest

from services.common import telemetry as names
from services.common.clock import DAY, HOUR
from services.common.routing import Route, Target
from services.common.routing import Sample as Drawn
from services.rollout.observe import Sight
from services.rollout.observed import Alarm, Identity, Observed
from services.rollout.prompt_drift import ALPHA, BLOCK, WEEK, PromptKeeper, PromptState, blocks, kept, level, pairs
from services.rollout.resources import LLMService
from services.store import Sample, SampleKey, Store, open_store
from tests.fakes.embedder import embedding
from tests.fakes.rollout_rows import HandClock

DAYTIME = ["order parcel shipped tracking", "refund money broken receipt", "invoice bill charged address"]
NIGHT = ["sleep awake tired worries", "headache pain medicine"]
NEW = "outage error unavailable incident"
MONDAY = 4 * DAY + 2900 * WEEK


def resource(model: str = "words", share: float = 0.2) -> LLMService:
    drift = {"sample": share, "prompts": {"endpoint": "http://embeddings/v1", "model": model}}
    return LLMService.model_validate(
        {
            "apiVersion": "understudy.dev/v1alpha1",
            "kind": "LLMService",
            "metadata": {"name": "assistant"},
            "spec": {"model": {"registeredModel": "assistant"}, "privacy": {"content": "topics"}, "drift": drift},
        }
    )


def observed(revision: str = "assistant-v1-0000") -> Observed:
    target = Target(revision=revision, version="1", addresses=("http://e/v1",), model="m")
    route = Route(service="assistant", version=1, stable=target)
    return Observed(
        route=route, gateways=1, acknowledged=True, rollout=None, aliases=None, engines=None, identity=Identity("r", "00")
    )  # fmt: skip


class Service:
    """Users of an own each who ask, more by day than by night, and a keeper that looks every four hours."""

    def __init__(self, store: Store, clock: HandClock) -> None:
        self.store, self.clock, self.spec = store, clock, resource()
        self.keeper, self.rng, self.users = PromptKeeper(store), random.Random(7), count()
        self.seen = observed()
        clock.now = MONDAY
        store.publish_route(self.seen.route)

    def ask(self, at: float, new: float) -> Sample:
        night = at % DAY < 8 * HOUR
        text = NEW if self.rng.random() < new else self.rng.choice(NIGHT if night else DAYTIME)
        words = self.rng.sample(text.split(), 2)
        name = f"{next(self.users):06}"
        vector = embedding(" ".join(words)).tobytes()
        return Sample(
            name, "assistant", "assistant-v1-0000", f"unit-{name}", "", at, model="words", embedding=vector, words=2
        )  # fmt: skip

    async def pass_time(self, seconds: float, new: float = 0.0, users: int = 15) -> Alarm | None:
        """`users`: in four hours by day; by night a third."""
        end = self.clock.now + seconds
        alarm = None
        while self.clock.now < end:
            begin = self.clock.now
            number = users // 3 if begin % DAY < 8 * HOUR else users
            times = sorted(begin + self.rng.random() * BLOCK for _ in range(number))
            self.store.put_samples([self.ask(at, new) for at in times])
            self.clock.now += BLOCK
            alarm = await self.look()
        return alarm

    async def look(self) -> Alarm | None:
        sight = Sight(self.seen, None, self.clock.now, self.clock.now)
        return (await self.keeper.look(self.spec, sight)).observed.prompts


@pytest.fixture
def world(url: str) -> Iterator[Service]:
    clock = HandClock()
    store = open_store(url, clock)
    yield Service(store, clock)
    store.close()


async def test_nights_and_weekends_are_no_drift_and_a_new_topic_is_told(world: Service) -> None:
    assert await world.pass_time(WEEK + BLOCK) is None
    state = world.keeper.state
    assert state is not None
    assert state.reference is not None
    assert MONDAY - HOUR <= state.reference <= MONDAY + BLOCK
    assert state.users > 250
    assert await world.pass_time(5 * DAY) is None
    day, week = state.rounds
    assert week.test is not None
    assert (day.number, week.number) in ((5, 1), (6, 1))
    assert week.test.pairs > 200
    world.keeper = PromptKeeper(world.store)  # a restarted controller goes on
    alarm = await world.pass_time(4 * DAY, new=0.5)
    assert alarm is not None
    assert alarm.message.startswith("what users ask has changed since the week from 2025-")
    assert alarm.evidence["eValue"] >= alarm.evidence["threshold"] == 1 / level(alarm.evidence["round"])
    assert alarm.evidence["accuracy"] > 0.5
    assert world.keeper.topics is not None
    assert world.keeper.topics.share("new") > 0.05
    measured = {(spec.name, *labels): value for spec, labels, value in world.keeper.measured()}
    assert measured["understudy_prompts_drift_e_value",] >= measured["understudy_prompts_drift_e_value_threshold",]
    assert sum(value for (name, *_), value in measured.items() if name == names.PROMPTS_TOPICS.name) == pytest.approx(1)
    assert measured[names.PROMPTS_LANGUAGES.name, "unknown"] == 1
    assert measured[names.PROMPTS_WORDS.name, "0.5"] == 2
    assert await world.look() == alarm
    world.keeper = PromptKeeper(world.store)
    world.clock.now += HOUR  # its turn comes
    await world.look()
    assert await world.look() == alarm
    assert await world.pass_time(WEEK + DAY, new=0.5) is None, "a week after the alarm it is how things are"


async def test_the_reference_is_the_week_before_the_promotion(world: Service) -> None:
    await world.pass_time(8 * DAY)
    world.seen = observed("assistant-v2-0000")
    world.store.publish_route(world.seen.route)
    promoted = world.clock.now
    await world.pass_time(DAY)
    assert world.keeper.state is not None
    assert (world.keeper.state.revision, world.keeper.state.reference) == ("assistant-v2-0000", promoted - WEEK)
    assert world.keeper.state.rounds[1].test is not None


@pytest.mark.parametrize("change", [{"model": "other"}, {"share": 0.4}])
async def test_what_is_drawn_or_embedded_otherwise_is_not_compared(world: Service, change: dict[str, object]) -> None:
    await world.pass_time(8 * DAY)
    world.spec = resource(**change)  # type: ignore[arg-type]
    assert await world.pass_time(2 * DAY, new=0.9) is None
    state = world.keeper.state
    assert state is not None
    assert state.reference is None
    assert state.since > MONDAY + WEEK


async def test_what_an_evaluation_draws_is_not_compared(world: Service) -> None:
    await world.pass_time(WEEK + DAY)
    assert world.keeper.state is not None
    week = world.keeper.state.rounds[1]
    assert week.test is not None
    before = week.test.pairs
    assert world.seen.route is not None
    for share, drawn in ((2_000, True), (5_000, False), (2_000, False)):  # the round in which it was stays void
        route = msgspec.structs.replace(world.seen.route, sample=Drawn(salt="00", share=share))
        world.seen = replace(world.seen, route=route)
        await world.pass_time(BLOCK)
        assert (week.test.pairs > before) == drawn
        before = week.test.pairs


async def test_vectors_of_another_size_under_the_same_name_begin_anew(world: Service) -> None:
    await world.pass_time(8 * DAY)
    plain = world.ask

    def shorter(at: float, new: float) -> Sample:
        one = plain(at, new)
        assert one.embedding is not None
        return replace(one, embedding=one.embedding[:64])

    world.ask = shorter  # type: ignore[method-assign]
    await world.pass_time(DAY)
    assert world.keeper.state is not None
    assert world.keeper.state.reference is None


async def test_few_users_are_no_reference_and_nobody_looks_unasked(world: Service) -> None:
    assert await world.pass_time(9 * DAY, users=1) is None
    assert world.keeper.state is not None
    assert world.keeper.state.reference is None
    world.spec = LLMService.model_validate(
        {**world.spec.model_dump(by_alias=True), "spec": {"model": {"registeredModel": "assistant"}}}
    )
    await world.look()
    assert world.keeper.state is None


def test_a_users_first_prompt_counts_and_partners_are_drawn_at_random() -> None:
    keys = [SampleKey(f"s{i}", f"u{i % 5}", i * HOUR) for i in range(20)]
    first = blocks(keys, 0.0)
    assert {number: [key.id for key in found] for number, found in first.items()} == {
        0: ["s0", "s1", "s2", "s3"],
        1: ["s4"],
    }
    past, today = ([SampleKey(f"{side}{i}", f"u{i}", 0.0) for i in range(50)] for side in "ab")
    one, other = pairs(past, today[:40], 1), pairs(past, today[:40], 2)
    assert len(one) == len({a for a, _ in one}) == len({b for _, b in one}) == 40
    assert dict(one) != dict(other)
    assert one == pairs(past[::-1], today[:40], 1)


def test_levels_add_up_to_alpha() -> None:
    assert 2 * sum(level(number) for number in range(1, 10_000)) < ALPHA


def test_a_state_of_another_program_begins_anew(world: Service) -> None:
    world.store.keep_state("prompts:assistant", 0.0, {"schema": 0})
    assert kept(world.store, "assistant") is None
    world.store.keep_state(
        "prompts:assistant", 0.0, {**PromptState("r", "m", 0.1, 0.0).to_json(), "rounds": [[1, {"version": 1}]] * 2}
    )
    assert kept(world.store, "assistant") is None
