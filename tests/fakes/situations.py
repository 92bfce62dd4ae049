"""Situations of a rollout for the tests of decisions: what happens to a `World`, and worlds to which it happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from services.evidence import Reading
from services.rollout import removal
from services.rollout.observed import Alarm, Evaluation, Evaluations, EvidenceView, Refusal
from services.rollout.planning import Caution
from services.rollout.platforms.base import RevisionState
from services.rollout.resources import LLMService
from services.store import Command
from tests.fakes.rollout_world import SHOWN, World, reading, service

WRONG = Evaluation("data", {f"item-{i}": False for i in range(100)})
OTHER = Evaluation("other", {f"item-{i}": True for i in range(100)})
ENOUGH = {"pairs": 50, "step_control": 50, "step_candidate": 50}
Happens = Callable[[World], None]


def shows(**view: Any) -> Happens:
    def happens(world: World) -> None:
        world.evidence = EvidenceView(**view)

    return happens


def alarm(metric: str) -> Happens:
    return shows(alarm=Alarm(metric, f"{metric} has become worse"))


def harm(metric: str) -> Happens:
    return shows(readings=(reading("other"), reading(metric, harmful=True)))


def evaluated(evaluation: Evaluation | None) -> Happens:
    return lambda world: world.evaluations.update({"2": evaluation})


def engine(phase: Any) -> Happens:
    def happens(world: World) -> None:
        assert world.rollout
        name = world.rollout.engine
        world.engines[name] = RevisionState(name, phase, 0, None, "CUDA out of memory")

    return happens


def refused(reason: str) -> Happens:
    def happens(world: World) -> None:
        assert world.rollout
        world.engines.pop(world.rollout.engine, None)
        world.refused = {world.rollout.engine: Refusal(reason, "runs:/run-2/model")}

    return happens


def alias(name: str, version: str | None) -> Happens:
    def happens(world: World) -> None:
        world.version("3")
        world.aliases.pop(name, None)
        if version:
            world.aliases[name] = version

    return happens


def order(*verbs: str) -> Happens:
    def happens(world: World) -> None:
        for verb in verbs:
            world.order(verb)

    return happens


def late(world: World) -> None:
    world.now += 100
    world.evidence = EvidenceView(counts={"pairs": 3, "step_control": 3, "step_candidate": 3})


def passes(world: World) -> None:
    world.now += 20
    world.evidence = EvidenceView(readings=SHOWN, counts=ENOUGH)


def goal(e_value: float) -> Reading:
    """The goal's reading in the last step."""
    return reading("goal:rating", mode="goal", e_promote=e_value, improved=e_value >= 20, last_step=True)


def improves(world: World) -> None:
    world.now += 20
    world.evidence = EvidenceView(readings=(*SHOWN, goal(25.0)), counts=ENOUGH)


def improves_nothing(world: World) -> None:
    world.now += 100
    world.evidence = EvidenceView(readings=(*SHOWN, goal(15.0)), counts=ENOUGH)


def held(world: World) -> None:
    late(world)
    world.look()
    world.now += 50


def away(what: str) -> Happens:
    return lambda world: setattr(world, f"{what}_away", True)


def anew(world: World) -> None:
    """The stage begins again, and no gateway has heard of it."""
    assert world.rollout
    world.rollout = world.rollout.model_copy(update={"stage_started_at": None})
    world.acknowledges = False


def obeyed(world: World) -> None:
    anew(world)
    world.look()
    world.acknowledges = True


def begins(world: World) -> None:
    """The candidate's engine does not answer yet."""
    assert world.rollout
    world.rollout = world.rollout.model_copy(update={"stage_started_at": None, "admitted": False})
    engine("starting")(world)


def takes_too_long(world: World) -> None:
    engine("starting")(world)
    world.look()
    world.now += 901


def passes_unseen(world: World) -> None:
    away("registry")(world)
    passes(world)


def passes_by(world: World) -> None:
    world.now += 30


def no_champion(world: World) -> None:
    world.aliases.clear()
    world.route = None


def unready(world: World) -> None:
    assert world.rollout
    assert world.route
    stable = world.route.stable.model
    world.engines[stable] = RevisionState(stable, "ready", 90, f"http://{stable}/v1", "")
    world.ready_at_once = False
    passes(world)


def deleted(world: World) -> None:
    decision = removal.end(world.service, world.observed(), False, 0.0, world.now)
    world.rollout = decision.status.rollout


def unreadable(world: World) -> None:
    seen = world.observed
    world.observed = lambda: replace(seen(), evaluations=Evaluations(None, None, "no JSON"))  # type: ignore[method-assign]


def pinned(*versions: str) -> Happens:
    def happens(world: World) -> None:
        model = world.service.spec.model.model_copy(update={"pinned": versions})
        world.service = world.service.model_copy(
            update={"spec": world.service.spec.model_copy(update={"model": model})}
        )
        world.version("3")
        world.look(times=2)

    return happens


def unpinned(world: World) -> None:
    pinned("3")(world)
    pinned()(world)
    world.commands["c"] = Command("c", "assistant", None, "unpin", "ada", "", world.now)


def warned(reason: str) -> Happens:
    return lambda world: setattr(world, "caution", Caution(reason, "ask for less"))


def drifted(world: World) -> None:
    world.drift = Alarm("errors", "errors: 9.1% of 87 users since yesterday")


def judged_anew(world: World) -> None:
    drifted(world)
    world.evaluated = "judged since: 0.41 of 200 users (0.35 to 0.47), 0.82 of 300 before (0.78 to 0.86): worse"


def drifts_back(world: World) -> None:
    """v2 was promoted, its watch is over, and then it drifts."""
    world.service = with_drift(world.service, onAlarm="rollBack")
    world.reach("watch")
    world.look(after=60.0, times=3)
    drifted(world)
    world.look()


def with_drift(resource: LLMService, **drift: Any) -> LLMService:
    """The resource with that `spec.drift`."""
    document = resource.model_dump(mode="json", by_alias=True)
    document["spec"]["drift"] = drift
    return LLMService.model_validate(document)


def asked_otherwise(world: World) -> None:
    world.prompts = Alarm("prompts", "what users ask has changed since the week from 2026-11-02")


def falls_asleep(world: World) -> None:
    world.quiet = True
    world.look()
    [name] = world.engines
    world.engines[name] = replace(world.engines[name], ready_replicas=0)


def edited(world: World) -> None:
    """Rolled out, and slow."""
    spec = world.service.spec
    changed = spec.engine.model_copy(update={"arguments": {"max_model_len": 512}})
    world.service = world.service.model_copy(update={"spec": spec.model_copy(update={"engine": changed})})
    world.look(times=4)
    harm("ttft")(world)
    world.look(times=4)
    world.evidence = EvidenceView()


def foreign(world: World) -> None:
    seen = world.observed

    def owned() -> Any:
        observed = seen()
        assert observed.aliases
        return replace(observed, aliases=replace(observed.aliases, owner="other/assistant"))

    world.observed = owned  # type: ignore[method-assign]


def moved_while_starting(world: World) -> None:
    world.ready_at_once = False
    alias("champion", "3")(world)


def nothing(world: World) -> None:
    """Time passes."""


# Worlds


def with_engine(resource: LLMService, **fields: Any) -> LLMService:
    changed = resource.spec.engine.model_validate(fields)
    return resource.model_copy(update={"spec": resource.spec.model_copy(update={"engine": changed})})


def judged_but_private() -> LLMService:
    rollout = {"judge": {"kind": "exactMatch", "references": "r.json"}}
    resource = service(**rollout)
    spec = resource.spec.model_copy(update={"privacy": resource.spec.privacy.model_copy(update={"content": "never"})})
    return resource.model_copy(update={"spec": spec})


def tagged(**tags: str) -> Callable[[], World]:
    def make() -> World:
        world = World()
        world.version("2", **tags)
        return world

    return make


def of(resource: LLMService) -> Callable[[], World]:
    return lambda: World(resource)


APPROVED = service(
    canary={
        "steps": [
            {"weight": 5, "minDuration": "10s", "minUnits": 10, "maxDuration": "100s", "approval": True},
            {"weight": 50, "minDuration": "10s", "minUnits": 20, "maxDuration": "100s"},
        ]
    }
)
AMBITIOUS = service(goals={"metrics": [{"metric": "rating", "improvement": 0.2}]})
ALWAYS = [{"from": "00:00", "to": "24:00"}]
WIDE = with_engine(service(), autoscaling={"min": 1, "max": 100})
SLEEPY = with_engine(service(), autoscaling={"min": 0, "max": 2, "downscaleDelay": "45s", "heldRequests": 7})


def frozen(world: World) -> None:
    rollout = world.service.spec.rollout.model_validate(
        {**world.service.spec.rollout.model_dump(by_alias=True), "freezeWindows": ALWAYS}
    )
    world.service = world.service.model_copy(
        update={"spec": world.service.spec.model_copy(update={"rollout": rollout})}
    )
    passes(world)
