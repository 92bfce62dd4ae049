"""The end of a service: what each look at one wants whose resource is deleted. Pure, as `decide`; called by `reconcile`.

A rollout under way is aborted, commands are refused, the registry is told what it is owed. Engines go once no gateway's route names them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.rollout import reasons
from services.rollout.actions import AnswerCommand, RemoveRevision
from services.rollout.decide import Decision, settle
from services.rollout.deliberation import Deliberation
from services.rollout.observed import EvidenceView, Observed
from services.rollout.resources import LLMService
from services.rollout.status import RolloutStatus

REGISTRY_SECONDS: Final = 60.0
"""After this the end of a service no longer waits for a registry that cannot be reached: what is owed to it is a note."""
PLATFORM_SECONDS: Final = 600.0
"""The same for the platform, where engines would be left behind."""


@dataclass(frozen=True, slots=True)
class Retirement:
    """How far the end of a service has come."""

    decision: Decision
    waiting: str | None
    """For what; None: nothing of the service is left."""


def end(service: LLMService, observed: Observed, forgotten: bool, elapsed: float, now: float) -> Decision:
    """What this look wants done. `forgotten`: no gateway alive has a route to the service. `elapsed`: seconds since the first of these
    looks. `now`: the store's time.
    """
    d = Deliberation(service, observed, EvidenceView(), now)
    for command in observed.commands:
        d.actions.append(AnswerCommand(command.id, "refused: the service is being deleted"))
    if d.active and d.rollout.undecided:
        d.finish("abort", reasons.SERVICE_DELETED, "the resource was deleted")
    elif d.active:
        d.change(stage="finished", previous=None)
        d.emit("watch", reasons.SERVICE_DELETED, "the resource was deleted: the rollback window ends")
    if d.has_rollout:
        settle(d)
    if observed.route is not None:
        d.emit("delete", reasons.SERVICE_DELETED, "the resource was deleted: the gateways forget the service")
    if forgotten and observed.engines is not None:
        d.actions += [RemoveRevision(name) for name in _left(observed)]
    if waiting(observed, d.rollout if d.has_rollout else None, forgotten, elapsed) is None:
        if observed.engines is None:
            d.emit("delete", reasons.LEFT_BEHIND, f"no platform for {elapsed:.0f} s: engines may still run there")
        if d.has_rollout and d.rollout.debt.open:
            d.change(finished_at=now)
            d.emit(
                "delete", reasons.LEFT_BEHIND, f"no registry for {elapsed:.0f} s: it was not told of the last verdict"
            )
    return Decision(tuple(d.actions), d.done())


def waiting(observed: Observed, rollout: RolloutStatus | None, forgotten: bool, elapsed: float) -> str | None:
    """What the end of the service still waits for."""
    if not forgotten:
        return "the gateways to forget the service"
    if observed.engines is None and elapsed < PLATFORM_SECONDS:
        return "the platform, which cannot be reached"
    if names := _left(observed):
        return f"engines to drain: {', '.join(names)}"
    if rollout is not None and rollout.debt.open:
        return owed(elapsed)
    return None


def owed(elapsed: float) -> str | None:
    """The registry does not answer: wait for it, or after some time no longer."""
    return "the registry, which cannot be reached" if elapsed < REGISTRY_SECONDS else None


def _left(observed: Observed) -> list[str]:
    """The service's engines that the platform still has."""
    return sorted(name for name, state in (observed.engines or {}).items() if state.phase != "absent")
