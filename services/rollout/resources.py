"""The `LLMService` resource: one service, its model, engine and rules of rollout. The same models read YAML files here and become the
custom resource definition of a cluster. Read by the controller, the command line and the documentation build.

Must not reach for anything outside (registry, platform, store): a resource is valid or not by itself. `load` lives in `loading`.
Field names are camelCase outside and snake_case inside; unknown fields are errors.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

from services.rollout.durations import Duration

API_VERSION: Final = "understudy.dev/v1alpha1"

Metric = Literal["errors", "ttft", "tokensPerSecond", "feedback", "judge"]
GuardedStage = Literal["rehearsal", "canary"]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$")]


class Resource(BaseModel):
    """What all parts share: camelCase outside, no unknown fields, no changes after reading."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Metadata(Resource):
    """Kubernetes' object metadata, as far as it is read here."""

    name: Name = Field(
        description="The service's name, which clients send as `model`: lower-case letters, digits, dashes."
    )
    namespace: str = Field(default="default", description="Namespace of the resource.")
    labels: dict[str, str] = Field(default_factory=dict, description="Free labels.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Free annotations.")


class Model(Resource):
    """Which registered model serves, and the aliases that steer it."""

    registered_model: str = Field(min_length=1, description="Name of the registered model in MLflow.")
    champion: str = Field(default="champion", min_length=1, description="Alias of the version that serves.")
    challenger: str = Field(
        default="challenger", min_length=1, description="Alias that starts a rollout when set on a version."
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if self.champion == self.challenger:
            raise ValueError("champion and challenger must be different aliases")
        return self


class Resources(Resource):
    """What one replica of the engine takes."""

    cpu: float = Field(default=1.0, ge=0, description="CPU cores that one replica claims.")
    gpu: float = Field(default=0.0, ge=0, description="GPUs that one replica claims.")


class Replicas(Resource):
    """Bounds of the engine's autoscaling."""

    min: int = Field(default=1, ge=1, le=1000, description="Fewest replicas.")
    max: int = Field(default=1, ge=1, le=1000, description="Most replicas.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is greater than max ({self.max})")
        return self


class Engine(Resource):
    """How a version of weights is made servable. A change here is a new revision and is rolled out as one."""

    platform: Literal["serve", "kuberay"] = Field(
        default="serve", description="`serve`: an application on a running Ray cluster."
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="vLLM's engine arguments, passed on untouched.")
    resources: Resources = Field(default_factory=Resources, description="What one replica takes.")
    replicas: Replicas = Field(default_factory=Replicas, description="Bounds of autoscaling.")
    max_ongoing_requests: int = Field(default=64, ge=1, description="Requests under way at once in one replica.")
    start_timeout: Duration = Field(
        default=900.0, gt=0, description="Time an engine may take to become ready before its rollout aborts."
    )


class Gate(Resource):
    """Offline evaluation of candidate and champion compared before any engine starts."""

    enabled: bool = Field(default=True, description="Whether a rollout needs evaluations of both versions.")
    margin: float = Field(
        default=0.02, ge=0, lt=1, description="Loss of accuracy (absolute share of items) that is tolerated."
    )
    minimum_accuracy: float | None = Field(
        default=None, ge=0, le=1, description="Accuracy below which a candidate fails whatever the champion's is."
    )


class Rehearsal(Resource):
    """Mirrored traffic: the candidate answers copies of real prompts and no user sees it."""

    share: float = Field(
        default=0.1, gt=0, le=1, description="Share of users (0 to 1) of whom one request is mirrored."
    )
    min_pairs: int = Field(default=200, ge=0, description="Mirrored pairs before the rehearsal may end.")
    min_duration: Duration = Field(default=600.0, ge=0, description="Time before the rehearsal may end.")
    max_duration: Duration = Field(
        default=14_400.0, gt=0, description="Time after which an unfinished rehearsal is held for a person."
    )
    in_flight: int = Field(
        default=4, ge=1, description="Mirrored pairs under way at once in one gateway; more are dropped."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_duration > self.max_duration:
            raise ValueError("minDuration is longer than maxDuration")
        return self


class CanaryStep(Resource):
    """One step of live traffic; control takes as many users as the candidate."""

    weight: float = Field(gt=0, le=50, description="Percent of users who get the candidate.")
    min_duration: Duration = Field(default=3600.0, ge=0, description="Time before the step may end.")
    min_units: int = Field(
        default=100, ge=0, description="Users per arm, first exposed in this step and closed, before the step may end."
    )
    max_duration: Duration = Field(
        default=172_800.0, gt=0, description="Time after which an undecided step is held for a person."
    )
    approval: bool = Field(default=False, description="Whether a person must approve the end of this step.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_duration > self.max_duration:
            raise ValueError("minDuration is longer than maxDuration")
        return self


def _production_steps() -> tuple[CanaryStep, ...]:
    hour, day = 3600.0, 86_400.0
    return (
        CanaryStep(weight=1, min_duration=hour),
        CanaryStep(weight=5, min_duration=hour),
        CanaryStep(weight=25, min_duration=hour),
        CanaryStep(weight=50, min_duration=day, max_duration=7 * day),
    )


class Canary(Resource):
    """The steps, in order."""

    steps: tuple[CanaryStep, ...] = Field(
        default_factory=_production_steps, min_length=1, max_length=20, description="Steps with growing weights."
    )

    @model_validator(mode="after")
    def _growing(self) -> Self:
        weights = [step.weight for step in self.steps]
        if any(later <= earlier for earlier, later in itertools.pairwise(weights)):
            raise ValueError(f"weights must grow from step to step, not {weights}")
        return self


_STAGES: Final[dict[str, tuple[GuardedStage, ...]]] = {
    "errors": ("rehearsal", "canary"),
    "ttft": ("rehearsal", "canary"),
    "tokensPerSecond": ("rehearsal", "canary"),
    "feedback": ("canary",),
    "judge": ("rehearsal",),
}
RELATIVE: Final = frozenset({"ttft", "tokensPerSecond"})
"""Metrics whose margin is a share of stable's value; the others' margins are absolute."""


class Guardrail(Resource):
    """A metric that the candidate must not worsen beyond a margin."""

    metric: Metric = Field(
        description="`errors`: users with a failed request; `ttft`: seconds to the first token; `tokensPerSecond`: mean per user; "
        "`feedback`: users with a bad mark; `judge`: judged quality of mirrored answers, 0 to 1."
    )
    margin: float = Field(
        gt=0,
        description="Tolerated worsening: absolute (0 to 1) for errors, feedback, judge; relative (0.2 is 20 %) for ttft, tokensPerSecond.",
    )
    mode: Literal["nonInferior", "harmOnly"] = Field(
        default="harmOnly",
        description="`nonInferior`: must be shown within the margin before promotion. `harmOnly`: must not be shown beyond it.",
    )
    quantile: float | None = Field(default=None, gt=0, lt=1, description="For ttft: which quantile; default 0.95.")
    stages: tuple[GuardedStage, ...] = Field(
        default=(), description="Stages that watch it; default: all that measure it."
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        filled = dict(data)
        if not filled.get("stages") and filled.get("metric") in _STAGES:
            filled["stages"] = _STAGES[filled["metric"]]
        if filled.get("metric") == "ttft" and filled.get("quantile") is None:
            filled["quantile"] = 0.95
        return filled

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.metric not in RELATIVE and self.margin >= 1:
            raise ValueError(
                f"the margin of {self.metric} is a share of users or points and must be below 1, not {self.margin}"
            )
        if self.metric == "tokensPerSecond" and self.margin >= 1:
            raise ValueError("a margin of 1 or more allows tokensPerSecond to fall to nothing")
        if self.quantile is not None and self.metric != "ttft":
            raise ValueError(f"quantile belongs to ttft, not to {self.metric}")
        wrong = [stage for stage in self.stages if stage not in _STAGES[self.metric]]
        if wrong:
            raise ValueError(
                f"{self.metric} is not measured in stage {wrong[0]}; it is in {', '.join(_STAGES[self.metric])}"
            )
        return self


def _production_guardrails() -> tuple[Guardrail, ...]:
    return (
        Guardrail(metric="errors", margin=0.01, mode="nonInferior"),
        Guardrail(metric="ttft", margin=0.2, mode="nonInferior"),
        Guardrail(metric="feedback", margin=0.05),
    )


class Judge(Resource):
    """Who scores mirrored answers. Needs `privacy.content: judge`."""

    kind: Literal["exactMatch", "rubric", "pairwise"] = Field(
        description="`exactMatch`: the reference answer occurs as a whole word. `rubric`: a model grades each answer 1 to 5. "
        "`pairwise`: a model compares both, in both orders."
    )
    references: str | None = Field(
        default=None,
        description="For exactMatch: path of a JSON object, prompt to answer, relative to the resource's file.",
    )
    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="For rubric and pairwise: base URL of an OpenAI-compatible server, ending in /v1.",
    )
    model: str | None = Field(default=None, description="For rubric and pairwise: the judge's model name.")
    api_key_env: str | None = Field(
        default=None, description="Environment variable that holds the endpoint's key; none: no key is sent."
    )
    timeout: Duration = Field(default=30.0, gt=0, description="Time one judgement may take.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "exactMatch" and self.references is None:
            raise ValueError("exactMatch needs `references`")
        if self.kind != "exactMatch" and (self.endpoint is None or self.model is None):
            raise ValueError(f"{self.kind} needs `endpoint` and `model`")
        return self


class Rollout(Resource):
    """How a new version is brought in."""

    alpha: float = Field(
        default=0.05,
        gt=0,
        lt=0.5,
        description="Probability of aborting a harmless candidate, over the whole rollout; also of passing one guardrail wrongly.",
    )
    horizon: Duration = Field(
        default=600.0, gt=0, description="Time from a user's first request in a rollout in which outcomes count (H)."
    )
    settle: Duration = Field(
        default=60.0, ge=0, description="Time after the horizon for running requests to end and feedback to come."
    )
    look: Duration = Field(default=10.0, gt=0, description="Time between the controller's looks.")
    gate: Gate = Field(default_factory=Gate, description="Offline evaluation.")
    rehearsal: Rehearsal = Field(default_factory=Rehearsal, description="Mirrored traffic.")
    canary: Canary = Field(default_factory=Canary, description="Live traffic in steps.")
    guardrails: tuple[Guardrail, ...] = Field(
        default_factory=_production_guardrails, min_length=1, description="What must not become worse."
    )
    hold_timeout: Duration = Field(
        default=86_400.0, ge=0, description="Time a held rollout keeps its weight before it falls to 0."
    )
    rollback_window: Duration = Field(
        default=3600.0,
        ge=0,
        description="Time after promotion in which the old revision stays warm and the new one is watched.",
    )
    judge: Judge | None = Field(default=None, description="Who scores mirrored answers; none: nobody.")
    paused: bool = Field(default=False, description="Keeps the rollout where it is; harm still aborts it.")

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        metrics = [guardrail.metric for guardrail in self.guardrails]
        twice = sorted({metric for metric in metrics if metrics.count(metric) > 1})
        if twice:
            raise ValueError(f"guardrails name {twice[0]} twice")
        if "judge" in metrics and self.judge is None:
            raise ValueError("a judge guardrail needs `judge`")
        if not any(guardrail.mode == "nonInferior" for guardrail in self.guarded("canary")):
            raise ValueError(
                "no guardrail of the canary is nonInferior: nothing could show that a version may be promoted"
            )
        return self

    def guarded(self, stage: GuardedStage) -> tuple[Guardrail, ...]:
        """The guardrails of a stage, in the resource's order."""
        return tuple(guardrail for guardrail in self.guardrails if stage in guardrail.stages)


class Privacy(Resource):
    """What of prompts and answers may be kept."""

    content: Literal["never", "judge"] = Field(
        default="never",
        description="`judge`: mirrored prompts and answers wait encrypted, at most an hour, for the judge.",
    )


class Spec(Resource):
    """What a person wants of a service."""

    model: Model = Field(description="The registered model and its aliases.")
    engine: Engine = Field(default_factory=Engine, description="How versions are made servable.")
    rollout: Rollout = Field(default_factory=Rollout, description="How a new version is brought in.")
    privacy: Privacy = Field(default_factory=Privacy, description="What of prompts and answers may be kept.")


class LLMService(Resource):
    """A named model endpoint."""

    api_version: Literal["understudy.dev/v1alpha1"] = Field(default=API_VERSION, description="Version of this schema.")
    kind: Literal["LLMService"] = Field(default="LLMService", description="Always LLMService.")
    metadata: Metadata = Field(description="Name and labels.")
    spec: Spec = Field(description="What is wanted.")

    @property
    def name(self) -> str:
        """The service's name."""
        return self.metadata.name

    @property
    def judged(self) -> bool:
        """Whether mirrored answers are judged: a judge is named and content may be kept for it."""
        return self.spec.rollout.judge is not None and self.spec.privacy.content == "judge"
