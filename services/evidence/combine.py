"""Many guardrails, one verdict: how the error level is shared out, and what all readings say together. Used by the
controller's `decide`.

Harm in any guardrail aborts, so the level is divided by their number (Bonferroni). Promotion needs every
non-inferiority shown, and shows it falsely only if one guardrail that is truly worse passes: each may be tested at the
full level (intersection-union, Berger 1982).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from services.evidence.errors import PlanFault
from services.evidence.summaries import Reading

SHARES = {"gate": 0.1, "rehearsal": 0.4, "canary": 0.5}


def stage_levels(alpha: float) -> dict[str, float]:
    """Shares out the level of false aborts of a whole rollout over its stages."""
    if not 0 < alpha < 1:
        raise PlanFault(f"alpha {alpha} must lie between 0 and 1")
    return {stage: share * alpha for stage, share in SHARES.items()}


def harm_level(alpha_stage: float, metrics: int, segments: int = 1) -> float:
    """Level of one guardrail's harm test; the numbers are fixed when the stage starts."""
    if metrics < 1 or segments < 1 or not 0 < alpha_stage < 1:
        raise PlanFault(f"level {alpha_stage} for {metrics} metrics in {segments} segments")
    return alpha_stage / (metrics * segments)


@dataclass(frozen=True, slots=True)
class Combined:
    """All readings together, by metric names. `promotable`: nothing harmful and every `nonInferior` guardrail shown,
    and at least one."""

    harmful: tuple[str, ...]
    unproven: tuple[str, ...]
    promotable: bool


def combine(readings: Iterable[Reading]) -> Combined:
    """Without a `nonInferior` guardrail nothing is promotable: no evidence is no reason to ship."""
    everything = list(readings)
    required = [reading for reading in everything if reading.mode == "nonInferior"]
    harmful = tuple(reading.metric for reading in everything if reading.harmful)
    unproven = tuple(reading.metric for reading in required if not reading.non_inferior)
    return Combined(harmful, unproven, promotable=bool(required) and not harmful and not unproven)
