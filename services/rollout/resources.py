"""The `LLMService` resource: one service, its model, engine and rules of rollout. The same models read YAML files here and become the
custom resource definition of a cluster (`crd`). Read by the controller, the command line and the documentation build.

Must not reach for anything outside (registry, platform, store): a resource is valid or not by itself. `load` lives in `loading`.
Field names are camelCase outside and snake_case inside; unknown fields are errors.

resources_engine    how versions are made servable
resources_rollout   stages, judge, freeze windows, notifications
resources_metrics   metrics, guardrails, goals, segments
resources_experiment  A/B experiments
resources_gateway   quotas, content filters, system prompt
resources_cost      prices, budget
resources_drift     what is looked at between rollouts
resources_base      what the models share
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from services.common.clock import DAY
from services.rollout.durations import Days
from services.rollout.resources_base import PinnedVersion, Resource, cel, keyed
from services.rollout.resources_cost import Cost
from services.rollout.resources_drift import Drift
from services.rollout.resources_engine import Engine
from services.rollout.resources_experiment import Experiment, distinct
from services.rollout.resources_gateway import Gateway
from services.rollout.resources_metrics import (
    COMPARED,
    METRICS,
    RELATIVE,
    Goal,
    GuardedStage,
    Guardrail,
    Metric,
    key_of,
    split_key,
)
from services.rollout.resources_rollout import CanaryStep, FreezeWindow, Notification, Rollout

__all__ = [
    "API_VERSION",
    "COMPARED",
    "METRICS",
    "RELATIVE",
    "CanaryStep",
    "Cost",
    "Engine",
    "FreezeWindow",
    "Goal",
    "GuardedStage",
    "Guardrail",
    "LLMService",
    "Metric",
    "Notification",
    "Rollout",
    "Spec",
    "key_of",
    "split_key",
]

THREE_WEEKS: Final = 21 * DAY
API_VERSION: Final = "understudy.dev/v1alpha1"

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$", max_length=40)]
"""A revision's name adds version and hash, and must fit a label of Kubernetes (63 characters)."""


class Metadata(Resource):
    """Kubernetes' object metadata, as far as it is read here."""

    name: Name = Field(
        description="The service's name, which clients send as `model`: at most 40 lower-case letters, digits, dashes."
    )
    namespace: str = Field(default="default", description="Namespace of the resource.")
    labels: dict[str, str] = Field(default_factory=dict, description="Free labels.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Free annotations.")


class Model(Resource):
    """Which registered model serves, and the aliases that steer it."""

    model_config = cel(
        ("self.champion != self.challenger", "champion and challenger must be different aliases", "challenger")
    )

    registered_model: str = Field(min_length=1, max_length=256, description="Name of the registered model in MLflow.")
    champion: str = Field(
        default="champion", min_length=1, max_length=256, description="Alias of the version that serves."
    )
    challenger: str = Field(
        default="challenger",
        min_length=1,
        max_length=256,
        description="Alias that starts a rollout when set on a version.",
    )
    pinned: tuple[PinnedVersion, ...] = Field(
        default=(),
        max_length=5,
        json_schema_extra={"x-kubernetes-list-type": "set"},
        description="Versions that run beside stable for tests: reached as `model: NAME@vN` by keys with the scope `pin`, "
        "outside the statistics. Each takes an engine.",
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if self.champion == self.challenger:
            raise ValueError("champion and challenger must be different aliases")
        if len(set(self.pinned)) != len(self.pinned):
            raise ValueError("pinned names a version twice")
        return self


class Privacy(Resource):
    """What of prompts and answers may be kept."""

    content: Literal["never", "judge", "topics"] = Field(
        default="never",
        description="`judge`: prompts and answers of mirrored and sampled requests wait encrypted, at most an hour, for the judge. "
        "`topics`: that, and of sampled prompts the embedding, the language and, encrypted, the set of words are kept for "
        "`retention.observations`.",
    )
    trace_content: bool = Field(
        default=False,
        description="Traces carry prompts, answers (as content filters leave them) and comments, in plain text, to wherever traces go.",
    )


class Retention(Resource):
    """How long the store keeps what it must not keep for ever. What a running rollout needs stays."""

    observations: Days = Field(
        default=30 * 86_400.0,
        description="Whole days; rows of requests, users and feedback; a week at least gives a rollout stable's whole history.",
    )
    audit: Days = Field(
        default=365 * 86_400.0, description="Whole days; entries of the audit trail. Rollouts themselves are kept."
    )


_NOTHING_KEPT: Final = (
    "!has(self.drift) || ((!has(self.drift.sample) || self.drift.sample == 0.0)"
    " && (!has(self.drift.onAlarm) || self.drift.onAlarm != 'evaluate'))"
)


class Spec(Resource):
    """What a person wants of a service."""

    model_config = cel(
        (
            f"{_NOTHING_KEPT} || (has(self.privacy) && has(self.privacy.content) && self.privacy.content != 'never')",
            "drift.sample and onAlarm: evaluate need privacy.content: judge or topics",
            "drift",
        ),
        (
            "!has(self.drift) || !has(self.drift.prompts)"
            " || (has(self.privacy) && has(self.privacy.content) && self.privacy.content == 'topics')",
            "drift.prompts needs privacy.content: topics",
            "drift",
        ),
        (
            "!has(self.drift) || !has(self.drift.onAlarm) || self.drift.onAlarm != 'evaluate'"
            " || (has(self.rollout) && has(self.rollout.judge) && self.rollout.judge.kind != 'pairwise')",
            "drift.onAlarm: evaluate needs a judge of kind exactMatch or rubric, who can grade one answer by itself",
            "drift",
        ),
    )

    model: Model = Field(description="The registered model and its aliases.")
    engine: Engine = Field(default_factory=Engine, description="How versions are made servable.")
    rollout: Rollout = Field(default_factory=Rollout, description="How a new version is brought in.")
    experiments: Annotated[tuple[Experiment, ...], AfterValidator(distinct)] = Field(
        default=(),
        max_length=4,
        json_schema_extra=keyed("name"),
        description="Versions compared on live users, with nothing to promote.",
    )
    gateway: Gateway = Field(default_factory=Gateway, description="Quotas, content filters and prompt of the service.")
    cost: Cost | None = Field(
        default=None, description="What the service costs; without it no costs are shown. See docs/costs.md."
    )
    drift: Drift = Field(default_factory=Drift, description="How stable is looked after between rollouts.")
    privacy: Privacy = Field(default_factory=Privacy, description="What of prompts and answers may be kept.")
    retention: Retention = Field(default_factory=Retention, description="How long the store keeps rows.")

    @model_validator(mode="after")
    def _consent(self) -> Self:
        drift, judge = self.drift, self.rollout.judge
        if (drift.sample > 0 or drift.on_alarm == "evaluate") and self.privacy.content == "never":
            raise ValueError("drift.sample and onAlarm: evaluate need privacy.content: judge or topics")
        if drift.prompts is not None and self.privacy.content != "topics":
            raise ValueError("drift.prompts needs privacy.content: topics")
        if drift.prompts is not None and self.retention.observations < THREE_WEEKS:
            raise ValueError(
                "drift.prompts needs retention.observations of 21d or more: a week is compared with later ones"
            )
        if drift.on_alarm == "evaluate" and (judge is None or not judge.grades):
            raise ValueError(
                "drift.onAlarm: evaluate needs a judge of kind exactMatch or rubric, who can grade one answer by itself"
            )
        return self


class LLMService(Resource):
    """A named model endpoint."""

    api_version: Literal["understudy.dev/v1alpha1"] = Field(default=API_VERSION, description="Version of this schema.")
    kind: Literal["LLMService"] = Field(default="LLMService", description="Always LLMService.")
    metadata: Metadata = Field(description="Name and labels.")
    spec: Spec = Field(description="What is wanted.")

    @classmethod
    def from_object(cls, manifest: Mapping[str, Any]) -> Self:
        """The resource from an object of the API server, whose own metadata and status are left aside.

        Raises:
            pydantic.ValidationError: a field is wrong in a way that the schema's rules cannot see.
        """
        metadata = {key: manifest["metadata"][key] for key in Metadata.model_fields if key in manifest["metadata"]}
        own = {key: value for key, value in manifest.items() if key != "status"}
        return cls.model_validate({**own, "metadata": metadata})

    @property
    def name(self) -> str:
        """The service's name."""
        return self.metadata.name

    @property
    def judged(self) -> bool:
        """Whether mirrored answers are judged: a judge is named and content may be kept for it."""
        return self.spec.rollout.judge is not None and self.spec.privacy.content != "never"

    @property
    def sampled(self) -> bool:
        """Whether answers of stable are looked at, now or after an alarm."""
        return self.spec.drift.sample > 0 or self.spec.drift.on_alarm == "evaluate"

    @property
    def graded(self) -> bool:
        """Whether the judge can grade stable's own answers, with nothing beside them."""
        return self.judged and self.spec.rollout.judge is not None and self.spec.rollout.judge.grades
