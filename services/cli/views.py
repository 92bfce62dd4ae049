"""What the commands show, as plain JSON documents drawn from the store. Used by `main` (printed, or laid out by `tables`) and by the
demo's report.

Reads only. The numbers are the store's own; words come from `narrative`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from services.cli import narrative
from services.cli.errors import CliError, NotFound
from services.evidence import stage_levels
from services.rollout.plans import plans
from services.rollout.resources import GuardedStage, LLMService
from services.rollout.status import Counts, RolloutStatus
from services.store.rows import AuditEntry, RolloutRow

if TYPE_CHECKING:
    from services.common.routing import Route
    from services.store import Store

Reading = Mapping[str, Any]
Document = TypeVar("Document", bound=BaseModel)

ENDED: Final = {"advance": "promoted", "abort": "rolled back", "hold": "held", "error": "stopped by an error"}


def status(store: Store, service: str | None) -> dict[str, Any]:
    """Every service (or one): what serves, and its newest rollout.

    Raises:
        NotFound: the store knows no such service, or none at all.
    """
    routes = store.routes()
    newest: dict[str, RolloutRow] = {}
    for row in store.rollouts(service, limit=1_000 if service is None else 1):
        newest.setdefault(row.service, row)
    names = (
        sorted({*routes, *newest})
        if service is None
        else [name for name in (service,) if name in routes or name in newest]
    )
    if not names:
        raise _unknown_service(service, sorted({*routes, *newest}))
    now = store.now()
    return {"services": [_service(store, name, routes.get(name), newest.get(name), now) for name in names]}


def _service(store: Store, name: str, route: Route | None, row: RolloutRow | None, now: float) -> dict[str, Any]:
    leases = store.leases()
    document: dict[str, Any] = {
        "service": name,
        "stable": None if route is None else {"revision": route.stable.revision, "version": route.stable.version},
        "gateways": len(leases),
        "gateways_up_to_date": 0
        if route is None
        else sum(lease.routes.get(name, -1) >= route.version for lease in leases),
        "rollout": None,
    }
    if row is not None:
        document["rollout"] = _summary(row, now)
    return document


def rollouts(store: Store, service: str | None, limit: int) -> dict[str, Any]:
    """Past and present rollouts, newest first.

    Raises:
        NotFound: a service was named and the store knows none of that name.
    """
    rows = store.rollouts(service, limit=limit)
    if service is not None and not rows and service not in (routes := store.routes()):
        raise _unknown_service(service, sorted({*routes, *(row.service for row in store.rollouts())}))
    now = store.now()
    return {"rollouts": [_summary(row, now) for row in rows]}


def explain(store: Store, what: str) -> dict[str, Any]:
    """Why a service's newest rollout, or the one of that id, stands where it stands.

    Raises:
        NotFound: neither a service nor a rollout has that name.
    """
    row = store.rollout(what)
    if row is None:
        found = store.rollouts(what, limit=1)
        if not found:
            routes = store.routes()
            known = sorted({*routes, *(one.service for one in store.rollouts())})
            if what in known:
                serving = routes[what].stable.revision
                raise NotFound(
                    f"{what} has had no rollout yet; {serving} serves everyone (set the challenger alias to start one)"
                )
            raise NotFound(
                f"no service or rollout {what!r}; services: {', '.join(known) or 'none'}; rollouts: `understudy rollouts`"
            )
        row = found[0]
    return explanation(row, store.readings(row.id), store.audit(rollout=row.id), store.now())


def explanation(
    row: RolloutRow, readings: Sequence[Reading], audit: Sequence[AuditEntry], now: float
) -> dict[str, Any]:
    """One rollout in sentences, with each metric's last reading and the audit trail (oldest first)."""
    state = status_of(row)
    summary = _summary(row, now)
    return {
        **summary,
        "headline": headline(summary, now),
        "sentences": sentences(state),
        "metrics": [told(reading) for reading in latest_readings(readings)],
        "budget": budget(row, state, readings),
        "conditions": [condition.to_json() for condition in state.conditions],
        "audit": [audit_document(entry) for entry in sorted(audit, key=lambda entry: (entry.at, entry.id or 0))],
    }


def budget(row: RolloutRow, state: RolloutStatus, readings: Sequence[Reading]) -> dict[str, Any] | None:
    """How the chance of aborting a harmless candidate is shared out, and how near each test has come to its part. `level` is the test's,
    over all steps; `threshold` what its e-value must reach. A metric that is judged by bounds has no e-value. None: the resource is of
    another version.
    """
    try:
        rules = LLMService.model_validate(row.spec)
    except ValidationError:
        return None
    alpha = rules.spec.rollout.alpha
    levels = stage_levels(alpha)
    last = {(reading["stage"], reading["metric"]): reading for reading in readings}
    gate = {"metric": "accuracy", "e_harm": None, "harmful": False, **(state.gate or {})}
    tests = [_test("gate", "accuracy", levels["gate"], gate)]
    stages: tuple[GuardedStage, ...] = ("rehearsal", "canary")
    for stage in stages:
        for key, plan in plans(rules, stage, state.baseline).items():
            if plan.mode != "goal":
                tests.append(_test(stage, key, plan.alpha_harm, last.get((stage, key), {})))
    steps = len(rules.spec.rollout.canary.steps)
    return {"alpha": alpha, "stages": levels, "steps": steps, "tests": tests}


def _test(stage: str, metric: str, level: float, reading: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "stage": stage,
        "metric": metric,
        "level": level,
        "threshold": 1 / level,
        "e_value": reading.get("e_harm"),
        "harmful": bool(reading.get("harmful", False)),
    }


def budget_sentences(found: Mapping[str, Any]) -> list[str]:
    """The error budget in words: its parts, and the test that has come nearest to using up its own."""
    parts = []
    for stage, level in found["stages"].items():
        tests = [test for test in found["tests"] if test["stage"] == stage]
        each = f" ({len(tests)} tests, {narrative.percent(tests[0]['level'])} each)" if len(tests) > 1 else ""
        parts.append(f"{stage} {narrative.percent(level)}{each}")
    said = [f"Of the {narrative.percent(found['alpha'])} for aborting a harmless candidate: {', '.join(parts)}."]
    nearest = max(
        (test for test in found["tests"] if test["e_value"] is not None),
        key=lambda test: float(test["e_value"] / test["threshold"]),
        default=None,
    )
    if nearest is not None:
        used = "used its part up" if nearest["harmful"] else "came nearest to its part"
        e, needed = narrative.e_text(nearest["e_value"]), narrative.e_text(nearest["threshold"])
        said.append(f"{nearest['metric']} in {nearest['stage']} {used}: e-value {e} of {needed}.")
    return said


def told(reading: Reading) -> dict[str, Any]:
    """A reading with its sentences."""
    metric = narrative.metric_of(reading["metric"])
    return {
        **reading,
        "label": metric.label,
        "unit": metric.unit,
        "compared": narrative.compared_text(reading),
        "judged": " ".join(filter(None, (narrative.judged_text(reading), narrative.past_text(reading)))),
    }


def status_of(row: RolloutRow) -> RolloutStatus:
    """The controller's document of a rollout.

    Raises:
        CliError: the document is of another version of the platform.
    """
    return parsed(row.id, row.status, RolloutStatus)


def parsed(rollout: str, document: Mapping[str, Any], model: type[Document]) -> Document:
    """A document of a rollout's row as its model. Raises CliError as `status_of`."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its top"
        raise CliError(
            f"rollout {rollout} was written by another version of the platform (differs at {place}); use that version's command"
        ) from error


def latest_readings(readings: Sequence[Reading]) -> list[Reading]:
    """Each metric's last reading, in the order in which metrics first appeared: the last stage that measured it counts."""
    last: dict[str, Reading] = {}
    for reading in readings:
        last[reading["metric"]] = reading
    return list(last.values())


def ended_in(state: RolloutStatus) -> str:
    """The stage where the verdict fell, or where the rollout stands."""
    return state.decided_in or state.stage


def users_of(state: RolloutStatus) -> dict[str, int]:
    """Users whose values are final, an arm; mirrored ones felt nothing of it."""
    counts = state.counts
    return {"candidate": counts.users_candidate, "control": counts.users_control, "mirrored": counts.pairs}


def _summary(row: RolloutRow, now: float) -> dict[str, Any]:
    state = status_of(row)
    return {
        "id": row.id,
        "service": row.service,
        "version": row.version,
        "revision": row.revision,
        "kind": state.kind,
        "stage": state.stage,
        "step": state.step,
        "steps": _steps(row),
        "weight": state.weight,
        "verdict": state.verdict,
        "decided_in": state.decided_in,
        "metric": state.metric,
        "reason": state.reason,
        "message": state.message,
        "waits_for": next((one.message for one in state.conditions if one.type == "Waiting"), None),
        "paused": state.paused_since is not None,
        "started_at": row.started_at,
        "decided_at": state.decided_at,
        "finished_at": row.finished_at,
        "seconds": (now if row.finished_at is None else row.finished_at) - row.started_at,
        "users": users_of(state),
    }


def _steps(row: RolloutRow) -> int | None:
    """Canary steps of the resource that the rollout began under; None where it is of another version."""
    steps = row.spec.get("spec", {}).get("rollout", {}).get("canary", {}).get("steps")
    return None if steps is None else len(steps)


def headline(rollout: Mapping[str, Any], now: float) -> str:
    """One sentence on a rollout's document: what became of it, or where it stands."""
    revision, verdict, decided = rollout["revision"], rollout["verdict"], rollout["decided_at"]
    ended = verdict != "continue"
    spent = "" if ended and decided is None else f" after {_span(rollout['started_at'], decided or now)}"
    where = place(rollout)
    if verdict == "advance":
        ending = "; it is watched until the rollback window ends" if rollout["stage"] == "watch" else ""
        return f"{revision} was promoted{spent}{ending}."
    if verdict == "hold":
        weight = rollout["weight"]
        kept = f"its weight of {weight:g} % is kept" if weight else "nobody gets it"
        return f"{revision} is held in {where}: time was up without evidence; {kept} until a person decides."
    if verdict in ENDED:
        return f"{revision} was {ENDED[verdict]} in {where}{spent}."
    paused = ", paused by a person" if rollout["paused"] else ""
    return f"{revision} is in {where} since {_span(rollout['started_at'], now)}{paused}."


def _span(start: float, end: float) -> str:
    return narrative.seconds_text(end - start)


def place(rollout: Mapping[str, Any]) -> str:
    """Where a rollout stands or ended: `the rehearsal`, `canary step 2`."""
    stage = rollout["decided_in"] or rollout["stage"]
    return f"canary step {rollout['step'] + 1}" if stage == "canary" and rollout["step"] is not None else f"the {stage}"


def sentences(state: RolloutStatus) -> list[str]:
    """What the controller says, what the gate compared, how many users it rests on, what it waits for."""
    said = (
        [narrative.sentence(f"{state.message} ({state.reason})" if state.reason else state.message)]
        if state.message
        else []
    )
    if state.gate and ended_in(state) != "gate" and (gate := gate_text(state.gate)):
        said.append(gate)
    counts = state.counts
    if counts.pairs:
        judged = f", {counts.judgements:,} of them judged" if counts.judgements else ""
        said.append(f"{counts.pairs:,} prompts were answered by both revisions out of users' sight{judged}.")
    if counts.inconsistent:
        said.append(f"{counts.inconsistent:,} judgements turned with the order of the answers and count as ties.")
    if counts.unparsable:
        said.append(f"On {counts.unparsable:,} pairs the judge's answer could not be read; they are left out.")
    if counts.people:
        said.extend(_people(counts))
    if counts.users_candidate or counts.users_control:
        said.append(
            f"{counts.users_candidate:,} users of the candidate and {counts.users_control:,} of the control have final values; "
            f"{counts.feedback_candidate:,} and {counts.feedback_control:,} of them gave feedback."
        )
    if counts.late:
        said.append(f"{counts.late:,} rows came after their user's value was final; they change nothing.")
    if not state.active or state.verdict != "continue":
        return said
    said.extend(
        narrative.sentence(f"{one.type}: {one.message} ({one.reason})") for one in state.conditions if one.message
    )
    if state.stage in ("rehearsal", "canary") and state.stage_started_at is None:
        said.append(
            "The clock of this stage has not started: engine or gateways are not ready, and that time does not count."
        )
    return said


def _people(counts: Counts) -> Iterator[str]:
    """What people who compared answers did, and whether the place of an answer had a part in it."""
    ties, turned = counts.comparison_ties, counts.comparisons_inconsistent
    yield (
        f"{counts.people:,} people compared {counts.comparisons:,} pairs of answers, each person counting once; {ties:,} pairs were "
        f"ties, {turned:,} turned with the order of the answers and count as ties."
    )
    if counts.ordered:
        yield (
            f"Of {counts.ordered:,} comparisons whose order is known the candidate stood first in {counts.candidate_first:,}, and the "
            f"answer shown first was preferred in {counts.first_preferred:,}."
        )


def gate_text(gate: Mapping[str, Any]) -> str | None:
    """The offline evaluation in one sentence; None where there was no comparison."""
    if "accuracy" not in gate:
        return None
    candidate, champion = gate["accuracy"]["candidate"], gate["accuracy"]["champion"]
    return (
        f"Of {gate['items']:,} held-out questions the candidate answered {100 * candidate:.1f} % rightly, "
        f"the champion {100 * champion:.1f} %."
    )


def audit_document(entry: AuditEntry) -> dict[str, Any]:
    """An audit row as JSON."""
    return {
        "at": entry.at, "service": entry.service, "rollout": entry.rollout, "actor": entry.actor, "action": entry.action,
        "reason": entry.reason, "message": entry.message, "evidence": dict(entry.evidence),
    }  # fmt: skip


def _unknown_service(service: str | None, known: Sequence[str]) -> NotFound:
    if service is None:
        return NotFound("this store knows no service yet; start one with `understudy serve --config FILE`")
    return NotFound(f"no service {service!r} in this store; it knows {', '.join(known) or 'none'}")
