"""The gate's comparison: offline evaluations of candidate and champion on the same items, before any engine starts. Pure.

Items are pairs; harm is rejected by the same betting e-process as elsewhere, at the gate's share of alpha. Items come in the order of a
hash of their ids, since a file sorted by kind would be no exchangeable sequence.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from services.evidence import Guardrail, GuardrailPlan, UnitValue, stage_levels
from services.rollout import reasons
from services.rollout.observed import Evaluation, Evaluations
from services.rollout.resources import LLMService


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the gate found."""

    verdict: Literal["advance", "abort", "error"]
    reason: str
    message: str
    evidence: dict[str, Any]


def check(service: LLMService, evaluations: Evaluations, candidate: str, champion: str) -> GateResult:
    """Compares the evaluations of two versions (their numbers are for the messages)."""
    if evaluations.invalid is not None:
        return GateResult("error", reasons.EVALUATION_INVALID, evaluations.invalid, {})
    ours, theirs = evaluations.candidate, evaluations.champion
    if ours is None or theirs is None:
        missing = " and ".join(f"v{v}" for v, e in ((candidate, ours), (champion, theirs)) if e is None)
        return GateResult(
            "error",
            reasons.EVALUATION_MISSING,
            f"{missing} has no evaluation/evaluation.json; evaluate it or disable the gate",
            {},
        )
    if ours.dataset != theirs.dataset or ours.items.keys() != theirs.items.keys():
        message = f"v{candidate} and v{champion} were evaluated on different data sets; evaluate both on one"
        return GateResult("error", reasons.EVALUATION_MISMATCH, message, {})
    return _compare(service, ours, theirs, candidate, champion)


def _compare(service: LLMService, ours: Evaluation, theirs: Evaluation, candidate: str, champion: str) -> GateResult:
    gate = service.spec.rollout.gate
    level = stage_levels(service.spec.rollout.alpha)["gate"]
    plan = GuardrailPlan(
        "accuracy", "rate", "higher", gate.margin, False, "harmOnly", 1, level, service.spec.rollout.alpha
    )
    guardrail = Guardrail(plan)
    guardrail.update_pairs(
        (
            UnitValue(item, "control", 0.0, float(place), 0, float(theirs.items[item])),
            UnitValue(item, "candidate", 0.0, float(place), 0, float(ours.items[item])),
        )
        for place, item in enumerate(sorted(ours.items, key=lambda item: hashlib.sha256(item.encode()).digest()))
    )
    reading = guardrail.reading()
    evidence = {
        **reading.to_json(),
        "accuracy": {"candidate": ours.accuracy, "champion": theirs.accuracy},
        "items": len(ours.items),
        "dataset": ours.dataset,
    }
    figures = f"v{candidate} answers {ours.accuracy:.1%} of {len(ours.items)} items rightly, v{champion} {theirs.accuracy:.1%}"
    if gate.minimum_accuracy is not None and ours.accuracy < gate.minimum_accuracy:
        return GateResult(
            "abort", reasons.GATE_BELOW_MINIMUM, f"{figures}; at least {gate.minimum_accuracy:.1%} is asked", evidence
        )
    if reading.harmful:
        return GateResult("abort", reasons.GATE_HARMFUL, f"{figures}: worse by more than {gate.margin:.1%}", evidence)
    return GateResult("advance", reasons.GATE_PASSED, figures, evidence)
