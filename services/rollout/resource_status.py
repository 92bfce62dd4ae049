"""The status of an `LLMService` resource in a cluster: what people read with kubectl, made of what the store and the last look say. Pure.

The operator calls `service_status` after each look and patches what changed; `crd` makes the status's schema from the models below.
Numbers stay numbers and unknown ones are left out. Times are RFC 3339 outside, seconds since the epoch inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

from services.common.assignment import BUCKETS
from services.common.clock import rfc3339
from services.common.routing import Route, Target
from services.rollout import reasons
from services.rollout.resources_base import keyed
from services.rollout.status import Condition, RolloutStatus, ServiceStatus
from services.store import Command, RolloutRow

HISTORY: Final = 10
"""Rollouts that the status remembers."""

_TEXT: Final = 4_096
"""Characters of a message; an engine's last words can be longer, and the API server would refuse the whole status."""
_NAME: Final = 1_024

Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class RevisionStatus(_Part):
    """A revision and the registry version it was made of."""

    revision: str = Field(description="Name of the revision, e.g. assistant-v4-7c1f.")
    version: str = Field(description="Version number in the registry.")


class WeightStatus(_Part):
    """Shares of the users in percent, as the routing table has them."""

    stable: float = Field(description="Percent of users on stable, outside the comparison.")
    control: float = Field(description="Percent of users on stable who are compared with the candidate's.")
    candidate: float = Field(description="Percent of users on the candidate.")


class RolloutSummary(_Part):
    """One rollout."""

    id: str = Field(description="The rollout's id.")
    version: str = Field(description="The candidate's version in the registry.")
    stage: str = Field(description="gate, rehearsal, canary, watch or finished.")
    verdict: str = Field(description="continue, hold, advance, abort or error.")
    reason: str = Field(default="", description="Why, in one word.")
    message: str = Field(default="", max_length=_TEXT, description="Why, in a sentence with the numbers.")
    started_at: Time = Field(description="When it began.")
    finished_at: Time | None = Field(default=None, description="When it ended; absent while it runs.")
    decided_in: str | None = Field(default=None, description="Stage in which the verdict fell.")
    metric: str | None = Field(default=None, description="The guardrail that decided.")


class EvidenceStatus(_Part):
    """What one guardrail says now."""

    metric: str = Field(description="The metric; of a segment `metric[segment]`, as a goal `goal:metric`.")
    stage: str = Field(description="Stage in which it is measured.")
    mode: str = Field(description="nonInferior, harmOnly or goal.")
    margin: float = Field(description="Tolerated worsening; of a goal the least improvement.")
    estimate: float | None = Field(
        default=None, description="Candidate minus control; relative change where the margin is relative."
    )
    lower: float | None = Field(default=None, description="Lower bound of the effect, valid at every look at once.")
    upper: float | None = Field(default=None, description="Upper bound of the effect, valid at every look at once.")
    e_value: float | None = Field(
        default=None,
        description="Evidence for what the mode asks: nonInferior not worse than the margin, harmOnly worse, goal improved.",
    )
    threshold: float = Field(description="The e-value that decides.")
    harm_e_value: float | None = Field(
        default=None, description="Evidence that the candidate is worse than the margin."
    )
    harm_threshold: float = Field(description="The e-value of harm that aborts.")
    units: int = Field(description="Users in the smaller of both arms.")


class ConditionStatus(_Part):
    """As Kubernetes' metav1.Condition."""

    type: str = Field(description="What the condition is about.", max_length=316)
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it is so.")
    reason: str = Field(description="Why, in one word.", max_length=1024)
    message: str = Field(description="Why, in a sentence.", max_length=_TEXT)
    last_transition_time: Time = Field(description="When `status` last changed.")
    observed_generation: int = Field(description="Generation of the resource that this is about.")


class CommandStatus(_Part):
    """The last command that was answered."""

    id: str = Field(description="The command's id.")
    verb: str = Field(description="abort, promote, pause, resume, approve, pin or unpin.")
    answer: str = Field(description="What became of it.")
    by: str = Field(description="Who gave it.")
    at: Time = Field(description="When it was answered.")


class ResourceStatus(_Part):
    """What the controller says of a service."""

    observed_generation: int = Field(description="Generation of the resource that this status is about.")
    stage: Literal["idle", "gate", "rehearsal", "canary", "watch", "finished"] = Field(
        description="Stage of the newest rollout; idle before the first."
    )
    step: int = Field(description="Canary step, from 1; 0 outside the canary.")
    weights: WeightStatus | None = Field(
        default=None, description="Shares of the users; absent before anything serves."
    )
    stable: RevisionStatus | None = Field(default=None, description="What serves.")
    candidate: RevisionStatus | None = Field(default=None, description="What is being compared with it.")
    verdict: str | None = Field(default=None, description="Verdict of the newest rollout.")
    reason: str | None = Field(default=None, description="Why the verdict fell, or what the rollout waits for.")
    message: str | None = Field(default=None, max_length=_TEXT, description="The same in a sentence with the numbers.")
    rollout: RolloutSummary | None = Field(default=None, description="The newest rollout.")
    evidence: tuple[EvidenceStatus, ...] = Field(
        default=(), description="What the guardrails of the present stage say.", max_length=50
    )
    conditions: tuple[ConditionStatus, ...] = Field(
        default=(),
        description="Ready, Progressing, Degraded, RolloutFinished and what they rest on.",
        max_length=20,
        json_schema_extra=keyed("type"),
    )
    history: tuple[RolloutSummary, ...] = Field(
        default=(), description="The last rollouts, newest first.", max_length=HISTORY
    )
    last_command: CommandStatus | None = Field(default=None, description="The last command that was answered.")
    address: str | None = Field(default=None, description="Base URL of the gateway.")


def service_status(
    status: ServiceStatus,
    route: Route | None,
    readings: Sequence[Mapping[str, Any]],
    history: Sequence[RolloutRow],
    generation: int,
    now: float,
    previous: Mapping[str, Any] | None,
    *,
    command: Command | None = None,
    address: str | None = None,
) -> dict[str, Any]:
    """The resource's status after a look; JSON, without what is unknown.

    Args:
        status: what `decide` said (`Decision.status`).
        route: the service's row of the routing table; None before anything serves.
        readings: `Reading.to_json()` of each guardrail of the present stage, each with `stage`; none outside a comparison.
        history: the service's rollouts, newest first.
        generation: metadata.generation of the resource that was looked at.
        now: the store's time.
        previous: the status that the resource has; times of transitions, and without `command` the last command, come from it.
        command: the newest command with an answer, where there is one.
        address: the gateway's base URL, where it is known.
    """
    rollout = status.rollout
    reason, message = _why(rollout)
    made = ResourceStatus(
        observed_generation=generation,
        stage=rollout.stage if rollout else "idle",
        step=rollout.step + 1 if rollout and rollout.stage == "canary" else 0,
        weights=_weights(route),
        stable=_revision(route.stable) if route else None,
        candidate=_candidate(rollout),
        verdict=rollout.verdict if rollout else None,
        reason=reason,
        message=message,
        rollout=_of_status(rollout) if rollout else None,
        evidence=tuple(_evidence(reading) for reading in readings),
        conditions=_stamped(_conditions(status, route), generation, now, previous),
        history=tuple(_of_row(row) for row in history[:HISTORY]),
        last_command=_command(command),
        address=address,
    ).model_dump(mode="json", by_alias=True, exclude_none=True)
    if "lastCommand" not in made and previous and "lastCommand" in previous:
        made["lastCommand"] = previous["lastCommand"]
    return made


def refused_status(
    reason: str, message: str, generation: int, now: float, previous: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The status of a resource that is not acted on (`NameTaken`, `InvalidResource`): the last one, but not ready, and why.

    Raises nothing; a resource that never had a status gets an idle one.
    """
    fresh = {"stage": "idle", "step": 0, "evidence": [], "history": []}
    said = [Condition(type=name, status=name == "Degraded", reason=reason, message=message) for name in _REFUSED]
    stamped = _stamped(said, generation, now, previous)
    kept = [c for c in (previous or {}).get("conditions", ()) if c["type"] not in _REFUSED]
    conditions = [c.model_dump(mode="json", by_alias=True) for c in stamped] + kept
    return {**fresh, **(previous or {}), "observedGeneration": generation, "conditions": conditions}


_REFUSED: Final = ("Ready", "Progressing", "Degraded")


def _conditions(status: ServiceStatus, route: Route | None) -> list[Condition]:
    """The four that people wait for, then those of the look that they rest on (whose names are not among the four)."""
    rollout = status.rollout
    serving = next((c for c in status.conditions if c.type == "Serving"), None)
    if route is None or serving is None:
        why = (serving.reason, serving.message) if serving else (reasons.AWAITING_ENGINE, "nothing serves yet")
        ready = Condition(type="Ready", status=False, reason=why[0], message=why[1])
    else:
        ready = serving.model_copy(update={"type": "Ready"})
    found = [ready, _progressing(rollout, serving), _degraded(rollout, status.conditions, serving)]
    if rollout is not None:
        reason, message = _why(rollout)
        found.append(
            Condition(
                type="RolloutFinished",
                status=rollout.finished_at is not None,
                reason=reason or "Running",
                message=message or "",
            )
        )
    return found + [c for c in status.conditions if c.type != "Serving"]


def _progressing(rollout: RolloutStatus | None, serving: Condition | None) -> Condition:
    if rollout is not None and rollout.active:
        reason, message = _why(rollout)
        moving = rollout.held_since is None and rollout.paused_since is None
        return Condition(type="Progressing", status=moving, reason=reason or "Running", message=message or "")
    if serving is not None and serving.reason in (reasons.ROLLING_TO_CHAMPION, reasons.AWAITING_ENGINE):
        return serving.model_copy(update={"type": "Progressing", "status": True})
    return Condition(type="Progressing", status=False, reason="Idle", message="no rollout runs")


def _degraded(rollout: RolloutStatus | None, conditions: Sequence[Condition], serving: Condition | None) -> Condition:
    """True where a person should look: something is away, refused or undecided, whether or not users are served."""
    if rollout is not None and rollout.active and rollout.held_since is not None:
        return Condition(type="Degraded", status=True, reason=rollout.reason, message=rollout.message)
    if serving is not None and serving.reason not in _AS_EXPECTED:
        return serving.model_copy(update={"type": "Degraded", "status": True})
    bad = next((c for c in conditions if not c.status and c.type not in _HARMLESS), None)
    if bad is not None:
        return bad.model_copy(update={"type": "Degraded", "status": True})
    return Condition(type="Degraded", status=False, reason="AsExpected", message="nothing is amiss")


_AS_EXPECTED: Final = (reasons.SERVING, reasons.SCALED_TO_ZERO, reasons.ROLLING_TO_CHAMPION)
_HARMLESS: Final = ("Serving", "Challenger", "EngineFields", "Pinned", "Plan", "Experiments")
"""Judged above, gone with the next look, or no harm to anybody served."""


def _stamped(
    conditions: Sequence[Condition], generation: int, now: float, previous: Mapping[str, Any] | None
) -> tuple[ConditionStatus, ...]:
    before = {c["type"]: c for c in (previous or {}).get("conditions", ())}
    stamped = []
    for condition in conditions:
        status: Literal["True", "False"] = "True" if condition.status else "False"
        last = before.get(condition.type)
        same = last is not None and last["status"] == status
        stamped.append(
            ConditionStatus(
                type=condition.type,
                status=status,
                reason=condition.reason,
                message=condition.message[:_TEXT],
                last_transition_time=last["lastTransitionTime"] if same and last is not None else rfc3339(now),
                observed_generation=generation,
            )
        )
    return tuple(stamped)


def _why(rollout: RolloutStatus | None) -> tuple[str | None, str | None]:
    """What decided; before that what the rollout waits for."""
    if rollout is None:
        return None, None
    waiting = next((c for c in rollout.conditions if c.type == "Waiting"), None)
    if waiting is not None and rollout.active and rollout.held_since is None:
        return waiting.reason, waiting.message[:_TEXT]
    return rollout.reason or None, rollout.message[:_TEXT] or None


def _weights(route: Route | None) -> WeightStatus | None:
    if route is None:
        return None
    candidate = route.weight * 100 / BUCKETS if route.stage == "canary" else 0.0
    return WeightStatus(stable=100 - 2 * candidate, control=candidate, candidate=candidate)


def _revision(target: Target) -> RevisionStatus:
    return RevisionStatus(revision=target.revision, version=target.version)


def _candidate(rollout: RolloutStatus | None) -> RevisionStatus | None:
    if rollout is None or not rollout.active or not rollout.undecided:
        return None
    return RevisionStatus(revision=rollout.revision, version=rollout.version)


def _of_status(rollout: RolloutStatus) -> RolloutSummary:
    reason, message = _why(rollout)
    return RolloutSummary(
        id=rollout.id,
        version=rollout.version,
        stage=rollout.stage,
        verdict=rollout.verdict,
        reason=reason or "",
        message=message or "",
        started_at=rfc3339(rollout.started_at),
        finished_at=None if rollout.finished_at is None else rfc3339(rollout.finished_at),
        decided_in=rollout.decided_in,
        metric=rollout.metric,
    )


def _of_row(row: RolloutRow) -> RolloutSummary:
    """Read as plain JSON: ten rollouts a look and a thousand services leave no time for checking what we wrote ourselves."""
    said = row.status
    return RolloutSummary(
        id=row.id,
        version=row.version,
        stage=row.stage,
        verdict=row.verdict or "continue",
        reason=row.reason or "",
        message=said.get("message", "")[:_TEXT],
        started_at=rfc3339(row.started_at),
        finished_at=None if row.finished_at is None else rfc3339(row.finished_at),
        decided_in=said.get("decidedIn"),
        metric=said.get("metric"),
    )


def _evidence(reading: Mapping[str, Any]) -> EvidenceStatus:
    promoting = reading["mode"] != "harmOnly"
    return EvidenceStatus(
        metric=reading["metric"],
        stage=reading["stage"],
        mode=reading["mode"],
        margin=reading["margin"],
        estimate=reading["effect"],
        lower=reading["lower"],
        upper=reading["upper"],
        e_value=reading["e_promote" if promoting else "e_harm"],
        threshold=reading["promote_threshold" if promoting else "harm_threshold"],
        harm_e_value=reading["e_harm"],
        harm_threshold=reading["harm_threshold"],
        units=min(reading["n_control"], reading["n_candidate"]),
    )


def _command(command: Command | None) -> CommandStatus | None:
    if command is None or command.handled_at is None:
        return None
    return CommandStatus(
        id=command.id,
        verb=command.verb,
        answer=(command.answer or "")[:_NAME],
        by=command.actor[:_NAME],
        at=rfc3339(command.handled_at),
    )
