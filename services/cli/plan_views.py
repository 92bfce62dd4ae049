"""The plan of a rollout as a JSON document, and laid out for people. Used by `what_if`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.text import Text

from services.cli import narrative
from services.cli.tables import console, plain_table
from services.rollout.forecast import lasting
from services.rollout.planning import Plan, Traffic, comparing, told
from services.rollout.plans import plans
from services.rollout.power import LIKELY, Stable
from services.rollout.resources import LLMService


def document(service: LLMService, traffic: Traffic, plan: Plan, measured: str | None) -> dict[str, Any]:
    """A plan as JSON: durations in seconds, harm as badness (absolute for shares, relative for times and speeds), null where none would be
    seen. `measured`: over what time the traffic was measured; None: it was given.
    """
    return {
        "service": service.name,
        "users_per_day": traffic.users_per_day,
        "growth": traffic.growth,
        "measured": measured,
        "probability": LIKELY,
        "seconds": sum(stage.seconds for stage in plan.stages),
        "typical_seconds": sum(stage.typical_seconds for stage in plan.stages),
        "held": any(stage.held for stage in plan.stages),
        "stages": [asdict(stage) for stage in plan.stages],
        "metrics": {
            one.metric: {"relative": one.relative, "direction": one.direction, "margin": one.margin, "mode": one.mode}
            for stage in ("rehearsal", "canary")
            for one in plans(service, stage, {}).values()
        },
        "harm": dict(plan.harm),
        "out_of_reach": [{**asdict(one), "message": told(service, one)} for one in plan.out_of_reach],
        "assumed": {metric: _assumption(metric, stable) for metric, stable in plan.assumed.items()},
        "people": people(service),
    }


def people(service: LLMService) -> list[str]:
    """What a plan cannot count: people and freeze windows."""
    rollout = service.spec.rollout
    approvals = [str(number + 1) for number, step in enumerate(rollout.canary.steps) if step.approval]
    said = [f"step {' and '.join(approvals)} waits for a person's approval"] if approvals else []
    said += [compare] if (compare := comparing(service)) else []
    return [*said, "freeze windows put off the end of a stage"] if rollout.freeze_windows else said


def show(found: Mapping[str, Any]) -> None:
    """The stages as a table; then what the rollout would see, what is out of reach, what was assumed."""
    screen = console()
    screen.print(Text(_headline(found), style="bold yellow" if found["held"] else "bold"))
    metrics = list(found["harm"])
    table = plain_table("stage", "weight", "users an arm", "takes", "waits for", *(f"{m}: sees" for m in metrics))
    for stage in found["stages"]:
        table.add_row(*_row(found, stage, metrics))
    screen.print(table)
    screen.print()
    seen = [f"{narrative.metric_of(m).label} {harm_text(found, m, found['harm'][m])}" for m in metrics]
    screen.print(
        Text(
            f"With {found['probability']:.0%} probability the rollout sees a candidate that is worse from its start by: {'; '.join(seen)}."
        )
    )
    for one in found["out_of_reach"]:
        screen.print(Text(f"Out of reach: {one['message']}.", style="yellow"))
    if found["assumed"]:
        assumed = ", ".join(f"{metric}: {text}" for metric, text in found["assumed"].items())
        screen.print(
            Text(
                f"Assumed of stable, since nothing was measured: {assumed}; tell better with --stable METRIC=VALUE.",
                style="dim",
            )
        )
    for one in found["people"]:
        screen.print(Text(f"Not counted: {one}.", style="dim"))


def _headline(found: Mapping[str, Any]) -> str:
    where = f"measured over {found['measured']}" if found["measured"] else "as given"
    crowd = f"{found['users_per_day']:,.0f} users a day ({where})"
    if found["held"]:
        return f"At {crowd} a rollout of {found['service']} would be held for lack of users."
    likely, typical = lasting(found["seconds"]), lasting(found["typical_seconds"])
    usual = "" if likely == typical else f", typically {typical}"
    return f"At {crowd} a rollout of {found['service']} takes at most {likely} in 8 of 10 cases{usual}."


def _row(found: Mapping[str, Any], stage: Mapping[str, Any], metrics: Sequence[str]) -> list[Text]:
    rehearsal = stage["stage"] == "rehearsal"
    takes = lasting(stage["seconds"])
    if stage["typical_seconds"] < 0.9 * stage["seconds"]:
        takes = f"{lasting(stage['typical_seconds'])} to {takes}"
    return [
        Text("rehearsal" if rehearsal else f"step {stage['step'] + 1}"),
        Text("mirrored" if rehearsal else f"{stage['weight']:g} %"),
        Text(f"{stage['units']:,.0f}{' pairs' if rehearsal else ''}"),
        Text(f"held after {takes}", "yellow") if stage["held"] else Text(takes),
        Text(stage["waits_for"]),
        *(Text(harm_text(found, m, stage["harm"][m]) if m in stage["harm"] else "–") for m in metrics),
    ]


def harm_text(found: Mapping[str, Any], metric: str, badness: float | None) -> str:
    """Harm as a change in the metric's bad direction; `nothing` where none would be seen."""
    if badness is None:
        return "nothing"
    of = found["metrics"][metric]
    return narrative.change_text(metric, badness if of["direction"] == "lower" else -badness, of["relative"])


def _assumption(metric: str, stable: Stable) -> str:
    if stable.rate:
        return f"{100 * stable.rate:g} % of the users"
    return f"spread {stable.spread:g}"
