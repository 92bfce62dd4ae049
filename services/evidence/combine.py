"""Many guardrails, one verdict: how the error level is shared out, and what all readings say together. Used by the
controller's `decide`.

Harm in any guardrail aborts, so the level is divided by their number (Bonferroni). Promotion needs every
non-inferiority shown, and shows it falsely only if one guardrail that is truly worse passes: each may be tested at the
full level (intersection-union, Berger 1982).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from services.evidence.errors import PlanFault
from services.evidence.summaries import Reading

SHARES = {"gate": 0.1, "rehearsal": 0.4, "canary": 0.5}


def stage_levels(alpha: float) -> dict[str, float]:
    """Shares out the level of false aborts of a whole rollout over its stages."""
    if not 0 < alpha < 1:
        raise PlanFault(f"alpha {alpha} must lie between 0 and 1")
    return {stage: share * alpha for stage, share in SHARES.items()}


GoalRule = Literal["average", "holm"]
"""How several goals are taken together. `average`: something improved, whichever it is. `holm`: which ones improved."""


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
    """Without a `nonInferior` guardrail nothing is promotable: no evidence is no reason to ship. Goals are `combine_goals`' work."""
    everything = [reading for reading in readings if reading.mode != "goal"]
    required = [reading for reading in everything if reading.mode == "nonInferior"]
    harmful = tuple(reading.metric for reading in everything if reading.harmful)
    unproven = tuple(reading.metric for reading in required if not reading.non_inferior)
    return Combined(harmful, unproven, promotable=bool(required) and not harmful and not unproven)


@dataclass(frozen=True, slots=True)
class Goals:
    """Several goals together. `improved`: those that are shown by themselves, at a level corrected for their number. `reached`: whether an
    improvement is shown at all. `e_value`: the average of the goals' e-values."""

    rule: GoalRule
    improved: tuple[str, ...]
    reached: bool
    e_value: float | None
    threshold: float


def combine_goals(readings: Iterable[Reading], alpha: float, rule: GoalRule = "average") -> Goals:
    """Whether any of the goals has improved, wrongly with probability at most `alpha` at any time; readings of other modes are left out.

    `average`: e-values may be averaged whatever their dependence (Vovk & Wang 2021). `holm`: the e-values in falling order against m/α,
    (m − 1)/α, …, 1/α until one falls short. Only readings of the last step count, as for promotion; a goal without an e-value yet has 1.
    """
    goals = [reading for reading in readings if reading.mode == "goal"]
    if not 0 < alpha < 1 or rule not in ("average", "holm"):
        raise PlanFault(f"goals: level {alpha} must lie between 0 and 1 and the rule {rule!r} be average or holm")
    if not goals:
        return Goals(rule, (), reached=False, e_value=None, threshold=1 / alpha)
    ordered = sorted(goals, key=_e_value, reverse=True)
    improved: list[str] = []
    for rank, goal in enumerate(ordered):
        if not goal.last_step or _e_value(goal) < (len(goals) - rank) / alpha:
            break
        improved.append(goal.metric)
    mean = math.fsum(_e_value(goal) for goal in goals) / len(goals)
    reached = bool(improved) or (rule == "average" and mean >= 1 / alpha and all(goal.last_step for goal in goals))
    return Goals(rule, tuple(improved), reached, mean, 1 / alpha)


def _e_value(reading: Reading) -> float:
    return 1.0 if reading.e_promote is None else reading.e_promote


@dataclass(frozen=True, slots=True)
class Share:
    """One part of a rollout's error budget: the level of one metric's harm test in one stage, and the evidence it has met.

    `spent` is level · min(1, e/threshold): how near the test has come to using its part up; all of it once it has alarmed.
    """

    stage: str
    metric: str
    segment: str
    level: float
    e_value: float | None
    spent: float | None


@dataclass(frozen=True, slots=True)
class Budget:
    """The level of false aborts of a whole rollout, and how it is divided. `left` is what no test was given: a stage without guardrails."""

    alpha: float
    shares: tuple[Share, ...]

    @property
    def given(self) -> float:
        return math.fsum(share.level for share in self.shares)

    @property
    def left(self) -> float:
        return max(0.0, self.alpha - self.given)

    def to_json(self) -> dict[str, Any]:
        """For `explain` and the console."""
        return {**asdict(self), "given": self.given, "left": self.left}


def error_budget(
    alpha: float,
    metrics: Mapping[str, Sequence[str]],
    readings: Mapping[str, Iterable[Reading]],
    segments: Sequence[str] = ("",),
) -> Budget:
    """How a rollout's α is divided: over the stages by `SHARES`, in a stage evenly over metrics and segments, in a metric over the steps'
    restarts (whose average is one test).

    `metrics`: the guardrails of each stage ("gate", "rehearsal", "canary"). `readings`: those there are, by stage; a segment's reading is
    named "metric[segment]".
    """
    shares: list[Share] = []
    for stage, level in stage_levels(alpha).items():
        names = metrics.get(stage, ())
        found = {reading.metric: reading for reading in readings.get(stage, ())}
        for metric in names:
            for segment in segments:
                part = harm_level(level, len(names), len(segments))
                reading = found.get(f"{metric}[{segment}]" if segment else metric)
                shares.append(_share(stage, metric, segment, part, reading))
    return Budget(alpha, tuple(shares))


def _share(stage: str, metric: str, segment: str, level: float, reading: Reading | None) -> Share:
    if reading is None or reading.e_harm is None:
        return Share(stage, metric, segment, level, None, None)
    nearness = 1.0 if reading.harmful else min(1.0, reading.e_harm / reading.harm_threshold)
    return Share(stage, metric, segment, level, reading.e_harm, level * nearness)
