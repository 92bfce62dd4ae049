"""What serves: the routing table that a status calls for, stable's engine, a champion moved by hand, engines that nobody needs. The last
part of every `decide`; pure.
"""

from __future__ import annotations

import hashlib

import msgspec

from services.common.assignment import BUCKETS
from services.common.routing import Mirror, Route, Sample, Target
from services.rollout import reasons
from services.rollout.actions import ApplyRevision, PublishRoute, RemoveRevision
from services.rollout.deliberation import Deliberation
from services.rollout.engines import parts_of, replicas, scale
from services.rollout.observed import VersionInfo
from services.rollout.pinning import pinned_targets
from services.rollout.revisions import (
    engine_name,
    engine_of,
    hold_of,
    kind_of,
    model_of,
    reached,
    target_of,
)


def serve(d: Deliberation) -> None:
    """Keeps stable alive, publishes the route that is wanted, removes what no gateway reaches any more."""
    needed = set(d.pinned_engines)
    champion = d.observed.aliases.champion if d.observed.aliases else None
    if d.stable is None and champion is None:
        alias, model = d.service.spec.model.champion, d.service.spec.model.registered_model
        d.condition("Serving", False, reasons.CHAMPION_MISSING, f"set the alias {alias} on a version of {model}")
    elif champion is not None and (d.stable is None or _moved_by_hand(d, champion) or _cannot_return(d, champion)):
        needed |= {engine_name(d.service, champion), model_of(d.service, champion)}
        _roll_to(d, champion)
    else:
        _keep(d, champion)
    route = wanted_route(d)
    changed = route is not None and not _same(route, d.observed.route)
    if changed and route is not None:
        d.actions.append(PublishRoute(route))
    if not changed and (d.observed.gateways == 0 or d.observed.acknowledged):
        _remove_unneeded(d, needed)


def wanted_route(d: Deliberation) -> Route | None:
    """The service's row of the routing table; None before anything serves."""
    if d.stable is None:
        return None
    base = Route(
        service=d.service.name,
        version=d.observed.route.version if d.observed.route else 0,
        stable=d.stable,
        rules=d.service.spec.gateway.published(),
        pinned=pinned_targets(d),
        experiments=d.experiments,
        hold=hold_of(d.service),
        sample=_sample(d),
        trace_content=d.service.spec.privacy.trace_content,
    )
    if not d.active or not d.rollout.undecided or not d.rollout.admitted or d.candidate is None:
        return base
    rollout, rules = d.rollout, d.rules.spec.rollout
    rehearsing = rollout.stage == "rehearsal"
    return msgspec.structs.replace(
        base,
        candidate=d.candidate,
        rollout=rollout.id,
        salt=rollout.salt,
        stage="rehearsal" if rehearsing else "canary",
        step=rollout.step,
        weight=round(rollout.weight / 100 * BUCKETS),
        mirror=_mirror(d) if rehearsing else None,
        horizon=rules.horizon,
        settle=rules.settle,
    )


def in_force(d: Deliberation) -> bool:
    """Whether every live gateway obeys the route that the rollout wants now."""
    route = wanted_route(d)
    return route is not None and d.observed.acknowledged and _same(route, d.observed.route)


def _mirror(d: Deliberation) -> Mirror:
    rehearsal = d.rules.spec.rollout.rehearsal
    # Its own salt: a user's place in the mirror's sample must say nothing of their arm in the canary.
    salt = hashlib.sha256(f"{d.rollout.salt}:mirror".encode()).hexdigest()[: len(d.rollout.salt)]
    return Mirror(
        salt=salt, share=round(rehearsal.share * BUCKETS), in_flight=rehearsal.in_flight, content=d.rules.judged
    )


def _sample(d: Deliberation) -> Sample | None:
    """Whose answers are looked at: more of them while the judge is asked what a drift is worth."""
    drift = d.service.spec.drift
    asked = drift.on_alarm == "evaluate" and d.observed.drift is not None and d.observed.evaluated is None
    share = max(drift.sample, drift.evaluation.share if asked else 0.0)
    salt = hashlib.sha256(f"{d.service.name}:sample".encode()).hexdigest()[:32]
    return Sample(salt=salt, share=max(1, round(share * BUCKETS))) if share > 0 else None


def _same(wanted: Route, present: Route | None) -> bool:
    return present is not None and msgspec.structs.replace(wanted, version=present.version) == present


def _moved_by_hand(d: Deliberation, champion: VersionInfo) -> bool:
    """Whether a person moved the alias. While the registry has not yet been told of our own decision, its word is old."""
    owed = d.has_rollout and d.rollout.debt.champion is not None
    return not d.active and not owed and d.stable is not None and champion.version != d.stable.version


def _cannot_return(d: Deliberation, champion: VersionInfo) -> bool:
    """Whether stable's engine is gone and its specification too: then the present one serves without a rollout."""
    engines = d.observed.engines
    if d.stable is None or engines is None or d.active or engine_name(d.service, champion) == engine_of(d.stable):
        return False
    engine = engine_of(d.stable)
    return engine not in engines or engines[engine].phase in ("absent", "failed")


def no_lora(info: VersionInfo) -> str:
    """Why an adapter cannot be served, in words."""
    return f"v{info.version} is an adapter, and the engine loads none: set spec.engine.lora"


def _roll_to(d: Deliberation, champion: VersionInfo) -> None:
    """Brings the champion up beside whatever serves, and switches once it answers."""
    serving = d.stable is not None
    if kind_of(champion) is None:
        d.condition(
            "Serving", serving, reasons.KIND_UNSUPPORTED, f"v{champion.version} is of a kind that cannot be served"
        )
        return
    if kind_of(champion) == "adapter" and d.service.spec.engine.lora is None:
        d.condition("Serving", serving, reasons.ADAPTER_REFUSED, no_lora(champion))
        return
    wanted = _wanted(d, champion)
    refusal = next((d.observed.refused[part.name] for part in wanted if part.name in d.observed.refused), None)
    if refusal is not None:
        d.condition("Serving", serving, refusal.reason, refusal.message)
        return
    if d.observed.engines is None:
        d.condition(
            "Serving", serving, reasons.PLATFORM_UNAVAILABLE, "the platform that runs the engines cannot be reached"
        )
        return
    for part in wanted:
        state = d.observed.engines.get(part.name)
        what = f"{_kind(part)} {part.name} of champion v{champion.version}"
        if state is not None and state.phase == "failed":
            d.condition("Serving", serving, reasons.ENGINE_FAILED, f"{what} failed: {state.message}")
            return
        if state is None or state.phase != "ready" or state.address is None:
            if state is None or state.phase == "absent":
                d.actions.append(part)
            d.condition("Serving", serving, reasons.ROLLING_TO_CHAMPION, f"{what} is starting")
            return
        stable = target_of(d.service, champion, state.address, state.direct)
    d.stable = stable
    d.emit("serve", reasons.SERVING, f"champion v{champion.version} is ready and serves as {d.stable.revision}")
    _serving(d, d.stable)


def _wanted(d: Deliberation, champion: VersionInfo) -> list[ApplyRevision]:
    return parts_of(d.service, champion, replicas(d, engine_name(d.service, champion)))


def _kind(part: ApplyRevision) -> str:
    return "engine" if part.base is None else "adapter"


def _keep(d: Deliberation, champion: VersionInfo | None) -> None:
    """Stable as it is: its engine again if it vanished, its address if it moved."""
    if d.stable is None:
        return
    if d.observed.engines is None:
        d.condition(
            "Serving",
            True,
            reasons.PLATFORM_UNAVAILABLE,
            "the platform that runs the engines cannot be reached; routes stay",
        )
        return
    wanted = {part.name: part for part in _wanted(d, champion)} if champion is not None else {}
    for name in dict.fromkeys((engine_of(d.stable), d.stable.model)):
        state = d.observed.engines.get(name)
        what = f"{'engine' if name == engine_of(d.stable) else 'adapter'} {name} of stable"
        if state is None or state.phase == "absent":
            if name in wanted:
                d.actions.append(wanted[name])
            d.condition("Serving", False, reasons.AWAITING_ENGINE, f"{what} is gone and starts again")
            return
        scale(d, state)
        if state.phase != "ready" or state.address is None:
            if state.phase == "starting" and _held(d):  # it is on its way back
                _asleep(d, d.stable)
                return
            d.condition("Serving", False, reasons.AWAITING_ENGINE, f"{what} is {state.phase}: {state.message}")
            return
        stable = reached(d.stable, state.address, state.direct)
    d.stable = stable
    if _held(d) and d.observed.engines[engine_of(stable)].ready_replicas == 0:
        _asleep(d, stable)
    else:
        _serving(d, stable)


def _held(d: Deliberation) -> bool:
    """Whether gateways hold requests while stable has no replica."""
    return d.observed.route is not None and d.observed.route.hold is not None


def _asleep(d: Deliberation, stable: Target) -> None:
    message = f"{stable.revision} has no replica while nobody asks; requests wait for one"
    d.condition("Serving", True, reasons.SCALED_TO_ZERO, message)


def _serving(d: Deliberation, stable: Target) -> None:
    """Said for the first time once gateways obey a route: who waits for the condition asks them in the next moment."""
    before = any(c.type == "Serving" and c.status for c in d.observed.conditions)
    told = d.observed.acknowledged or d.observed.gateways == 0
    if before or told:
        d.condition("Serving", True, reasons.SERVING, f"{stable.revision} serves")
    else:
        message = f"{stable.revision} is ready; not all of {d.observed.gateways} gateway(s) obey its route yet"
        d.condition("Serving", False, reasons.AWAITING_GATEWAYS, message)


def _remove_unneeded(d: Deliberation, needed: set[str]) -> None:
    """No gateway's route names these engines: the present one is acknowledged everywhere."""
    if d.observed.engines is None or d.observed.aliases is None:
        return
    previous = msgspec.convert(d.rollout.previous, Target) if d.active and d.rollout.previous is not None else None
    for target in (d.stable, previous):
        if target is not None:
            needed |= {engine_of(target), target.model}
    if d.active:
        needed |= {d.rollout.engine, d.rollout.revision}
    for name, state in sorted(d.observed.engines.items()):
        if name not in needed and state.phase not in ("absent", "draining"):
            d.actions.append(RemoveRevision(name))
