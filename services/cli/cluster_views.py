"""The documents of `views`, made of `LLMService` resources as a cluster's API server has them. Pure; used by `cluster`.

The status of a resource holds less than the store: where it says nothing the document has None (gateways, kind, whose message it was),
and `users` counts the smaller arm. A resource that another version of the controller wrote is read as far as it is understood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from services.cli import narrative, views
from services.rollout import reasons
from services.rollout.resources import METRICS, split_key

Resource = Mapping[str, Any]


def name_of(resource: Resource) -> str:
    """The service's name."""
    return str(resource["metadata"]["name"])


def namespace_of(resource: Resource) -> str:
    """The resource's namespace."""
    return str(resource["metadata"]["namespace"])


def status_of(resource: Resource) -> Mapping[str, Any]:
    """What the controller says; empty before its first look."""
    return resource.get("status") or {}


def condition(resource: Resource, type_: str) -> Mapping[str, Any] | None:
    """A condition by type."""
    return next((one for one in status_of(resource).get("conditions", ()) if one["type"] == type_), None)


def status(resources: Sequence[Resource], now: float) -> dict[str, Any]:
    """Every service: what serves, its newest rollout, what is wrong."""
    return {"services": [_service(one, now) for one in sorted(resources, key=lambda r: (namespace_of(r), name_of(r)))]}


def _service(resource: Resource, now: float) -> dict[str, Any]:
    said, ready = status_of(resource), condition(resource, "Ready")
    if ready is None:
        trouble: str | None = "the controller has not looked at it yet"
    else:
        trouble = None if ready["status"] == "True" else f"not ready: {ready['message']} ({ready['reason']})"
    return {
        "service": name_of(resource),
        "namespace": namespace_of(resource),
        "stable": said.get("stable"),
        "gateways": None,
        "gateways_up_to_date": None,
        "trouble": trouble,
        "address": said.get("address"),
        "rollout": newest(resource, now),
    }


def rollouts(resources: Sequence[Resource], limit: int, now: float) -> dict[str, Any]:
    """The rollouts that the resources remember (ten each), newest first."""
    found = [rollout for resource in resources for rollout in remembered(resource, now)]
    found.sort(key=lambda one: (one["started_at"], one["id"]), reverse=True)
    return {"rollouts": found[:limit]}


def remembered(resource: Resource, now: float) -> list[dict[str, Any]]:
    """The newest rollout with all that the status says of it, then the older ones."""
    first = newest(resource, now)
    older = [one for one in status_of(resource).get("history", ()) if first is None or one["id"] != first["id"]]
    return ([] if first is None else [first]) + [_summary(resource, one, now) for one in older]


def newest(resource: Resource, now: float) -> dict[str, Any] | None:
    """The newest rollout; None before the first."""
    said = status_of(resource)
    rollout = said.get("rollout")
    if rollout is None:
        return None
    document = _summary(resource, rollout, now)
    active, waiting = document["stage"] != "finished", document["verdict"] in ("continue", "advance")
    units = max((one["units"] for one in said.get("evidence", ())), default=None)
    progressing = condition(resource, "Progressing") or {}
    return {
        **document,
        "step": said["step"] - 1 if said.get("step") else None,
        "weight": (said.get("weights") or {}).get("candidate", 0.0),
        "waits_for": rollout["message"] if active and waiting and rollout.get("message") else None,
        "paused": active and progressing.get("reason") == reasons.PAUSED,
        "users": None if units is None else {"per_arm": units},
    }


def _summary(resource: Resource, rollout: Mapping[str, Any], now: float) -> dict[str, Any]:
    started = seconds(rollout["startedAt"])
    finished = seconds(rollout["finishedAt"]) if rollout.get("finishedAt") else None
    # The end of a promoted rollout is the end of its watch: when it was decided, the resource does not say.
    decided = finished if rollout["verdict"] in ("abort", "error") else None
    return {
        "id": rollout["id"],
        "service": name_of(resource),
        "namespace": namespace_of(resource),
        "version": rollout["version"],
        "revision": _revision(resource, rollout["version"]),
        "kind": None,
        "stage": rollout["stage"],
        "step": None,
        "steps": _steps(resource),
        "weight": 0.0,
        "verdict": rollout["verdict"],
        "decided_in": rollout.get("decidedIn"),
        "metric": rollout.get("metric"),
        "reason": rollout.get("reason", ""),
        "message": rollout.get("message", ""),
        "waits_for": None,
        "paused": False,
        "started_at": started,
        "decided_at": decided,
        "finished_at": finished,
        "seconds": (now if finished is None else finished) - started,
        "users": None,
    }


def _revision(resource: Resource, version: str) -> str:
    """The revision of a version where the status still names it, else the version: `v3`."""
    said = status_of(resource)
    named = [one for one in (said.get("candidate"), said.get("stable")) if one and one["version"] == version]
    return str(named[0]["revision"]) if named else f"v{version}"


def _steps(resource: Resource) -> int | None:
    steps = resource.get("spec", {}).get("rollout", {}).get("canary", {}).get("steps")
    return None if steps is None else len(steps)


def explanation(resource: Resource, rollout: dict[str, Any], now: float) -> dict[str, Any]:
    """A rollout that the resource remembers in sentences; the newest one with its evidence."""
    said = status_of(resource)
    mine = (said.get("rollout") or {}).get("id") == rollout["id"]
    # Promotion is earned in the last step alone, whatever an earlier one shows.
    last = rollout["stage"] != "canary" or rollout["steps"] in (None, (rollout["step"] or 0) + 1)
    evidence = [reading(one, last) for one in said.get("evidence", ())] if mine else []
    conditions = [
        one
        for one in said.get("conditions", ())
        if mine and (one["type"], one["status"]) in (("Ready", "False"), ("Degraded", "True"))
    ]
    return {
        **rollout,
        "headline": views.headline(rollout, now),
        "sentences": _sentences(rollout, conditions),
        "metrics": [views.told(one) for one in evidence],
        "conditions": conditions,
        "audit": None,
    }


def _sentences(rollout: Mapping[str, Any], conditions: Sequence[Mapping[str, Any]]) -> list[str]:
    message, reason = rollout["message"], rollout["reason"]
    said = []
    if rollout["waits_for"]:
        said.append(f"Waiting: {narrative.sentence(f'{message} ({reason})')}")
    elif message:
        said.append(narrative.sentence(f"{message} ({reason})" if reason else message))
    for one in conditions:
        if one["message"] != message:
            said.append(narrative.sentence(f"{one['type']} is {one['status']}: {one['message']} ({one['reason']})"))
    return said


def reading(evidence: Mapping[str, Any], last: bool) -> dict[str, Any]:
    """A metric's line of the status as a reading, as far as it goes: the arms' own values are not in it. `last`: in the last step."""
    metric, margin, promoting = evidence["metric"], evidence["margin"], evidence["mode"] != "harmOnly"
    goal, measured = evidence["mode"] == "goal", METRICS.get(split_key(metric)[0])
    higher = measured is not None and measured.higher
    lower, upper = evidence.get("lower"), evidence.get("upper")
    # Worse is up or down: both ends of the interval counted in the bad direction.
    mildest, worst = (_negated(upper), _negated(lower)) if higher else (lower, upper)
    e_harm, e_promote = evidence.get("harmEValue"), evidence.get("eValue") if promoting else None
    harm_threshold = evidence.get("harmThreshold", evidence["threshold"])
    return {
        "metric": metric,
        "stage": evidence["stage"],
        "mode": evidence["mode"],
        "margin": margin,
        "relative": measured is not None and measured.relative,
        "direction": "higher" if higher else "lower",
        "n_candidate": evidence["units"],
        "effect": evidence.get("estimate"),
        "lower": lower,
        "upper": upper,
        "e_harm": e_harm,
        "harm_threshold": harm_threshold,
        "harmful": not goal
        and (e_harm >= harm_threshold if e_harm is not None else mildest is not None and mildest > margin),
        "e_promote": e_promote,
        "promote_threshold": evidence["threshold"],
        "non_inferior": promoting
        and not goal
        and last
        and (e_promote >= evidence["threshold"] if e_promote is not None else worst is not None and worst <= margin),
        "improved": goal and last and e_promote is not None and e_promote >= evidence["threshold"],
        "trustworthy": e_harm is not None or (lower, upper) != (None, None),
    }


def _negated(value: float | None) -> float | None:
    return None if value is None else -value


def seconds(time: str) -> float:
    """A time of Kubernetes in seconds since the epoch."""
    return datetime.fromisoformat(time).timestamp()
