"""The stages gate, rehearsal and canary: what each look at them decides. Called by `decide`; pure. `watch` has the stage after promotion.

Order within a look: evidence that is void, then harm, then people (pause), then time and numbers. Nothing ships by default.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from services.evidence import Reading, combine, combine_goals
from services.rollout import gatecheck, reasons
from services.rollout.deliberation import Deliberation
from services.rollout.engines import await_candidate, covers, shares_stable
from services.rollout.forecast import forecast
from services.rollout.resources import split_key
from services.rollout.serving import in_force


def gate(d: Deliberation) -> None:
    """Offline evaluations compared; nothing has started yet."""
    rollout, aliases = d.rollout, d.observed.aliases
    if d.paused:
        d.wait(reasons.PAUSED, "paused")
        return
    if not d.rules.spec.rollout.gate.enabled or rollout.trigger == "specification":
        _pass_gate(
            d,
            reasons.GATE_SKIPPED,
            "the gate is disabled" if rollout.trigger == "challenger" else "same weights, same answers",
        )
        return
    evaluations = d.observed.evaluations
    if evaluations is None or aliases is None or not aliases.fresh:
        d.wait(reasons.AWAITING_REGISTRY, "the registry cannot be reached; the gate needs its evaluations")
        return
    result = gatecheck.check(d.rules, evaluations, rollout.version, rollout.champion_version)
    d.change(gate=result.evidence or None)
    if result.verdict == "advance":
        _pass_gate(d, result.reason, result.message)
    else:
        d.finish(result.verdict, result.reason, result.message, metric="accuracy" if result.evidence else None)


def _pass_gate(d: Deliberation, reason: str, message: str) -> None:
    if _frozen(d):
        return
    fewest = 0 if shares_stable(d) else d.rules.spec.engine.autoscaling.min
    d.change(stage="rehearsal", stage_started_at=None, replicas=fewest, baseline=dict(d.observed.baseline or {}))
    d.emit("gate", reason, message, d.rollout.gate)


def rehearsal(d: Deliberation) -> None:
    """Copies of real requests answered by both revisions; no user sees the candidate."""
    rules = d.rules.spec.rollout.rehearsal
    ready = await_candidate(d)
    if not d.active or _void_or_harmful(d):
        return
    if not d.rollout.admitted:
        if ready:
            d.change(admitted=True)
            d.wait(reasons.AWAITING_GATEWAYS, "the gateways are told to mirror requests")
        return
    if not _clock_runs(d) or _waits_for_person(d):
        return
    elapsed, counts = d.elapsed or 0.0, d.rollout.counts
    if d.rules.spec.rollout.judge is not None and not d.rules.judged:
        d.note("Judge", reasons.JUDGE_OFF, "privacy.content is never, so nothing may be judged")
    # What only the rehearsal measures must be shown here: no later stage could.
    only_here = {g.metric for g in d.rules.spec.rollout.guarded("rehearsal") if g.stages == ("rehearsal",)}
    unproven = combine(r for r in d.evidence.readings if r.metric in only_here).unproven
    if elapsed >= rules.min_duration and counts.pairs >= rules.min_pairs and not unproven:
        if not _frozen(d) and covers(d, d.rules.spec.rollout.canary.steps[0].weight):
            d.emit("rehearsal", reasons.REHEARSAL_PASSED, f"{counts.pairs} pairs show no harm", d.readings())
            _enter_step(d, 0)
        return
    waiting = _lacking(d, f"{counts.pairs} of {rules.min_pairs} pairs", unproven)
    if elapsed >= rules.max_duration:
        hold(d, reasons.REHEARSAL_INCONCLUSIVE, f"the rehearsal's time is up with {waiting}")
        return
    d.wait(reasons.AWAITING_EVIDENCE, waiting)


def canary(d: Deliberation) -> None:
    """Live users in steps; control takes as many."""
    await_candidate(d)
    if not d.active or _void_or_harmful(d):
        return
    if not _clock_runs(d) or _waits_for_person(d):
        return
    steps = d.rules.spec.rollout.canary.steps
    rules, counts, elapsed = steps[d.rollout.step], d.rollout.counts, d.elapsed or 0.0
    last = d.rollout.step == len(steps) - 1
    users = min(counts.step_control, counts.step_candidate)
    minimums = elapsed >= rules.min_duration and users >= rules.min_units
    combined, goal = combine(d.evidence.readings), _goals(d)
    lacking = (*combined.unproven, *([goal.lacking] if goal.lacking else ())) if last else ()
    if minimums and (not last or (combined.promotable and not lacking)):
        if rules.approval and d.rollout.step not in d.rollout.approved:
            _await_approval(
                d, f"step {d.rollout.step + 1} of {len(steps)} has passed and waits for a person's approval"
            )
        elif _frozen(d):
            return
        elif last:
            _promote(d, goal.shown)
        elif covers(d, steps[d.rollout.step + 1].weight):
            d.emit(
                "step",
                reasons.STEP_PASSED,
                f"step {d.rollout.step + 1} of {len(steps)} shows no harm in {users} users an arm",
                d.readings(),
            )
            _enter_step(d, d.rollout.step + 1)
        return
    waiting = _lacking(d, f"{users} of {rules.min_units} users an arm", lacking)
    if elapsed >= rules.max_duration:
        hold(d, reasons.STEP_INCONCLUSIVE, f"the time of step {d.rollout.step + 1} is up with {waiting}")
        return
    d.wait(reasons.AWAITING_EVIDENCE, waiting)


def _lacking(d: Deliberation, counted: str, unproven: Iterable[str]) -> str:
    """What is missing, and when it would be there at today's traffic."""
    text = forecast(d.rules, d.rollout, d.evidence.readings, d.elapsed or 0.0, d.observed.users_per_day)
    rest = [name for name in unproven if text is None or name not in text]
    return "; not yet shown: ".join([text or counted, *([", ".join(rest)] if rest else [])])


class _Goals(NamedTuple):
    lacking: str
    """What of the goals is not shown, in words."""
    shown: str


def _goals(d: Deliberation) -> _Goals:
    """Whether an improvement is shown where one is asked for."""
    asked = d.rules.spec.rollout.goals
    if asked is None:
        return _Goals("", "")
    found = combine_goals(d.evidence.readings, d.rules.spec.rollout.alpha, asked.combination)
    names = ", ".join(goal.metric for goal in asked.metrics)
    if not found.reached:
        return _Goals(f"an improvement in {names}", "")
    improved = ", ".join(split_key(key)[0] for key in found.improved) or f"{names} together"
    return _Goals("", f"; shown improved: {improved}")


def _await_approval(d: Deliberation, message: str) -> None:
    """Told once, when the waiting begins: somebody must hear of it."""
    if all(condition.reason != reasons.AWAITING_APPROVAL for condition in d.rollout.conditions):
        d.emit("approval", reasons.AWAITING_APPROVAL, message, d.readings())
    d.wait(reasons.AWAITING_APPROVAL, message)


def _frozen(d: Deliberation) -> bool:
    if d.frozen is not None:
        d.wait(reasons.FROZEN_WINDOW, f"all is shown that this stage needs, but {d.frozen}")
    return d.frozen is not None


def _promote(d: Deliberation, improved: str) -> None:
    aliases = d.observed.aliases
    if aliases is None or not aliases.fresh:
        d.wait(reasons.AWAITING_REGISTRY, "the registry cannot be reached; promotion waits for it")
    elif d.candidate is not None and covers(d, 100):
        shown = ", ".join(r.metric for r in d.evidence.readings if r.mode == "nonInferior")
        d.promote(
            reasons.PROMOTED,
            f"shown not worse beyond the margins: {shown}; nothing shown harmful{improved}",
            d.candidate,
        )


def hold(d: Deliberation, reason: str, message: str) -> None:
    """Time is up without evidence: a person decides."""
    d.change(verdict="hold", reason=reason, message=message, held_since=d.now)
    d.emit("hold", reason, message, d.readings())


def _enter_step(d: Deliberation, step: int) -> None:
    weight = d.rules.spec.rollout.canary.steps[step].weight
    d.change(stage="canary", step=step, weight=weight, stage_started_at=None)
    d.change(counts=d.rollout.counts.model_copy(update={"step_control": 0, "step_candidate": 0}))
    d.wait(reasons.AWAITING_GATEWAYS, f"the gateways are told to give {weight:g} % of the users to the candidate")


def _clock_runs(d: Deliberation) -> bool:
    if d.rollout.stage_started_at is None:
        if not in_force(d):
            d.wait(
                reasons.AWAITING_GATEWAYS,
                f"waiting for {d.observed.gateways or 'a'} gateway(s) to acknowledge the route",
            )
            return False
        d.start_clock()
        where = d.rollout.stage if d.rollout.stage == "rehearsal" else f"canary at {d.rollout.weight:g} %"
        d.emit("stage", reasons.STAGE_RUNNING, f"every gateway obeys: {where}")
    return True


def _waits_for_person(d: Deliberation) -> bool:
    rollout = d.rollout
    if rollout.held_since is not None:
        if d.now - rollout.held_since >= d.rules.spec.rollout.hold_timeout and rollout.weight > 0:
            d.change(weight=0.0, reason=reasons.HOLD_EXPIRED)
            d.emit("hold", reasons.HOLD_EXPIRED, "nobody decided; all users are back on stable")
        lacking = forecast(d.rules, rollout, d.evidence.readings, d.elapsed or 0.0, d.observed.users_per_day)
        d.wait(rollout.reason, f"held: promote, abort or resume{f'; {lacking}' if lacking else ''}")
        return True
    if d.paused:
        d.wait(reasons.PAUSED, f"paused by {rollout.paused_by}")
    return d.paused


def _void_or_harmful(d: Deliberation) -> bool:
    """Ends the rollout where the evidence is void or shows harm."""
    evidence = d.evidence
    if evidence.fault is not None:
        d.finish("error", reasons.ASSIGNMENT_FAULT if evidence.assignment else reasons.EVIDENCE_FAULT, evidence.fault)
        return True
    if evidence.ratio is not None and evidence.ratio.rejected:
        reached = f"e-value {evidence.ratio.e_value:.3g} reaches {evidence.ratio.threshold:.3g}"
        d.finish("error", reasons.SAMPLE_RATIO_MISMATCH, f"{evidence.ratio.message}: {reached}")
        return True
    harmful = next((reading for reading in evidence.readings if reading.harmful), None)
    if harmful is not None:
        metric, _ = split_key(harmful.metric)
        d.finish("abort", reasons.HARM[metric], describe(harmful), metric=harmful.metric)
    return harmful is not None


def describe(reading: Reading) -> str:
    """One sentence on a harmful reading: estimate, bound, margin, users, and the level that was spent on the finding."""

    def number(value: float | None) -> str:
        return "unknown" if value is None else f"{value:.3g}"

    def change(value: float | None) -> str:
        if value is None:
            return "unknown"
        return f"{value:+.0%}" if reading.relative else f"{value:+.3f}"

    metric, segment = split_key(reading.metric)
    bound = reading.lower if reading.direction == "lower" else reading.upper
    margin = f"{reading.margin:.0%}" if reading.relative else f"{reading.margin:g}"
    evidence = f", e-value {reading.e_harm:.3g}" if reading.e_harm is not None else ""
    crowd = (
        f"{reading.n_candidate} and {reading.n_control} users"
        if metric != "preference"
        else f"{reading.n_candidate} people"
    )
    where = f" of segment {segment}" if segment else ""
    return (
        f"{metric}{where}: candidate {number(reading.candidate)} against {number(reading.control)}, "
        f"change {change(reading.effect)} (surely beyond {change(bound)}), margin {margin}; "
        f"{crowd}; level {1 / reading.harm_threshold:.2g}{evidence}"
    )
