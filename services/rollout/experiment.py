"""A/B experiments in each look: when one begins and ends, what the gateways are told of it, what people are told. Part of `decide`; pure.

Nothing here promotes anything, and nothing may touch stable or a rollout. A rollout and an experiment never share a user: an experiment's
users are left out of rollouts while it runs, and it begins only while no rollout is comparing, so that no user changes sides in one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, Literal

from pydantic import Field

from services.common import routing
from services.common.routing import Target
from services.rollout import reasons
from services.rollout.actions import KeepExperiment
from services.rollout.deliberation import Beside, Deliberation
from services.rollout.experiment_results import Result
from services.rollout.resources_experiment import Experiment
from services.rollout.status import Document
from services.store import ExperimentRow

ACTION: Final = "experiment"
"""Of audit rows; their evidence names the experiment."""


class ExperimentStatus(Document):
    """One experiment from its start to its end: the document in the store's rows."""

    salt: str
    state: Literal["running", "paused", "closing", "finished"] = "running"
    """`closing`: no more users come, those who came are still being measured."""
    reason: str = ""
    message: str = ""
    users: dict[str, int] = Field(default_factory=dict)
    """Closed users by group."""
    results: tuple[Result, ...] = ()
    looked_at: float | None = None
    """When the results were read."""
    fault: str | None = None
    """Why the evidence is void."""
    fault_reason: str = ""
    told: tuple[str, ...] = ()
    """Claims that people have been told of."""


def status_of(row: ExperimentRow) -> ExperimentStatus:
    """Raises pydantic.ValidationError for another program's document."""
    return ExperimentStatus.model_validate(row.status)


def rules_of(row: ExperimentRow) -> Experiment:
    """The experiment as it began. Raises pydantic.ValidationError for another program's document."""
    return Experiment.model_validate(row.spec)


def with_status(row: ExperimentRow, status: ExperimentStatus) -> ExperimentRow:
    """The row with another document."""
    return replace(row, status=status.to_json())


def id_of(service: str, name: str) -> str:
    """The experiment's id; names of services and experiments have no colon."""
    return f"{service}:{name}"


def versions(experiments: Iterable[Experiment], rows: Sequence[ExperimentRow]) -> tuple[str, ...]:
    """The versions that must run beside stable, by the rules that experiments began under."""
    known = {row.name: row for row in rows}
    found: dict[str, None] = {}
    for experiment in experiments:
        row = known.get(experiment.name)
        if row is None or row.ended_at is None:
            rules = experiment if row is None else rules_of(row)
            found.update(dict.fromkeys(variant.version for variant in rules.variants))
    return tuple(found)


def experiment(d: Deliberation) -> None:
    """Every experiment of the resource and of the store. After `pin`, which brings up their versions; before the stages, which compare
    routes.
    """
    wanted = {one.name: one for one in d.service.spec.experiments}
    rows = {row.name: row for row in d.observed.experiments}
    published: list[routing.Experiment] = []
    said: list[tuple[bool, str, str]] = []
    for row in d.observed.experiments:  # in the order in which they began
        if row.ended_at is None:
            route = _go_on(d, row, wanted.get(row.name), said)
            if route is not None:
                published.append(route)
        elif row.name in wanted:
            said.append((True, reasons.EXPERIMENT_ENDED, f"{row.name} has ended: {row.status.get('message', '')}"))
    for name, one in wanted.items():
        if name not in rows:
            route = _begin(d, one, said)
            if route is not None:
                published.append(route)
    d.experiments = tuple(published)
    if said:
        bad = next((one for one in said if not one[0]), said[0])
        d.condition("Experiments", bad[0], bad[1], "; ".join(message for _, _, message in said))


def _begin(d: Deliberation, rules: Experiment, said: list[tuple[bool, str, str]]) -> routing.Experiment | None:
    """Begins once every variant has answered and no rollout is comparing."""
    groups = _groups(d, rules, None)
    if rules.paused:
        said.append((True, reasons.PAUSED, f"{rules.name} is paused and has not begun"))
    elif groups is None:
        amiss = [beside for beside in _beside(d, rules) if beside.target is None]
        reason = next((beside.reason for beside in amiss if beside.reason), None)
        words = "; ".join(beside.message for beside in amiss)
        said.append((reason is None, reason or reasons.AWAITING_ENGINE, f"{rules.name} has not begun: {words}"))
    elif d.stable is None or (d.active and d.rollout.undecided):
        said.append((True, reasons.AWAITING_ROLLOUT, f"{rules.name} begins when the rollout under way has ended"))
    else:
        # Its own salt: a user's place in an experiment must say nothing of their place in another one or in a rollout.
        drawn = d.observed.identity.salt
        salt = hashlib.sha256(f"{drawn}:experiment:{rules.name}".encode()).hexdigest()[: len(drawn)]
        status = ExperimentStatus(salt=salt, users={name: 0 for name, _ in rules.groups()})
        spec = rules.model_dump(mode="json", by_alias=True)
        row = ExperimentRow(id_of(d.service.name, rules.name), d.service.name, rules.name, d.now, None, None, spec, {})
        row = with_status(row, status)
        d.actions.append(KeepExperiment(row))
        shares = ", ".join(f"{name} {share / 100:g} %" for name, share in rules.groups())
        _tell(d, row, reasons.EXPERIMENT_STARTED, f"experiment {rules.name} begins: {shares}")
        said.append((True, reasons.EXPERIMENT_RUNNING, f"{rules.name} runs"))
        return _route(row, status, rules, groups)
    return None


def _go_on(
    d: Deliberation, row: ExperimentRow, wanted: Experiment | None, said: list[tuple[bool, str, str]]
) -> routing.Experiment | None:
    rules, status = rules_of(row), status_of(row)
    ending = _ending(d, row, status, rules, wanted)
    if ending is not None:
        reason, message = ending
        ended = status.model_copy(update={"state": "closing", "reason": reason, "message": message})
        d.actions.append(KeepExperiment(replace(with_status(row, ended), ended_at=d.now)))
        _tell(d, row, reason, f"experiment {row.name} ends: {message}")
        said.append((status.fault is None, reason, f"{row.name} has ended: {message}"))
        return None
    groups = _groups(d, rules, d.observed.route)
    paused = wanted is not None and wanted.paused
    after = status.model_copy(update={"state": "paused" if paused or groups is None else "running"})
    fresh = [result for result in status.results if result.claim != "open" and _claim(result) not in status.told]
    for result in fresh:
        after = after.model_copy(update={"told": (*after.told, _claim(result))})
        _tell(d, row, reasons.EXPERIMENT_CLAIM, f"experiment {row.name}: {_words(result)}", result)
    if after != status:
        d.actions.append(KeepExperiment(with_status(row, after)))
    _say(d, row, rules, wanted, paused, said)
    return None if paused or groups is None else _route(row, status, rules, groups)


def _ending(
    d: Deliberation, row: ExperimentRow, status: ExperimentStatus, rules: Experiment, wanted: Experiment | None
) -> tuple[str, str] | None:
    if status.fault is not None:
        return status.fault_reason, f"its evidence is void: {status.fault}"
    if wanted is None:
        return reasons.EXPERIMENT_REMOVED, "it was taken out of the resource"
    lasts = wanted.max_duration
    if d.now - row.started_at >= lasts:
        return reasons.EXPERIMENT_ENDED, f"its maxDuration of {lasts:.0f} s is over"
    return None


def _say(
    d: Deliberation,
    row: ExperimentRow,
    rules: Experiment,
    wanted: Experiment | None,
    paused: bool,
    said: list[tuple[bool, str, str]],
) -> None:
    """How it stands with one that runs."""
    amiss = [beside for beside in _beside(d, rules) if beside.reason is not None]
    if wanted is not None and not wanted.same_rules(rules):
        message = f"{row.name} goes on by the rules that it began under: for others begin one under a new name"
        said.append((False, reasons.EXPERIMENT_CHANGED, message))
    elif amiss:
        words = "; ".join(beside.message for beside in amiss)
        message = f"{row.name}: {words}; its users get stable, and count as failed"
        said.append((False, amiss[0].reason or "", message))
    elif paused:
        said.append((True, reasons.PAUSED, f"{row.name} is paused: its users get stable, and nothing is counted"))
    else:
        claims = [_words(result) for result in status_of(row).results if result.claim != "open"]
        said.append((True, reasons.EXPERIMENT_RUNNING, f"{row.name} runs{': ' if claims else ''}{'; '.join(claims)}"))


def _beside(d: Deliberation, rules: Experiment) -> list[Beside]:
    return [d.beside[version] for version in dict.fromkeys(v.version for v in rules.variants)]


def _groups(d: Deliberation, rules: Experiment, route: routing.Route | None) -> tuple[routing.Group, ...] | None:
    """The groups with their targets; a variant whose engine is away keeps its last one, where gateways fall back to stable by themselves.
    None: some variant has none.
    """
    last: dict[str, Target] = {}
    for one in route.experiments if route is not None else ():
        if one.id == id_of(d.service.name, rules.name):
            last = {group.name: group.target for group in one.groups if group.target is not None}
    made = []
    versions = {variant.name: variant.version for variant in rules.variants}
    for name, share in rules.groups():
        target = None
        if name in versions:
            target = d.beside[versions[name]].target or last.get(name)
            if target is None:
                return None
        made.append(routing.Group(name=name, share=share, target=target))
    return tuple(made)


def _route(
    row: ExperimentRow, status: ExperimentStatus, rules: Experiment, groups: tuple[routing.Group, ...]
) -> routing.Experiment:
    return routing.Experiment(id=row.id, salt=status.salt, groups=groups, horizon=rules.horizon, settle=rules.settle)


def _claim(result: Result) -> str:
    return f"{result.variant}/{result.metric}/{result.claim}"


def _words(result: Result) -> str:
    effect = "" if result.effect is None else f" ({result.effect:+.3g}{' relative' if result.relative else ''})"
    if result.claim == "equal":
        return f"{result.metric} of {result.variant} is within the margin of {result.margin:g}{effect}"
    return f"{result.metric} of {result.variant} is shown {result.claim}{effect}"


def _tell(d: Deliberation, row: ExperimentRow, reason: str, message: str, result: Result | None = None) -> None:
    evidence = {"experiment": row.id} | ({} if result is None else {"result": result.to_json()})
    d.emit(ACTION, reason, message, evidence)
