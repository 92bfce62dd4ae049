"""Which statistics each guardrail of a stage gets: the plans are fixed when the stage starts. Called when a stage begins.

A plan's metric is a key (`resources_metrics.key_of`): readings, evidence and status carry it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from services.evidence import GuardrailPlan, harm_level, stage_levels
from services.evidence.summaries import Mode
from services.rollout.resources import COMPARED, METRICS, Goal, GuardedStage, Guardrail, LLMService, key_of

_HISTORY: Final = {"errors": ("failure_rate", "units"), "feedback": ("bad_feedback_rate", "units")}
MINIMUM_HISTORY: Final = 100
"""Users of history below which stable's rate says too little to bet on."""


def segments_by_tenant(service: LLMService) -> dict[str, list[str]]:
    """Tenant -> names of the segments that it belongs to."""
    found: dict[str, list[str]] = {}
    for segment in service.spec.rollout.segments:
        for tenant in segment.tenants:
            found.setdefault(tenant, []).append(segment.name)
    return found


def plans(service: LLMService, stage: GuardedStage, baseline: Mapping[str, Any]) -> dict[str, GuardrailPlan]:
    """The plans of a stage by key. A judge's guardrail falls away where nothing may be judged. Segments are watched for harm alone, and by
    their users' traffic: answers that are judged or compared beside it are not told apart.
    """
    rollout = service.spec.rollout
    guardrails = [g for g in rollout.guarded(stage) if g.metric != "judge" or service.judged]
    if not guardrails:
        return {}
    level = harm_level(stage_levels(rollout.alpha)[stage], len(guardrails), 1 + len(rollout.segments))
    steps = len(rollout.canary.steps) if stage == "canary" else 1
    made = [_plan(g, None, steps, level, rollout.alpha, baseline) for g in guardrails]
    for segment in rollout.segments:
        made += [
            _plan(g, segment.name, steps, level, rollout.alpha, {}) for g in guardrails if g.metric not in COMPARED
        ]
    if stage == "canary" and rollout.goals is not None:
        made += [_goal(goal, steps, level, rollout.alpha, baseline) for goal in rollout.goals.metrics]
    return {plan.metric: plan for plan in made}


def _plan(
    guardrail: Guardrail, segment: str | None, steps: int, level: float, alpha: float, baseline: Mapping[str, Any]
) -> GuardrailPlan:
    key, mode = key_of(guardrail.metric, segment), guardrail.mode if segment is None else "harmOnly"
    return _made(guardrail, key, guardrail.margin, mode, steps, level, alpha, baseline)


def _goal(goal: Goal, steps: int, level: float, alpha: float, baseline: Mapping[str, Any]) -> GuardrailPlan:
    return _made(goal, key_of(goal.metric, goal=True), goal.improvement, "goal", steps, level, alpha, baseline)


def _made(
    asked: Guardrail | Goal,
    key: str,
    margin: float,
    mode: Mode,
    steps: int,
    level: float,
    alpha: float,
    baseline: Mapping[str, Any],
) -> GuardrailPlan:
    measured = METRICS[asked.metric]
    return GuardrailPlan(
        metric=key,
        kind=measured.kind,
        direction="higher" if measured.higher else "lower",
        margin=margin,
        relative=measured.relative,
        mode=mode,
        # Comparisons are made beside the traffic: whatever the step, they say the same.
        steps=1 if asked.metric in COMPARED else steps,
        alpha_harm=level,
        alpha_promote=alpha,
        quantile=asked.quantile,
        design_prior=_prior(asked.metric, baseline),
        bounds=measured.bounds,
    )


def _prior(metric: str, baseline: Mapping[str, Any]) -> float | None:
    """Stable's rate per user, drawn half a user towards one half, so that a history without failures does not bet as if none could come."""
    if metric not in _HISTORY:
        return None
    rate, units = (baseline.get(key) for key in _HISTORY[metric])
    if rate is None or not units or units < MINIMUM_HISTORY:
        return None
    return float((rate * units + 0.5) / (units + 1))
