"""Which statistics each guardrail of a stage gets: the plans are fixed when the stage starts. Called when a stage begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from services.evidence import GuardrailPlan, harm_level, stage_levels
from services.evidence.summaries import Kind
from services.rollout.resources import RELATIVE, GuardedStage, Guardrail, LLMService

_KINDS: Final[dict[str, tuple[Kind, bool]]] = {
    "errors": ("rate", False),
    "ttft": ("quantile", False),
    "tokensPerSecond": ("mean", True),
    "feedback": ("rate", False),
    "judge": ("boundedMean", True),
}
"""Metric -> kind of statistic, whether higher is better."""

_HISTORY: Final = {"errors": ("failure_rate", "units"), "feedback": ("bad_feedback_rate", "units")}
MINIMUM_HISTORY: Final = 100
"""Users of history below which stable's rate says too little to bet on."""


def plans(service: LLMService, stage: GuardedStage, baseline: Mapping[str, Any]) -> dict[str, GuardrailPlan]:
    """The plans of a stage by metric. A judge's guardrail falls away where nothing may be judged."""
    rollout = service.spec.rollout
    guardrails = [g for g in rollout.guarded(stage) if g.metric != "judge" or service.judged]
    if not guardrails:
        return {}
    level = harm_level(stage_levels(rollout.alpha)[stage], len(guardrails))
    steps = len(rollout.canary.steps) if stage == "canary" else 1
    return {g.metric: _plan(g, steps, level, rollout.alpha, baseline) for g in guardrails}


def _plan(guardrail: Guardrail, steps: int, level: float, alpha: float, baseline: Mapping[str, Any]) -> GuardrailPlan:
    kind, higher = _KINDS[guardrail.metric]
    return GuardrailPlan(
        metric=guardrail.metric,
        kind=kind,
        direction="higher" if higher else "lower",
        margin=guardrail.margin,
        relative=guardrail.metric in RELATIVE,
        mode=guardrail.mode,
        steps=steps,
        alpha_harm=level,
        alpha_promote=alpha,
        quantile=guardrail.quantile,
        design_prior=_prior(guardrail.metric, baseline),
    )


def _prior(metric: str, baseline: Mapping[str, Any]) -> float | None:
    """Stable's rate per user, drawn half a user towards one half, so that a history without failures does not bet as if none could come."""
    if metric not in _HISTORY:
        return None
    rate, units = (baseline.get(key) for key in _HISTORY[metric])
    if rate is None or not units or units < MINIMUM_HISTORY:
        return None
    return float((rate * units + 0.5) / (units + 1))
