"""Traffic that misleads: the whole controller, on a real store, against candidates and users that simple rules get wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

import msgspec
import pytest

from services.common.routing import Route
from services.gateway.assignment import Placement
from services.rollout import reasons
from services.rollout.resources import LLMService
from services.rollout.status import RolloutStatus
from tests.fakes.crowd import Answer, Crowd, Door, Question, User, good, newcomer
from tests.fakes.rollout_stage import Stage, decided
from tests.fakes.rollout_world import service

Make = Callable[..., Stage[Crowd]]
GUARDRAILS = [
    {"metric": "errors", "margin": 0.05, "mode": "nonInferior"},
    {"metric": "ttft", "margin": 0.3, "mode": "nonInferior", "quantile": 0.9},
    {"metric": "feedback", "margin": 0.1},
]


def rules(**changes: Any) -> LLMService:
    """Two steps, some minutes each."""
    steps = [
        {"weight": 10, "minDuration": "40s", "minUnits": 30, "maxDuration": "300s"},
        {"weight": 50, "minDuration": "60s", "minUnits": 200, "maxDuration": "200s"},
    ]
    rollout = {"alpha": 0.1, "settle": "2s", "guardrails": GUARDRAILS, "canary": {"steps": steps}, **changes}
    return service(**rollout)


@pytest.fixture
def make(url: str) -> Iterator[Make]:
    made: list[Stage[Crowd]] = []

    def stage(resource: LLMService | None = None, gateways: int = 2) -> Stage[Crowd]:
        resource = resource or rules()
        made.append(Stage(url, resource, lambda store, clock: Crowd(store, clock, resource, gateways)))
        return made[-1]

    yield stage
    for one in made:
        one.store.close()


async def play(world: Stage[Crowd], **options: Any) -> RolloutStatus:
    """A rollout until its verdict; 60 new users in each of at most 200 looks, 4 s apart."""
    return await world.play(decided, **{"looks": 200, "users": 60, "seconds": 4.0, **options})


def second(answer: Callable[[Question], Answer]) -> Callable[[Question], Answer]:
    """Version 2 answers so, the others well."""
    return lambda question: answer(question) if question.version == "2" else good(question)


async def test_a_good_version_is_promoted(make: Make) -> None:
    rollout = await play(make())
    assert (rollout.verdict, rollout.reason) == ("advance", reasons.PROMOTED), rollout.message


async def test_slow_only_under_load(make: Make) -> None:
    def answer(question: Question) -> Answer:
        usual = good(question)
        return replace(usual, ttft=0.05 * 2.5) if question.load > 8.0 else usual

    world = make()
    world.traffic.answer = second(answer)
    rollout = await play(world)
    assert (rollout.verdict, rollout.reason, rollout.step) == ("abort", reasons.TTFT_HARMFUL, 1), rollout.message


async def test_good_for_the_first_hour_and_then_leaking(make: Make) -> None:
    def answer(question: Question) -> Answer:
        usual = good(question)
        leaked = max(0.0, question.age - 150.0) / 60.0
        return replace(usual, ttft=(usual.ttft or 0.05) * (1 + leaked))

    steps = [{"weight": 50, "minDuration": "400s", "minUnits": 200, "maxDuration": "800s"}]
    world = make(rules(canary={"steps": steps}))
    world.traffic.answer = second(answer)
    rollout = await play(world)
    assert (rollout.verdict, rollout.reason) == ("abort", reasons.TTFT_HARMFUL), rollout.message


@pytest.mark.parametrize("segmented", [False, True])
async def test_better_on_average_and_worse_for_one_tenth(make: Make, segmented: bool) -> None:
    """Nine of ten users are served faster; those of one tenant wait. Without the segment nobody would notice."""

    def mixed(number: int, chance: Random) -> User:
        return replace(newcomer(number, chance), tenant="acme" if number % 10 == 0 else "web")

    def answer(question: Question) -> Answer:
        usual = good(question)
        return replace(usual, ttft=(usual.ttft or 0.05) * (3.0 if question.user.tenant == "acme" else 0.8))

    median = [GUARDRAILS[0], {"metric": "ttft", "margin": 0.3, "mode": "nonInferior", "quantile": 0.5}]
    segments = [{"name": "enterprise", "tenants": ["acme", "globex"]}] if segmented else []
    world = make(rules(guardrails=median, segments=segments))
    world.traffic.newcomer, world.traffic.answer = mixed, second(answer)
    rollout = await play(world)
    if segmented:
        assert (rollout.verdict, rollout.reason, rollout.metric) == ("abort", reasons.TTFT_HARMFUL, "ttft[enterprise]")
        assert "segment enterprise" in rollout.message
    else:
        assert (rollout.verdict, rollout.reason) == ("advance", reasons.PROMOTED), rollout.message


@pytest.mark.parametrize(
    ("metric", "margin", "reason"),
    [
        ("escalations", 0.05, reasons.ESCALATIONS_HARMFUL),
        ("retries", 0.05, reasons.RETRIES_HARMFUL),
        ("rating", 0.5, reasons.RATING_HARMFUL),
        ("interTokenGap", 0.5, reasons.INTER_TOKEN_GAP_HARMFUL),
        ("duration", 0.5, reasons.DURATION_HARMFUL),
    ],
)
async def test_each_metric_finds_its_harm(make: Make, metric: str, margin: float, reason: str) -> None:
    marks = {"escalations": "escalation", "retries": "retry"}

    def says(question: Question, answer: Answer) -> list[tuple[str, float]]:
        worse, draw = question.version == "2", question.chance.random()
        if metric == "rating" and draw < 0.3:
            return [("rating", 2.0 if worse else 4.0)]
        return [(marks[metric], 1.0)] if metric in marks and draw < (0.3 if worse else 0.05) else []

    def answer(question: Question) -> Answer:
        slow = {"interTokenGap": 0.03, "duration": 0.05}.get(metric, 0.01)
        return replace(good(question), gap=slow)

    world = make(rules(guardrails=[GUARDRAILS[0], {"metric": metric, "margin": margin}]))
    world.traffic.says, world.traffic.answer = says, second(answer)
    rollout = await play(world)
    assert (rollout.verdict, rollout.reason, rollout.metric) == ("abort", reason, metric), rollout.message


async def test_feedback_only_from_the_angry(make: Make) -> None:
    def says(question: Question, answer: Answer) -> list[tuple[str, float]]:
        angry = question.chance.random() < (0.05 if question.version != "3" else 0.3)
        return [("thumb", -1.0)] * 5 if angry else []

    world = make()
    world.traffic.says = says
    rollout = await play(world)
    assert (rollout.verdict, rollout.reason) == ("advance", reasons.PROMOTED), rollout.message
    rollout = await play(world, version="3")
    assert (rollout.verdict, rollout.reason) == ("abort", reasons.FEEDBACK_HARMFUL), rollout.message


async def test_more_praise_hides_no_more_blame(make: Make) -> None:
    def says(question: Question, answer: Answer) -> list[tuple[str, float]]:
        draw, worse = question.chance.random(), question.version == "2"
        if draw < (0.25 if worse else 0.05):
            return [("thumb", -1.0)]
        return [("thumb", 1.0)] if worse else []

    world = make()
    world.traffic.says = says
    rollout = await play(world)
    assert (rollout.verdict, rollout.reason) == ("abort", reasons.FEEDBACK_HARMFUL), rollout.message


@pytest.mark.parametrize("name", ["giant-1", "giant-2"])
async def test_one_user_with_half_of_the_traffic(make: Make, name: str) -> None:
    """All of whose requests fail, whoever answers them, and are blamed."""

    def answer(question: Question) -> Answer:
        return Answer(failed=True) if question.user.name == name else good(question)

    def says(question: Question, answer: Answer) -> list[tuple[str, float]]:
        return [("thumb", -1.0)] if question.user.name == name else []

    world = make()
    world.traffic.answer, world.traffic.says = answer, says
    world.traffic.regulars = [(User(name), 30.0)]
    rollout = await play(world)
    assert (rollout.verdict, rollout.reason) == ("advance", reasons.PROMOTED), rollout.message


async def test_one_users_failures_after_promotion_roll_nothing_back(make: Make) -> None:
    broken = False

    def answer(question: Question) -> Answer:
        return Answer(failed=True) if broken and question.user.name == "giant" else good(question)

    world = make(rules(rollbackWindow="120s"))
    world.traffic.answer = answer
    world.traffic.regulars = [(User("giant"), 30.0)]
    await play(world)
    broken = True
    for _ in range(40):
        rollout = await world.look(60, 4.0)
    assert rollout is not None
    assert (rollout.stage, rollout.verdict) == ("finished", "advance"), rollout.message


async def test_bots(make: Make) -> None:
    """A third of the new users are bots, in bursts: most leave before the first token, some break the engine."""

    def mixed(number: int, chance: Random) -> User:
        if number % 90 < 30:
            return User(f"bot-{number}", requests=3, pause=0.1, kind="bot")
        return newcomer(number, chance)

    def answer(question: Question) -> Answer:
        if question.user.kind != "bot":
            return good(question)
        return Answer(failed=True) if question.chance.random() < 0.1 else Answer(left=question.chance.random() < 0.6)

    world = make()
    world.traffic.newcomer, world.traffic.answer = mixed, answer
    rollout = await play(world)
    assert (rollout.verdict, rollout.reason) == ("hold", reasons.STEP_INCONCLUSIVE), rollout.message


async def test_assignment_broken_at_one_gateway_of_five(make: Make) -> None:
    """It cannot reach the candidate, and exposes only the control."""

    def spoils(door: Door, placement: Placement) -> Placement:
        if door.name != "g3" or placement.arm != "candidate":
            return placement
        return replace(placement, arm="stable", exposed=False, counted=False)

    world = make(gateways=5)
    world.traffic.spoils = spoils
    rollout = await play(world)
    assert (rollout.verdict, rollout.reason) == ("error", reasons.SAMPLE_RATIO_MISMATCH), rollout.message
    assert "g3" in rollout.message


@pytest.mark.parametrize("where", ["rehearsal", "canary"])
@pytest.mark.parametrize(("metric", "lacks"), [("ttft", "ttft"), ("tokensPerSecond", "tokens")])
async def test_metric_missing_for_one_arm(make: Make, metric: str, lacks: str, where: str) -> None:
    """The candidate's answers are good, but the gateways cannot see their first token, or nobody counts their tokens."""

    def answer(question: Question) -> Answer:
        return good(question) if where == "canary" and question.mirrored else replace(good(question), **{lacks: None})

    world = make(rules(guardrails=[GUARDRAILS[0], {"metric": metric, "margin": 0.3}]))
    world.traffic.answer = second(answer)
    rollout = await play(world)
    assert (rollout.verdict, rollout.reason) == ("error", reasons.EVIDENCE_FAULT), rollout.message
    assert rollout.decided_in == where
    assert metric in rollout.message


async def test_two_rollouts_back_to_back(make: Make) -> None:
    def answer(question: Question) -> Answer:
        usual = good(question)
        return replace(usual, ttft=(usual.ttft or 0.05) * 3) if question.version == "2" else usual

    world = make(rules(rehearsal={"minPairs": 0, "minDuration": "0s"}))
    world.traffic.answer = answer
    first = await play(world)
    assert (first.verdict, first.reason) == ("abort", reasons.TTFT_HARMFUL), first.message
    second = await play(world, version="3")
    assert (second.verdict, second.reason) == ("advance", reasons.PROMOTED), second.message
    assert second.id != first.id


async def test_weights_changed_by_hand(make: Make) -> None:
    world = make()
    await world.play(lambda rollout: rollout.stage == "canary" and rollout.counts.users_candidate > 10, users=60)
    route = world.store.route("assistant")
    assert route is not None
    world.store.publish_route(msgspec.structs.replace(route, weight=3_000))
    world.traffic.pass_time(4.0, 60)
    await world.look(60)
    now = world.store.route("assistant")
    assert now is not None
    assert now.weight == 1_000, "the controller's word stands again"
    rollout = await world.until(decided, users=60, seconds=4.0)
    assert (rollout.verdict, rollout.reason) == ("advance", reasons.PROMOTED), rollout.message


async def test_weights_changed_behind_the_controllers_back(make: Make) -> None:
    """A gateway that gives the candidate more users than the route says."""
    world = make()

    def obeys(route: Route) -> Route:
        return msgspec.structs.replace(route, weight=min(5_000, 3 * route.weight))

    world.traffic.obeys = obeys
    rollout = await play(world)
    assert (rollout.verdict, rollout.reason) == ("error", reasons.ASSIGNMENT_FAULT), rollout.message
