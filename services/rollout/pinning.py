"""Pinned versions: each runs beside stable for tests and is reached as `model: NAME@vN` alone. Part of `decide`; pure. The versions of
experiments are brought up in the same way.

Nothing here may touch stable or a rollout: what goes wrong is told as the condition `Pinned`, and users are served all the same.
"""

from __future__ import annotations

from services.common.routing import Target
from services.rollout import reasons
from services.rollout.actions import ScaleRevision
from services.rollout.deliberation import Beside, Deliberation
from services.rollout.engines import parts_of, replicas
from services.rollout.observed import VersionInfo
from services.rollout.revisions import engine_name, engine_of, kind_of, model_of, target_of


def pin(d: Deliberation) -> None:
    """Ensures what each pinned version needs on the platform, and finds its target. Before the stages, which compare routes."""
    wanted = d.service.spec.model.pinned
    d.beside = {version: _stand(d, version) for version in dict.fromkeys((*wanted, *d.observed.tried))}
    standings = [d.beside[version] for version in wanted]
    d.pinned = tuple(standing.target for standing in standings if standing.target is not None)
    amiss = [standing for standing in standings if standing.reason is not None]
    waiting = [standing.message for standing in standings if standing.target is None]
    if amiss:
        d.condition("Pinned", False, amiss[0].reason or "", "; ".join(standing.message for standing in amiss))
    elif waiting:
        d.condition("Pinned", True, reasons.AWAITING_ENGINE, "; ".join(waiting))
    elif wanted:
        names = ", ".join(f"{d.service.name}@v{version}" for version in wanted)
        d.condition("Pinned", True, reasons.VERSION_PINNED, f"reached by keys with the scope pin: {names}")


def pinned_targets(d: Deliberation) -> tuple[Target, ...]:
    """Those that are not reached as stable or candidate already."""
    known = {target.revision for target in (d.stable, d.candidate) if target is not None}
    return tuple(target for target in d.pinned if target.revision not in known)


def _published(d: Deliberation) -> list[Target]:
    """What gateways know of versions beside stable."""
    route = d.observed.route
    if route is None:
        return []
    tried = (group.target for experiment in route.experiments for group in experiment.groups)
    return [*route.pinned, *(target for target in tried if target is not None)]


def _stand(d: Deliberation, version: str) -> Beside:
    known = next((t for t in _published(d) if t.version == version), None)
    if version not in d.observed.pinned:
        return Beside(f"v{version} cannot be looked up: the registry is away", known)
    info = d.observed.pinned[version]
    if info is None:
        return Beside(f"the registry has no version {version}", None, reasons.VERSION_MISSING)
    if kind_of(info) is None or (kind_of(info) == "adapter" and d.service.spec.engine.lora is None):
        return Beside(f"v{version} is of a kind that cannot be served here", None, reasons.KIND_UNSUPPORTED)
    engine, model = engine_name(d.service, info), model_of(d.service, info)
    d.pinned_engines |= {engine, model}
    if d.observed.engines is None:
        return Beside(f"v{version}: the platform cannot be reached", known)
    return _brought_up(d, info, engine)


def _brought_up(d: Deliberation, info: VersionInfo, engine: str) -> Beside:
    fewest, most = replicas(d, engine)
    target = None
    for part in parts_of(d.service, info, (min(1, fewest), most)):
        state, refusal = (d.observed.engines or {}).get(part.name), d.observed.refused.get(part.name)
        if refusal is not None:
            return Beside(f"v{info.version}: {refusal.message}", None, refusal.reason)
        if state is not None and state.phase == "failed":
            return Beside(f"engine of v{info.version} failed: {state.message}", None, reasons.ENGINE_FAILED)
        if state is None or state.phase == "absent":
            if all(getattr(action, "name", None) != part.name for action in d.actions):
                d.actions.append(part)
            return Beside(f"v{info.version} is starting")
        if part.name == engine and engine not in _deciding(d) and state.replicas not in (None, part.replicas):
            d.actions.append(ScaleRevision(engine, part.replicas))
        if state.phase != "ready" or state.address is None:
            return Beside(f"v{info.version} is {state.phase}: {state.message}")
        target = target_of(d.service, info, state.address, state.direct)
    return Beside("", target)


def _deciding(d: Deliberation) -> set[str]:
    """Engines whose numbers of replicas are decided for their users, which are more than a pinned version's."""
    engines = {engine_of(d.stable)} if d.stable is not None else set()
    return engines | {d.rollout.engine} if d.active else engines
