"""What goes into the evidence and what comes out: a unit's value, the plan of a guardrail, its reading.

Built by the rollout controller (`UnitValue`, `GuardrailPlan`) and shown by the command line and the console
(`Reading`). No mathematics here.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from services.evidence.errors import ClockFault, PlanFault, ValueFault

Direction = Literal["lower", "higher"]
"""Which direction of the metric is better."""
Kind = Literal["rate", "boundedMean", "mean", "ratio", "quantile"]
"""`ratio`: a ratio of sums over users, such as tokens by seconds."""
RELATIVE = ("mean", "ratio", "quantile")
"""Kinds whose margins are shares of control's value."""
Mode = Literal["nonInferior", "harmOnly", "goal"]
"""`nonInferior`: harm is watched, and non-inferiority must be shown. `harmOnly`: harm alone. `goal`: an improvement is to be shown."""
Arm = Literal["control", "candidate"]
LARGEST_MEAN = 1e50
"""Largest value of an unbounded mean's metric: its square and ratios stay numbers."""


@dataclass(frozen=True, slots=True)
class UnitValue:
    """One unit's closed value of one metric. Times are seconds on the store's clock; `step` counts from 0 and is that
    of the exposure.

    `value`: 0 or 1 for a rate, within the bounds for a bounded mean, ≥ 0 for a mean, ≥ 0 or +inf (no first token) for a
    quantile; of a ratio the unit's part of the numerator, and `weight` ≥ 0 its part of the denominator. `past`: the mean (or ratio) of the
    metric over the unit's own past, closed before the exposure; it makes all kinds but quantiles sharper. None: no past is known.
    """

    unit: str
    arm: Arm
    exposed_at: float
    closes_at: float
    step: int
    value: float
    past: float | None = None
    weight: float = 1.0

    @property
    def order(self) -> tuple[float, str]:
        """The order of the evidence: closing time, then unit hash."""
        return self.closes_at, self.unit


@dataclass(frozen=True, slots=True)
class GuardrailPlan:
    """How one metric is judged in one stage: fixed when the stage starts, never changed in it.

    `margin` is absolute for rates and bounded means, relative (0.2 = 20 %) for the other kinds: the worsening that
    is tolerated; for a goal, the least improvement that counts. `alpha_harm` is already divided by the number of metrics
    and segments; a goal does not use it. `alpha_promote` is the level at which non-inferiority or a goal's improvement
    is shown. `design_prior` is the stable arm's rate over the same
    horizon, known before the rollout. Partners are at most `pair_window_units` arrivals and `pair_window_seconds` apart; a pair is made as
    soon as both are there, so a wide window delays nothing.
    """

    metric: str
    kind: Kind
    direction: Direction
    margin: float
    relative: bool
    mode: Mode
    steps: int
    alpha_harm: float
    alpha_promote: float
    quantile: float | None = None
    design_prior: float | None = None
    pair_window_units: int = 10
    pair_window_seconds: float = 3600.0
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self.bounds
        width = high - low if self.kind == "boundedMean" else 1.0
        checks = {
            "kind is rate, boundedMean, mean, ratio or quantile": self.kind in get_args(Kind),
            "direction is lower or higher": self.direction in ("lower", "higher"),
            "mode is nonInferior, harmOnly or goal": self.mode in ("nonInferior", "harmOnly", "goal"),
            "bounds are finite and ascending": math.isfinite(low) and math.isfinite(high) and low < high,
            "the margin is relative for means, ratios and quantiles, absolute otherwise": self.relative
            == (self.kind in RELATIVE),
            "the margin is at least 0 and leaves room within the metric's range": (
                0 <= self.margin < math.inf and 1 + self.sign * self.tolerance > 0
                if self.relative
                else 0 <= self.margin < width
            ),
            "there is at least one step": self.steps >= 1,
            "both levels lie between 0 and 1": 0 < self.alpha_harm < 1 and 0 < self.alpha_promote < 1,
            "a quantile metric, and no other, names its quantile in (0, 1)": (
                self.quantile is not None and 0 < self.quantile < 1
                if self.kind == "quantile"
                else self.quantile is None
            ),
            "a design prior is a rate's, in [0, 1]": self.design_prior is None
            or (self.kind == "rate" and 0 <= self.design_prior <= 1),
            "the pair window is positive": self.pair_window_units >= 1 and self.pair_window_seconds > 0,
        }
        broken = [rule for rule, holds in checks.items() if not holds]
        if broken:
            raise PlanFault(f"guardrail {self.metric!r}: {'; '.join(broken)}: this does not hold")

    @property
    def sign(self) -> float:
        """+1 where lower is better, else −1: sign times (candidate minus control) is how much worse the candidate
        is."""
        return 1.0 if self.direction == "lower" else -1.0

    @property
    def guards(self) -> bool:
        """Whether the metric can be found harmful."""
        return self.mode != "goal"

    @property
    def tolerance(self) -> float:
        """The worsening at which harm and promotion part: the margin; for a goal minus the least improvement."""
        return self.margin if self.guards else -self.margin

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest value that a unit can have."""
        if self.kind == "boundedMean":
            return self.bounds
        return 0.0, {"rate": 1.0, "quantile": math.inf}.get(self.kind, LARGEST_MEAN)

    def check(self, value: UnitValue) -> None:
        """Raises ValueFault or ClockFault when the value cannot be one of this metric."""
        low, high = self.range
        if not low <= value.value <= high or (self.kind == "rate" and value.value not in (0.0, 1.0)):
            raise ValueFault(
                f"{self.metric}: {value.value!r} of unit {value.unit!r} cannot be the value of a {self.kind}"
            )
        if not 0 <= value.weight <= LARGEST_MEAN:
            raise ValueFault(
                f"{self.metric}: {value.weight!r} of unit {value.unit!r} cannot be the weight of a {self.kind}"
            )
        if value.past is not None and not low <= value.past <= high:
            raise ValueFault(f"{self.metric}: {value.past!r} cannot be the past of unit {value.unit!r}")
        if value.arm not in ("control", "candidate"):
            raise ValueFault(f"{self.metric}: unit {value.unit!r} names an unknown arm {value.arm!r}")
        if not 0 <= value.step < self.steps:
            raise ValueFault(f"{self.metric}: unit {value.unit!r} names step {value.step}, the plan has {self.steps}")
        if (
            not (math.isfinite(value.exposed_at) and math.isfinite(value.closes_at))
            or value.closes_at < value.exposed_at
        ):
            raise ClockFault(
                f"{self.metric}: unit {value.unit!r} is exposed at {value.exposed_at!r} and closes at {value.closes_at!r}"
            )


@dataclass(frozen=True, slots=True)
class Reading:
    """What one metric says now. Unknown is None; no field is ever NaN or infinite.

    `control`, `candidate` and `effect` (candidate minus control, or relative change) are estimates over all units of
    the stage. `lower` and `upper` are bounds on the effect that hold at every look at once. The bound on the harmful
    side is the best of the processes started at each step, at `alpha_harm`; the other uses the units of the current
    step alone, at `alpha_promote`. `harmful` never goes back to False, and nothing on the harm side moves after it.
    `non_inferior`, and a goal's `improved`, can be True in the last step only and describe this moment; `e_promote` is the evidence for
    them. `last_step`: units of the last step have been seen. `known`: units with a past of their own; `spared`: the share of the values'
    spread that their pasts took away, and with it about this share of the users needed.
    """

    metric: str
    kind: str
    mode: str
    margin: float
    relative: bool
    direction: str
    n_control: int
    n_candidate: int
    pairs: int
    expired: int
    excluded: dict[str, int]
    control: float | None
    candidate: float | None
    effect: float | None
    lower: float | None
    upper: float | None
    e_harm: float | None
    harm_threshold: float
    harmful: bool
    e_promote: float | None
    promote_threshold: float
    non_inferior: bool
    trustworthy: bool
    improved: bool = False
    last_step: bool = False
    known: int = 0
    spared: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The reading as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What a metric's own mathematics hands to `Guardrail`; infinities not yet removed.

    `worse` and `better` bound the badness (the effect, signed so that positive is worse) on the harmful and on the good side. `step`: the
    newest one with evidence. `shown`: badness lies below the plan's tolerance now, by the units of that step.
    """

    control: float | None
    candidate: float | None
    effect: float | None
    worse: float | None
    better: float | None
    log_harm: float | None
    log_promote: float | None
    harmful: bool
    step: int
    shown: bool
    pairs: int
    expired: int = 0
    spared: float | None = None
