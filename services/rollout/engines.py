"""The candidate's engine during a rollout: asked for, waited for, given up. And how many replicas an engine may have.

Part of `decide`; pure.
"""

from __future__ import annotations

import math

from services.common.routing import Target
from services.rollout import reasons
from services.rollout.actions import ApplyRevision, ScaleRevision
from services.rollout.deliberation import Deliberation
from services.rollout.observed import VersionInfo
from services.rollout.platforms.base import RevisionState
from services.rollout.resources import LLMService
from services.rollout.revisions import engine_name, engine_of, fewest, hold_of, kind_of, model_of, reached, weights_of
from services.rollout.scaling import called_for


def shares_stable(d: Deliberation) -> bool:
    """Whether the candidate is an adapter or a prompt on stable's own engine."""
    return d.stable is not None and d.rollout.engine == engine_of(d.stable)


def await_candidate(d: Deliberation) -> bool:
    """Whether the candidate answers now; sets `d.candidate`, asks for its engine or adapter where there is none, and ends the rollout when
    it cannot start. A candidate that is in the routing table stays there while its engine is away: gateways fall back to stable.
    """
    rollout = d.rollout
    if shares_stable(d) and rollout.kind != "adapter":
        assert d.stable is not None  # noqa: S101  shares_stable
        d.candidate = _target(d, d.stable.addresses, d.stable.reserve)
        return _stable_is_up(d)
    route = d.observed.route
    if rollout.admitted and route is not None and route.rollout == rollout.id:
        d.candidate = route.candidate
    wanted = [] if shares_stable(d) else [rollout.engine]
    if rollout.kind == "adapter":
        wanted.append(rollout.revision)  # once its engine is there
    refusal = next((d.observed.refused[name] for name in wanted if name in d.observed.refused), None)
    if refusal is not None:
        d.finish("abort", refusal.reason, refusal.message)
        return False
    if d.observed.engines is None:
        d.wait(reasons.PLATFORM_UNAVAILABLE, "the platform that runs the engines cannot be reached")
        return False
    for name in wanted:
        state = d.observed.engines.get(name)
        if state is not None and state.phase == "failed":
            d.finish("abort", reasons.ENGINE_FAILED, f"the {_kind(d, name)} failed: {state.message}")
            return False
        if state is None or state.phase != "ready" or state.address is None:
            if state is None or state.phase == "absent":
                _apply(d, name)
            _wait(d, name, state.message if state else "")
            return False
        scale(d, state)
        d.candidate = reached(_target(d, (), None), state.address, state.direct)
    if rollout.waiting_since is not None:
        d.change(waiting_since=None)
        d.emit("engine", reasons.ENGINE_READY, f"{_kind(d, wanted[-1])} {wanted[-1]} answers")
    return _stable_is_up(d)


def covers(d: Deliberation, weight: float) -> bool:
    """Whether the candidate's ready replicas carry `weight` percent of what stable carries; if not, more are asked for."""
    if shares_stable(d) or d.observed.engines is None or d.stable is None:
        return shares_stable(d)
    stable = d.observed.engines.get(engine_of(d.stable))
    candidate = d.observed.engines.get(d.rollout.engine)
    ready = candidate.ready_replicas if candidate is not None and candidate.phase == "ready" else 0
    most = d.service.spec.engine.autoscaling.max
    needed = min(most, max(1, math.ceil(weight / 100 * (stable.ready_replicas if stable else 1))))
    if needed > d.rollout.replicas:
        d.change(replicas=needed)
        if candidate is not None:
            scale(d, candidate)
    if ready < needed:
        d.wait(
            reasons.AWAITING_CAPACITY,
            f"{weight:g} % of the users need {needed} ready replicas of the candidate, {ready} are",
        )
    return ready >= needed


def _kind(d: Deliberation, name: str) -> str:
    return "engine" if name == d.rollout.engine else "adapter"


def _apply(d: Deliberation, name: str) -> None:
    rollout = d.rollout
    if name != rollout.engine:
        d.actions.append(ApplyRevision(name, rollout.version, (0, 0), base=rollout.engine))
        return
    d.actions.append(ApplyRevision(rollout.engine, rollout.weights_version, replicas(d, rollout.engine)))


def parts_of(service: LLMService, info: VersionInfo, bounds: tuple[int, int]) -> list[ApplyRevision]:
    """What a version needs on the platform, in order: an engine with so many replicas, and an adapter on it if it is one."""
    engine = engine_name(service, info)
    parts = [ApplyRevision(engine, weights_of(info), bounds)]
    if kind_of(info) == "adapter":
        parts.append(ApplyRevision(model_of(service, info), info.version, (0, 0), base=engine))
    return parts


def replicas(d: Deliberation, engine: str) -> tuple[int, int]:
    """Fewest and most replicas that an engine shall have now: at least one where it is new and while a rollout lasts."""
    most = d.service.spec.engine.autoscaling.max
    idle = d.observed.quiet and not d.active and engine in (d.observed.engines or {})
    least = max(fewest(d.service, idle), _for_first_tokens(d, engine))
    if d.active and engine == d.rollout.engine:
        least = max(least, d.rollout.replicas)
    return min(most, least), most


def _for_first_tokens(d: Deliberation, engine: str) -> int:
    """Replicas of stable's engine that the target for the first token calls for; 0: it has no say."""
    target, seen = d.service.spec.engine.autoscaling.target_ttft, d.observed.first_tokens
    state = (d.observed.engines or {}).get(engine)
    if target is None or seen is None or d.stable is None or engine != engine_of(d.stable):
        return 0
    if state is None or state.replicas is None:
        return 0
    wanted = called_for(state.replicas[0], state.ready_replicas, target, seen)
    return max(wanted, state.replicas[0]) if d.active else wanted  # a comparison needs a stable that stays as it is


def scale(d: Deliberation, state: RevisionState) -> None:
    """Gives the engine other bounds where it has not those that it shall have."""
    wanted = ScaleRevision(state.name, replicas(d, state.name))
    d.actions = [a for a in d.actions if not (isinstance(a, ScaleRevision) and a.name == state.name)]
    if state.replicas is not None and state.replicas != wanted.replicas:
        d.actions.append(wanted)


def _stable_is_up(d: Deliberation) -> bool:
    """Whether stable has a replica: one that is only waking up would make any candidate look fast."""
    engines = d.observed.engines
    state = engines.get(engine_of(d.stable)) if engines is not None and d.stable is not None else None
    if hold_of(d.service) is None or (state is not None and state.ready_replicas > 0):
        return True
    d.wait(reasons.AWAITING_ENGINE, "a replica of stable is starting")
    return False


def _wait(d: Deliberation, name: str, words: str) -> None:
    since = d.rollout.waiting_since
    if since is None:
        d.change(waiting_since=d.now)
        since = d.now
    waited = d.now - since
    if waited > d.rules.spec.engine.start_timeout:
        d.finish(
            "abort",
            reasons.ENGINE_START_TIMEOUT,
            f"the {_kind(d, name)} was not ready after {waited:.0f} s: {words or 'no word from it'}",
        )
        return
    d.wait(reasons.AWAITING_ENGINE, f"{_kind(d, name)} {name} is starting ({waited:.0f} s): {words}".rstrip(": "))


def _target(d: Deliberation, addresses: tuple[str, ...], reserve: str | None) -> Target:
    rollout = d.rollout
    return Target(
        revision=rollout.revision,
        version=rollout.version,
        addresses=addresses,
        reserve=reserve,
        model=rollout.revision if rollout.kind == "adapter" else rollout.engine,
        engine=rollout.engine if rollout.kind == "adapter" else None,
        system_prompt=rollout.system_prompt,
    )
