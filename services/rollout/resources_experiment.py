"""The `experiments` part of the `LLMService` resource: versions compared on live users with nothing to promote. See `resources`."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from services.common.assignment import BUCKETS
from services.rollout.durations import Duration, Lasting
from services.rollout.resources_base import PinnedVersion, Resource, cel, keyed
from services.rollout.resources_metrics import (
    METRICS,
    QUANTILE_RULE,
    QUANTILES,
    WIDE,
    among,
    no_foreign_quantile,
    with_quantile,
)

ExperimentName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$", max_length=40)]
HOLDOUT: Final = "holdout"
"""The group of an experiment that gets whatever stable is."""
RESERVED: Final = ("stable", "candidate", HOLDOUT)
GoalMetric = Literal[
    "errors", "refusals", "ttft", "tokensPerSecond", "feedback", "escalations", "retries", "rating", "interTokenGap", "duration",
]  # fmt: skip
ENDURING: Final = frozenset({"paused", "max_duration"})
"""What of an experiment may change while it runs."""
_SLACK: Final = 1e-6
"""Percent: thirds and the like do not add up to 100 exactly."""


class Variant(Resource):
    """One version of an experiment and its share of the users."""

    name: ExperimentName = Field(
        description="A name for results and metrics; not `stable`, `candidate` or `holdout`. The first variant is the control."
    )
    weight: float = Field(
        ge=0.01, le=100, description="Percent of all users, in hundredths. Fixed for the experiment's life."
    )
    version: PinnedVersion = Field(
        description="The registry's version: it is brought up beside stable, as a pinned one; the champion's engine is shared."
    )


class Comparison(Resource):
    """One metric in which the variants are compared with the control."""

    model_config = cel(
        (
            f"!has(self.margin) || self.margin < 1.0 || self.metric in {among(WIDE)}",
            f"margin must be below 1 (rating: in points; {', '.join(sorted(QUANTILES))}: any share)",
            "margin",
        ),
        QUANTILE_RULE,
    )

    metric: GoalMetric = Field(
        description="As in `rollout.guardrails`; judge and preference are of a rollout's two revisions alone."
    )
    margin: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="Smallest difference that matters, as in `rollout.guardrails`. With it an experiment can also show that there is "
        "no such difference, and says when it would be decided at the latest.",
    )
    quantile: float | None = Field(
        default=None, gt=0, lt=1, description="For ttft, interTokenGap and duration: which quantile; default 0.95."
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        return with_quantile(data)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.margin is not None and self.margin >= METRICS[self.metric].widest:
            raise ValueError(f"the margin of {self.metric} must be below {METRICS[self.metric].widest:g}")
        no_foreign_quantile(self.metric, self.quantile)
        return self


_FIXED: Final = ("variants", "holdout", "metrics", "alpha", "minUnits", "horizon", "settle")


class Experiment(Resource):
    """Named variants compared on live users. Nothing is promoted: a person reads the result and sets `challenger`."""

    model_config = cel(
        (
            "self.variants.map(v, v.weight).sum() + self.holdout <= 100.000001",
            "the weights of variants and holdout are more than 100 percent",
            "variants",
        ),
        (
            "self.variants.all(v, self.variants.exists_one(w, w.name == v.name)"
            " && !(v.name in ['stable', 'candidate', 'holdout']))",
            "the names of variants must differ, and none may be stable, candidate or holdout",
            "variants",
        ),
        (
            " && ".join(f"self.{field} == oldSelf.{field}" for field in _FIXED),
            "variants, weights and rules of an experiment are fixed for its life: begin one under a new name",
            "",
        ),
    )

    name: ExperimentName = Field(description="Its name for good: an ended experiment's name is not used again.")
    variants: tuple[Variant, ...] = Field(
        min_length=2,
        max_length=6,
        description="At least two; the first is the control that the others are compared with.",
    )
    holdout: float = Field(
        default=0.0,
        ge=0,
        le=99,
        description="Percent of all users who get whatever stable is, are left out of rollouts meanwhile, and are compared with the "
        "control too.",
    )
    metrics: tuple[Comparison, ...] = Field(
        min_length=1, max_length=6, json_schema_extra=keyed("metric"), description="What is compared; each metric once."
    )
    alpha: float = Field(
        default=0.05,
        gt=0,
        lt=0.5,
        description="Probability that the experiment claims any difference that is not there, over all variants, metrics and looks.",
    )
    min_units: int = Field(
        default=100, ge=1, le=100_000_000, description="Users per group, closed, before anything is concluded."
    )
    horizon: Lasting = Field(
        default=3600.0, description="Time from a user's first request in the experiment in which outcomes count."
    )
    settle: Duration = Field(
        default=60.0, ge=0, description="Time after the horizon for running requests to end and feedback to come."
    )
    max_duration: Lasting = Field(
        default=28 * 86_400.0, description="Time after which the experiment ends by itself and everyone gets stable."
    )
    paused: bool = Field(default=False, description="Everyone gets stable and nothing is counted while this is true.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [variant.name for variant in self.variants]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"variants name {twice[0]} twice")
        if taken := sorted(set(names) & set(RESERVED)):
            raise ValueError(f"no variant may be named {taken[0]}")
        whole = sum(variant.weight for variant in self.variants) + self.holdout
        if whole > 100 + _SLACK or sum(share for _, share in self.groups()) > BUCKETS:
            raise ValueError(f"the weights of variants and holdout are {whole:g} percent, more than 100")
        metrics = [goal.metric for goal in self.metrics]
        if repeated := sorted({metric for metric in metrics if metrics.count(metric) > 1}):
            raise ValueError(f"metrics name {repeated[0]} twice")
        return self

    def groups(self) -> list[tuple[str, int]]:
        """Names and shares, in buckets of 10,000, of the variants in order and of the holdout, where there is one."""
        shares = [(variant.name, round(variant.weight / 100 * BUCKETS)) for variant in self.variants]
        held = round(self.holdout / 100 * BUCKETS)
        return [*shares, (HOLDOUT, held)] if held else shares

    def same_rules(self, other: Experiment) -> bool:
        """Whether all is equal that must not change while it runs."""
        return self.model_dump(exclude=set(ENDURING)) == other.model_dump(exclude=set(ENDURING))


def distinct(experiments: tuple[Experiment, ...]) -> tuple[Experiment, ...]:
    """Raises ValueError where a name comes twice."""
    names = [experiment.name for experiment in experiments]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"experiments name {twice[0]} twice")
    return experiments
