"""What a rollout watches: metrics, guardrails, goals and segments of the `LLMService` resource. See `resources_rollout`.

`METRICS` is the one place that says what each metric is: `plans` takes its statistics from there, the command line its direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from services.rollout.resources_base import Label, Resource, cel, keyed

Metric = Literal[
    "errors", "refusals", "ttft", "tokensPerSecond", "feedback", "judge", "preference", "escalations", "retries", "rating",
    "interTokenGap", "duration",
]  # fmt: skip
GuardedStage = Literal["rehearsal", "canary"]
BOTH: Final[tuple[GuardedStage, ...]] = ("rehearsal", "canary")


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric: its kind of statistic, which direction is better, where it is measured, and what a margin must stay below."""

    kind: Literal["rate", "boundedMean", "ratio", "quantile"]
    higher: bool = False
    stages: tuple[GuardedStage, ...] = BOTH
    widest: float = 1.0
    bounds: tuple[float, float] = (0.0, 1.0)

    @property
    def relative(self) -> bool:
        """Whether a margin is a share of stable's value; else it is absolute."""
        return self.kind in ("ratio", "quantile")


METRICS: Final[dict[str, Measured]] = {
    "errors": Measured("rate"),
    "refusals": Measured("rate"),
    "ttft": Measured("quantile", widest=100.0),
    "tokensPerSecond": Measured("ratio", higher=True),
    "feedback": Measured("rate", stages=("canary",)),
    "judge": Measured("boundedMean", higher=True, stages=("rehearsal",)),
    "preference": Measured("boundedMean", higher=True),
    "escalations": Measured("rate", stages=("canary",)),
    "retries": Measured("rate", stages=("canary",)),
    "rating": Measured("boundedMean", higher=True, stages=("canary",), widest=4.0, bounds=(1.0, 5.0)),
    "interTokenGap": Measured("quantile", widest=100.0),
    "duration": Measured("quantile", widest=100.0),
}
LENGTHS: Final[dict[str, Measured]] = {"longAnswers": Measured("quantile"), "shortAnswers": Measured("quantile")}
"""Drift alone looks at these, which are neither better nor worse: an answer's tokens, and one over them."""
COMPARED: Final = frozenset({"judge", "preference"})
"""Metrics of answers laid side by side, out of the traffic: of no step, segment or experiment."""
RELATIVE: Final = frozenset(name for name, metric in METRICS.items() if metric.relative)
"""Metrics whose margin is a share of stable's value; the others' margins are absolute."""
QUANTILES: Final = frozenset(name for name, metric in METRICS.items() if metric.kind == "quantile")
COMMON_QUANTILE: Final = 0.95


_GOAL: Final = "goal:"


def key_of(metric: str, segment: str | None = None, *, goal: bool = False) -> str:
    """The name of a metric in plans, readings and evidence: `ttft`; of a segment's users `ttft[enterprise]`; as a goal `goal:ttft`."""
    name = metric if segment is None else f"{metric}[{segment}]"
    return f"{_GOAL}{name}" if goal else name


def split_key(key: str) -> tuple[str, str | None]:
    """Metric and segment of a key."""
    metric, _, segment = key.removeprefix(_GOAL).partition("[")
    return metric, segment.rstrip("]") or None


_MEANING: Final = (
    "`errors`: users with a failed request; `refusals`: users who were refused an answer by the model or a content "
    "filter; `ttft`: seconds to the first token; `interTokenGap`: mean seconds between the tokens of an answer; "
    "`duration`: seconds to the end of an answer; `tokensPerSecond`: all tokens by the seconds that they took; `feedback`: users with a "
    "bad mark; `escalations`, `retries`: users with one; `rating`: mean of 1 to 5 over users who rated; `judge`: judged quality of "
    "mirrored answers, 0 to 1; `preference`: the candidate's share of what people preferred of two answers, 0 to 1."
)


def among(names: Any) -> str:
    return f"[{', '.join(repr(name) for name in METRICS if name in names)}]"


_SAID: Final = [name for name, metric in METRICS.items() if metric.stages == ("canary",)]
WIDE: Final = [name for name, metric in METRICS.items() if metric.widest > 4]
QUANTILE_RULE: Final = (
    f"!has(self.quantile) || self.metric in {among(QUANTILES)}",
    f"quantile belongs to {', '.join(name for name in METRICS if name in QUANTILES)}",
    "quantile",
)


def with_quantile(data: Any) -> Any:
    """A quantile metric that names no quantile has the common one."""
    if isinstance(data, dict) and data.get("metric") in QUANTILES and data.get("quantile") is None:
        return {**data, "quantile": COMMON_QUANTILE}
    return data


def no_foreign_quantile(metric: str, quantile: float | None) -> None:
    if quantile is not None and metric not in QUANTILES:
        raise ValueError(
            f"quantile belongs to {', '.join(name for name in METRICS if name in QUANTILES)}, not to {metric}"
        )


class Guardrail(Resource):
    """A metric that the candidate must not worsen beyond a margin."""

    model_config = cel(
        (
            f"self.metric in {among(WIDE)} || self.margin < (self.metric == 'rating' ? 4.0 : 1.0)",
            "margin must be below 1 (rating: 4): a share of users or points, or a fall of tokensPerSecond",
            "margin",
        ),
        QUANTILE_RULE,
        (
            f"!has(self.stages) || !('rehearsal' in self.stages) || !(self.metric in {among(_SAID)})",
            "stages: what users say is not measured in rehearsal, no user sees it",
            "stages",
        ),
        (
            "!has(self.stages) || self.metric != 'judge' || !('canary' in self.stages)",
            "stages: judge is not measured in canary, only mirrored answers are judged",
            "stages",
        ),
    )

    metric: Metric = Field(description=_MEANING)
    margin: float = Field(
        gt=0,
        le=100,
        description="Tolerated worsening: relative (0.2 is 20 %) for ttft, interTokenGap, duration, tokensPerSecond; in points for rating; "
        "absolute (0 to 1) for the others. Of preference it is stable's share less the candidate's: 0.1 tolerates 55 % to 45 %.",
    )
    mode: Literal["nonInferior", "harmOnly"] = Field(
        default="harmOnly",
        description="`nonInferior`: must be shown within the margin before promotion. `harmOnly`: must not be shown beyond it.",
    )
    quantile: float | None = Field(
        default=None, gt=0, lt=1, description="For ttft, interTokenGap and duration: which quantile; default 0.95."
    )
    stages: tuple[GuardedStage, ...] = Field(
        default=(), max_length=2, description="Stages that watch it; default: all that measure it."
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("stages") and data.get("metric") in METRICS:
            data = {**data, "stages": METRICS[data["metric"]].stages}
        return with_quantile(data)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        measured = METRICS[self.metric]
        if self.metric == "tokensPerSecond" and self.margin >= 1:
            raise ValueError("a margin of 1 or more allows tokensPerSecond to fall to nothing")
        if self.margin >= measured.widest and measured.widest < 100:
            share = "in points of 1 to 5" if self.metric == "rating" else "a share of users or points"
            raise ValueError(
                f"the margin of {self.metric} is {share} and must be below {measured.widest:g}, not {self.margin}"
            )
        no_foreign_quantile(self.metric, self.quantile)
        wrong = [stage for stage in self.stages if stage not in measured.stages]
        if wrong:
            raise ValueError(
                f"{self.metric} is not measured in stage {wrong[0]}; it is in {', '.join(measured.stages)}"
            )
        return self


class Segment(Resource):
    """Some of the users, for whom every guardrail holds as for all."""

    name: Label = Field(description="The segment's name, as reasons and evidence have it.")
    tenants: tuple[str, ...] = Field(
        min_length=1,
        max_length=100,
        json_schema_extra={"x-kubernetes-list-type": "set"},
        description="Tenants of the keys whose users belong to it.",
    )


class Goal(Resource):
    """A metric that the candidate is asked to improve."""

    model_config = cel(
        ("self.metric != 'judge'", "metric: judge is no goal, goals are shown by users in the last step", "metric"),
        (
            f"self.metric in {among(WIDE)} ? self.improvement < 1.0 : self.metric == 'tokensPerSecond' || "
            "self.improvement < (self.metric == 'rating' ? 4.0 : 1.0)",
            "improvement must be below 1 (rating: 4)",
            "improvement",
        ),
        QUANTILE_RULE,
    )

    metric: Metric = Field(description="As in guardrails; not judge.")
    improvement: float = Field(
        default=0.0, ge=0, le=100, description="Least improvement that counts, in the units of a guardrail's margin."
    )
    quantile: float | None = Field(default=None, gt=0, lt=1, description="As in guardrails.")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        return with_quantile(data)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.metric == "judge":
            raise ValueError("judge is no goal: goals are shown by users in the last step")
        most = {"rating": 4.0, "tokensPerSecond": 100.0}.get(self.metric, 1.0)
        if self.improvement >= most:
            raise ValueError(f"the improvement of {self.metric} must be below {most:g}, not {self.improvement}")
        no_foreign_quantile(self.metric, self.quantile)
        return self


class Goals(Resource):
    """What must have improved before promotion, beside guardrails that hold."""

    combination: Literal["average", "holm"] = Field(
        default="average",
        description="`average`: an improvement is shown by all goals together. `holm`: by one of them alone, corrected for their number.",
    )
    metrics: tuple[Goal, ...] = Field(
        min_length=1,
        max_length=len(METRICS),
        json_schema_extra=keyed("metric"),
        description="The goals; each metric once.",
    )

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        names = [goal.metric for goal in self.metrics]
        if len(set(names)) < len(names):
            raise ValueError("goals name a metric twice")
        return self
